"""Every stage of the pipeline, whole: its disk is full, or it is killed, at its first write, in
between and at its last; then it runs again, and what it leaves is what it leaves undisturbed.

So each stage also runs twice, in processes of their own, and gives the same bytes.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from faults import contents, settled
from repository import ROOT
from stage_server import Fault, Server
from test_stages import CELL, FAMILY, GROUP, tiny_params

pytestmark = [pytest.mark.slow, pytest.mark.weekly]

QUANTIZED, DEPLOYED, TUNED = "small_ptq", "qwen2-vl-2b", f"{FAMILY}_tuning"
STAGES = (
    *("standins", f"vision {FAMILY}", f"features {FAMILY}", "language"),
    *(f"alignment {FAMILY}", f"pairs {FAMILY}", f"teacher_outputs {FAMILY}", "regimes"),
    *(f"train {GROUP}", f"train {CELL}", f"train {TUNED}", f"ptq {QUANTIZED}"),
    *(f"evaluate {FAMILY}", f"evaluate {GROUP}", f"evaluate {CELL}", "evaluate regimes"),
    *(f"evaluate {TUNED}", f"evaluate {QUANTIZED}", f"tuning {FAMILY}"),
    *(f"entropy_error {FAMILY}", f"calibration {FAMILY}"),
    *(f"gate_covariance {FAMILY}", f"internals {FAMILY}"),
    *(f"examples {FAMILY}", f"export {FAMILY}", f"deploy {DEPLOYED}"),
    *("tables", "figures", "claims", "report"),
)
ALIKE = {
    *(f"train {CELL}", f"train {TUNED}"),
    *(f"evaluate {name}" for name in (FAMILY, CELL, "regimes", TUNED, QUANTIZED)),
}
"""Another of them is disturbed, and does the same."""
NOT_WHOLE = (f"models/smoke/{FAMILY}/processor",)
"""Written under its final name: DVC removes what a stage wrote before it runs again."""


def params():
    found = tiny_params(
        runs={GROUP: {"models": {"sft_bf16": {"method": "sft", "bits": 16, "seeds": [0]}}}},
        compare={"resamples": 200},
    )
    quantized = {"rtn_int4": {"method": "rtn", "bits": 4}}
    found["ptq"]["groups"] = {QUANTIZED: {"pair": FAMILY, "models": quantized}}
    found["ptq"]["group_size"] = 32
    found["evaluate"]["benchmarks"][QUANTIZED] = ["mmbench"]
    for name in ("qat", "kd"):
        own = {f"{name}_int4": {"method": name, "bits": 4, "seeds": [0]}}
        found["runs"].setdefault(TUNED, {"pair": FAMILY, "models": {}})["models"] |= own
    found["evaluate"]["benchmarks"][TUNED] = ["mmbench"]
    candidates = {name: [f"{name}_int4"] for name in ("qat", "kd", "grace")}
    found["tuning"] |= {"pairs": [FAMILY], "candidates": candidates}
    found["deploy"]["models"] = {DEPLOYED: ["bf16", "int4"]}
    return found


def outputs(words: str) -> dict[Path, bool]:
    """What dvc.yaml says a stage writes, and whether it stays while the stage runs again."""
    name, _, key = words.partition(" ")
    body = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]
    body, found = body.get("do", body), {}
    for entry in [*body.get("outs", ()), *body.get("metrics", ())]:
        [(path, options)] = entry.items() if isinstance(entry, dict) else [(entry, {})]
        for pattern, value in (("scale", "smoke"), ("key", key), ("item", key)):
            path = path.replace(f"${{{pattern}}}", value)
        found[Path(path)] = options.get("persist", False)
    if name == "evaluate":  # its finished benchmarks; removed, so that each fault meets a whole run
        found[Path("models/smoke/.evaluations", key)] = False
    return found


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def result(name: str, content: bytes) -> object:
    """A file's content, without what the clock and git say: equal stages write equal ones."""
    if not name.endswith(".json"):
        return content
    found = json.loads(content)
    if isinstance(found, dict):
        for key in ("cost", "seconds"):
            found.pop(key, None)
        for key in ("commit", "dirty"):
            found.get("provenance", {}).pop(key, None)
    return found


