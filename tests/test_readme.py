"""The README and docs/scaling.md: generated parts are current, and the README's example runs,
on small models in place of the published ones."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from grace.errors import InputError
from grace.quantization import CODES_FILE, CodesFile
from replication.measure.growth import OUT
from replication.report.documents import fill, scaling
from replication.report.documents.readme import PART, results
from replication.report.documents.scaling import DOCUMENT, contents

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_its_results_are_those_of_the_result_files():
    small = ROOT / "results" / "small"
    table = json.loads((small / "tables" / "table4.json").read_text())
    verdicts = json.loads((small / "claims.json").read_text())
    deployed = json.loads((small / "measurements" / "deploy-llava-1.5-7b.json").read_text())
    text = README.read_text()
    assert fill(text, {PART: results(small)}, README) == text, "run `make readme`"
    assert f"{deployed['values']['throughput']['point']:.2f}× [" in text
    part = text.partition(f"<!-- {PART}:begin -->")[2].partition(f"<!-- {PART}:end -->")[0]
    for row in table["rows"]:
        assert f"| {row['cells']['Avg']['measured']:.1f} |" in part
    for claim in verdicts["claims"]:
        (line,) = [line for line in part.splitlines() if line.startswith(f"| {claim['status']} |")]
        assert claim["id"] in line


@pytest.mark.slow
def test_the_document_of_costs_is_current():
    measured = json.loads((ROOT / OUT).read_text())
    text = DOCUMENT.read_text()
    assert fill(text, contents(measured), DOCUMENT) == text, f"run python -m {scaling.__name__}"


@pytest.mark.parametrize("text", ["", "<!-- part:end -->\n<!-- part:begin -->\n"])
def test_a_document_without_the_place_of_a_part_is_refused(text):
    with pytest.raises(InputError, match="part"):
        fill(text, {"part": ""}, README)


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch, make_model, processor, conversations):
    for name, model in {"2B": make_model(1), "7B": make_model(2, num_hidden_layers=3)}.items():
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    for name in ("2B", "7B"):
        code = code.replace(f"Qwen/Qwen2-VL-{name}-Instruct", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.parquet").write_bytes(conversations.read_bytes())

    exec(compile(code, "README.md", "exec"), {})

    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    for name, (codes, scales) in CodesFile(tmp_path / "student" / CODES_FILE).items():
        assert codes.min() >= -8
        assert codes.max() <= 7
        exact = codes.cpu().float().unflatten(1, (scales.shape[1], -1)) * scales.cpu()[..., None]
        assert torch.equal(saved.get_submodule(name).weight.cpu(), exact.flatten(1)), name
