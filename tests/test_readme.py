"""The README and docs/scaling.md: generated parts are current; and the tutorial's example in Python
runs, on small models in place of the published ones."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_families import FAMILIES
from transformers import AutoModelForImageTextToText

from grace.errors import InputError
from grace.export.gguf_vision import PROJECTORS
from grace.quantization import CODES_FILE, CodesFile
from replication.judge.quantities import signed
from replication.report.documents import engines, fill, repeat, scaling
from replication.report.documents.readme import HEADLINES, PART, RUNS, results
from replication.report.documents.scaling import DOCUMENT, contents
from replication.report.page.ledger import PHRASES
from replication.report.tables.deployments import engines_report

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "training.md"
VLLM_FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # of tests/engines
GGUF_FAMILIES = tuple(PROJECTORS)


def test_its_results_are_those_of_the_result_files():
    small = ROOT / "results" / "small"
    verdicts = json.loads((small / "claims.json").read_text())
    deployed = json.loads((small / "measurements" / "deploy-llava-1.5-7b.json").read_text())
    regimes = json.loads((small / "tables" / "regimes.json").read_text())
    text = README.read_text()
    assert fill(text, {PART: results(small)}, README) == text, "run `make readme`"
    part = text.partition(f"<!-- {PART}:begin -->")[2].partition(f"<!-- {PART}:end -->")[0]
    assert f"decodes {deployed['values']['throughput']['point']:.2f}× [" in part
    statuses = Counter(one["status"] for one in verdicts["claims"] if one["by"] == "paper")
    assert f"Of the paper's {statuses.total()} claims" in part
    for status, (one, several) in PHRASES.items():
        words = one if statuses[status] == 1 else several
        assert (f"{statuses[status]} {words}" in part) == (statuses[status] > 0)
    for family, table in HEADLINES.items():
        rows = json.loads((small / "tables" / f"{table}.json").read_text())["rows"]
        (line,) = [line for line in part.splitlines() if line.startswith(f"| {family} (")]
        for run in RUNS.values():
            (cell,) = [row["cells"]["Avg"] for row in rows if row["run"] == run]
            assert f"[{signed(cell['delta_low'])}, {signed(cell['delta_high'])}]" in line
    for found in regimes["findings"]:
        head = found.partition(" (")[0]
        at_16_bits = f" of {len(regimes['rows'])} cells" in head and "4 bits" not in head
        assert (f"- {found.partition(' (')[0]}" in part) == at_16_bits


def test_it_has_at_most_120_lines():
    assert len(README.read_text().splitlines()) <= 120


def test_results_that_are_missing_are_named(tmp_path):
    with pytest.raises(InputError, match=r"claims\.json is missing; run `make repro`"):
        results(tmp_path)


def test_the_document_of_engines_is_current_and_holds_every_number():
    text = engines.DOCUMENT.read_text()
    current = engines.contents(engines_report(ROOT / "results"))
    assert fill(text, current, engines.DOCUMENT) == text, f"run python -m {engines.__name__}"
    report = json.loads((ROOT / "results/small/deploy/llava-1.5-7b/deploy.json").read_text())
    variants = report["models"]["llava-1.5-7b"]["variants"]
    variants["nf4"] = {"label": "NF4", "not_run": "it is too slow"}
    (table,) = engines.contents(report).values()
    for part in (variants["bf16"], variants["int8"], variants["int4"]):
        (line,) = [line for line in table.splitlines() if f"| {part['label']} |" in line]
        for spread, form in (
            (part["time_to_first_token"], ".2f"),
            *((step["tokens_per_second"], ".2f") for step in part["decode"].values()),
        ):
            low, median, high = (format(spread[end], form) for end in ("low", "median", "high"))
            assert f"| {median} [{low}, {high}] |" in line or low == high
    assert table.endswith("- NF4: not run: it is too slow")
    assert "\nllava-1.5-7b (llava-hf/llava-1.5-7b-hf, random weights):\n" in table
    assert report["device"] in table


def test_the_document_of_the_repeat_is_current_and_says_what_differs():
    text, (part,) = repeat.DOCUMENT.read_text(), repeat.contents().values()
    current = fill(text, {repeat.PART: part}, repeat.DOCUMENT)
    assert current == text, f"run python -m {repeat.__name__}"
    here, there = (
        {one["id"]: one["status"] for one in json.loads(file.read_text())["claims"]}
        for file in (repeat.HERE / "claims.json", repeat.THERE / "claims.json")
    )
    for name in here:
        assert (f"{name} ({here[name]} to {there[name]})" in part) == (here[name] != there[name])
    here, there = (
        [row["outcome"] for row in json.loads(file.read_text())["rows"]]
        for file in (repeat.HERE / "tables/regimes.json", repeat.THERE / "tables/regimes.json")
    )
    same = [one for one, other in zip(here, there, strict=True) if one == other]
    assert f"same answer: {len(same)} of {len(here)}." in part
    # what the text around it says
    assert same.count("beats KD") == here.count("beats KD") == there.count("beats KD") == 4
    gaps = re.findall(r"\| (\d+\.\d) \((\d+\.\d)\) \|", part)
    assert len(gaps) == 3 and all(float(gap) < float(committed) / 2 for gap, committed in gaps)


@pytest.mark.slow
def test_the_document_of_costs_is_current():
    text = DOCUMENT.read_text()
    assert fill(text, contents(), DOCUMENT) == text, f"run python -m {scaling.__name__}"


@pytest.mark.parametrize("text", ["", "<!-- part:end -->\n<!-- part:begin -->\n"])
def test_a_document_without_the_place_of_a_part_is_refused(text):
    with pytest.raises(InputError, match="part"):
        fill(text, {"part": ""}, README)


def test_its_families_are_the_tested_ones():
    table = README.read_text().partition("| family | trained |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    named = {name: row[1:] for row in rows for name in row[0].split(", ")}
    assert sorted(named) == sorted(name for _, name in FAMILIES)
    for model_type, name in FAMILIES:  # tests/grace/test_families.py tests all of them alike
        trained, packed, exports, engines = named[name]
        assert trained == packed == "yes"
        assert exports.removesuffix(", GGUF") == "compressed-tensors, AWQ"
        assert exports.endswith("GGUF") == (model_type in GGUF_FAMILIES)
        assert ("llama.cpp" in engines) == (model_type in GGUF_FAMILIES)
        assert ("vLLM" in engines) == (model_type in VLLM_FAMILIES)


def in_the_hub_s_cache(home, name, model, processor):
    """Put a model where the hub's libraries look for what they have fetched."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for part in (model, processor):
        part.save_pretrained(repository / "snapshots" / ("0" * 40))