@dataclass
class World:
    """A folder in which every stage has run, and what each changed there."""

    server: Server
    folder: Path
    files: dict[str, bytes]
    changes: dict[str, list[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    (folder / "params.yaml").write_text(yaml.safe_dump(params()))
    for name in ("results/performance", "results/real_cell", "results/scaling", "recorded"):
        shutil.copytree(ROOT / name, folder / name)
    changes = {}
    with Server() as server:
        for words in STAGES:
            done = server.run(folder, words)
            assert done.code == 0, f"{words}: {done.said}"
            changes[words] = done.changes
        yield World(server, folder, contents(folder), changes)


def faults_of(changes: list[str]) -> list[Fault]:
    """At the first write, one in the middle, the last file that is opened and the last write: but
    for the first these are writes that there is one of, since in a run that goes on they have other
    numbers."""
    kinds = ("os.remove", "os.rmdir", "fsync")
    writes = [what for what in changes if not what.startswith(kinds)]
    single = [what for what in writes if writes.count(what) == 1]
    opened = [what for what in single if what.startswith("open ")] or single
    places = [("full", 0), ("kill", 0), ("kill", opened[len(opened) // 2]), ("kill", opened[-1])]
    return [Fault(kind, at) for kind, at in (*places, ("full", single[-1]), ("kill", single[-1]))]


def test_no_stage_is_left_out():
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert {words.split()[0] for words in STAGES} == stages - {"code"}  # of the repository itself


@pytest.mark.parametrize("words", [one for one in STAGES if one not in ALIKE])
def test_a_stage_that_is_disturbed(words, world, tmp_path):
    folder = shutil.copytree(world.folder, tmp_path / "world", symlinks=True)
    own = outputs(words)
    mine = {n for n in world.files if any(Path(n).is_relative_to(path) for path in own)}
    assert mine, f"{words} wrote none of {list(own)}"
    others = {n: c for n, c in settled(world.files).items() if n not in mine}
    for path in own:
        remove(folder / path)
    for fault in faults_of(world.changes[words]):
        done = world.server.run(folder, words, fault)
        assert done.code == -9 if fault.kind == "kill" else done.code > 0, f"{fault}: {done}"
        if fault.kind == "full":
            assert "No space left" in done.said
        whole(words, own, world.files, others, settled(contents(folder)))
        for path, persists in own.items():
            if not persists:
                remove(folder / path)  # as DVC does
    done = world.server.run(folder, words)
    assert done.code == 0, done.said
    now = settled(contents(folder))
    assert now.keys() == settled(world.files).keys()
    for name, content in now.items():
        assert result(name, content) == result(name, world.files[name]), name


def whole(words, own, undisturbed, others, now):
    """Nothing but the stage's own files has changed; each of these is what it is undisturbed, and a
    directory that is read as one has all of them."""
    assert {n: c for n, c in now.items() if n in others} == others
    mine = {n: c for n, c in now.items() if n not in others}
    for name, content in mine.items():
        if not name.startswith(NOT_WHOLE):
            assert name in undisturbed, f"{words} left {name}"
            assert result(name, content) == result(name, undisturbed[name]), f"{words}: {name}"
    marks = ("config.json", "meta.json", "tokenizer_config.json")
    for directory in {Path(n).parent for n in undisturbed if Path(n).name in marks}:
        of_it = {n for n in settled(undisturbed) if Path(n).parent == directory}
        if not str(directory).startswith(NOT_WHOLE) and of_it & now.keys():
            assert of_it <= now.keys(), f"{words} left {directory} without {of_it - now.keys()}"
