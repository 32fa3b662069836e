"""The README: its results are those of the result files, and its example runs as printed, on small
models in place of the published ones."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from grace.cli import COMMANDS, parser
from grace.errors import InputError
from grace.quantization import CODES_FILE, CodesFile
from replication.report.readme import BEGIN, END, fill

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_its_results_are_those_of_the_result_files():
    small = ROOT / "results" / "small"
    table = json.loads((small / "tables" / "table4.json").read_text())
    verdicts = json.loads((small / "claims.json").read_text())
    deployed = json.loads((small / "measurements" / "deploy-llava-1.5-7b.json").read_text())
    text = README.read_text()
    assert fill(text, table, verdicts, deployed) == text, "run `make readme`"
    assert f"{deployed['values']['throughput']['point']:.2f}× [" in text
    shown = text.partition(BEGIN)[2].partition(END)[0]
    for row in table["rows"]:
        cell = row["cells"]["Avg"]
        assert f"| {cell['measured']:.1f} |" in shown
    for claim in verdicts["claims"]:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"| {claim['status']} |")]
        assert claim["id"] in line


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{BEGIN}{END}"])
def test_a_text_without_its_place_is_refused(text):
    with pytest.raises(InputError, match="once each"):
        fill(text, {"rows": []}, {"claims": []}, {})


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

    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)

    assert names["codes_and_scales"]
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    assert set(CodesFile(tmp_path / "student" / CODES_FILE)) == set(names["codes_and_scales"])
    for name, (codes, scales) in names["codes_and_scales"].items():
        assert codes.min() >= -8
        assert codes.max() <= 7
        exact = codes.cpu().float().unflatten(1, (scales.shape[1], -1)) * scales.cpu()[..., None]
        assert torch.equal(saved.get_submodule(name).weight.cpu(), exact.flatten(1)), name


def test_its_commands_are_those_of_the_parser():
    """Every `grace` line of the README is taken by the command."""
    text = README.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    grace ")]
    asked = [shlex.split(line, comments=True)[1:] for line in lines]
    assert {words[0] for words in asked} == set(COMMANDS)
    for words in asked:
        parser().parse_args(words)