@pytest.mark.slow
def test_the_example_runs(tmp_path, make_model, processor, conversations, installed):
    """As it stands, in a process of its own: with small models in the hub's cache under the
    published names, and data where the example has them."""
    home = tmp_path / "hub"
    in_the_hub_s_cache(home, "Qwen/Qwen2-VL-2B-Instruct", make_model(1), processor)
    larger = make_model(2, num_hidden_layers=3)
    in_the_hub_s_cache(home, "Qwen/Qwen2-VL-7B-Instruct", larger, processor)
    (tmp_path / "photos").mkdir()
    lines = []
    for record in pq.read_table(conversations).to_pylist()[:8]:
        if record["image"] is not None:
            (tmp_path / "photos" / f"{record['id']}.png").write_bytes(record["image"]["bytes"])
            record["image"] = f"{record['id']}.png"
        lines.append(json.dumps(record) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (code,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    path = os.pathsep.join(map(str, (installed, ROOT)))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "hub"), "PYTHONPATH": path}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]

    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    for name, (codes, scales) in CodesFile(tmp_path / "student" / CODES_FILE).items():
        assert codes.min() >= -8
        assert codes.max() <= 7
        exact = codes.cpu().float().unflatten(1, (scales.shape[1], -1)) * scales.cpu()[..., None]
        assert torch.equal(saved.get_submodule(name).weight.cpu(), exact.flatten(1)), name
