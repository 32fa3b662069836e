"""Full disks, lost permissions, signals and no memory: what was there stays, or is wholly new.

Each case is a writer of the project with what it replaces. It is disturbed at every single change
that it makes to its folder (see `faults`), and then run again.
"""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotated import annotate, draw, talk
from faults import (
    changes_of,
    contents,
    failing,
    file_size,
    is_temporary,
    killed,
    put,
    settled,
    watched,
)
from safetensors.torch import load

from grace.cli import train as cli_train
from grace.data import Shards
from grace.errors import InputError
from grace.export import load_packed, save_compressed_tensors, save_packed
from grace.files import atomic_path
from grace.int4 import crossover, pack
from grace.models import check_model_directory
from grace.quantization import QuantSpec, bake, prepare
from grace.training import MethodConfig
from replication.base.files import read_json, write_json_atomic
from replication.data.conversations.annotations import find_annotations
from replication.data.conversations.convert import Images, convert
from replication.results.elsewhere import read_recordings
from replication.results.scores import (
    ResultSet,
    benchmark_score,
    outcomes_path,
    read_outcomes,
    scores_path,
    write_outcomes,
    write_scores,
)
from replication.settings.workspace import _copy
from replication.train.fit import read_origin, save_trained

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FORBIDDEN = OSError(errno.EROFS, os.strerror(errno.EROFS))
FAULTS = (FULL, FORBIDDEN, MemoryError("out of memory"), KeyboardInterrupt())
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Case:
    """A writer.

    prepare: makes what was there before. run: writes. whole: whether what a folder holds now is to
    be believed, by the project's own reader; it is asked only of states that are neither the old
    nor the new one. every: at which of its changes it is disturbed (1: at all of them). kinds: the
    faults. warns: a full disk is a warning to it, and not an error. keeps: what it has begun is
    kept, to go on with or to be overwritten. beside: files that are no result.
    """

    prepare: Callable[[Path], Any]
    run: Callable[[Path], Any]
    whole: Callable[[Path], bool] = lambda _: True
    every: int = 1
    kinds: tuple[BaseException, ...] = FAULTS
    warns: bool = False
    keeps: bool = False
    beside: tuple[str, ...] = ()

    def files(self, folder: Path) -> dict[str, bytes]:
        """The writer's files under their final names."""
        found = settled(contents(folder))
        return {name: content for name, content in found.items() if name not in self.beside}


def nothing(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def read_as(reader: Callable[[Path], Any]) -> Callable[[Path], bool]:
    """Whether a reader takes what is there."""

    def whole(folder: Path) -> bool:
        try:
            reader(folder)
        except InputError:
            return False
        return True

    return whole


# --- the writers ----------------------------------------------------------------------------------


def a_result_file() -> Case:
    return Case(
        lambda folder: write_json_atomic(folder / "a.json", {"a": 1}),
        lambda folder: write_json_atomic(folder / "a.json", {"a": [2] * 500}),
    )


def result_files(accuracy: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        credits = (np.arange(40) < 40 * accuracy).astype(float)
        columns: dict[str, Any] = {
            "seed": [0] * 40,
            "benchmark": ["GQA"] * 40,
            "question_id": [f"{place:03d}" for place in range(40)],
            "skill": ["all"] * 40,
            "prediction": ["A"] * 40,
            "target": ["A"] * 40,
            "credit": credits.tolist(),
        }
        entry = benchmark_score(100 * credits.mean(), credits, 25.0)
        record = {
            **{"family": "qwen2_vl", "run": "kd_int4", "method": "kd", "bits": 4},
            **{"scale": "small", "standin": True, "provenance": {"commit": "0" * 40}},
            "seeds": {"0": {"benchmarks": {"GQA": entry}}},
        }
        place = (folder, "small", "qwen2_vl", "kd_int4")
        scores_path(*place).unlink(missing_ok=True)  # as the stage evaluate does
        write_outcomes(*place, columns)
        write_scores(folder, record)

    return write


def scores_and_outcomes() -> Case:
    """Two files that tell one story: where the scores are, the outcomes are theirs."""

    def agree(folder: Path) -> bool:
        found = ResultSet(folder, "small")
        if found.all():  # raises where the outcomes are not those of the scores
            assert found.answers("qwen2_vl", ["kd_int4"], ["GQA"]) is not None
        return bool(found.all())

    return Case(result_files(0.5), result_files(0.75), agree)


def a_copy_of_results() -> Case:
    def run(folder: Path) -> None:
        shutil.copytree(
            folder / "workspace", folder / "results", dirs_exist_ok=True, copy_function=_copy
        )

    def prepare(folder: Path) -> None:
        for place, value in (("workspace", 2), ("results", 1)):
            for name in ("a.json", "tables/b.json"):
                write_json_atomic(folder / place / name, {"value": [value] * 200})

    return Case(prepare, run, lambda folder: all(read_json(p) for p in folder.rglob("*.json")))


def shards_of_conversations() -> Case:
    def records(count: int) -> list[dict[str, Any]]:
        one = {"image": "coco/a.png", "conversations": talk(1, 1)}
        text = [{"id": n, "conversations": talk(1, seed=n)} for n in range(count)]
        return [{"id": "a", **one}, *text]

    def run(folder: Path) -> None:
        source = find_annotations(str(folder / "annotations.json"))
        convert(
            [source], Images(str(folder / "images")), folder / "target", shard_size=2, workers=1
        )

    def prepare(folder: Path) -> None:
        draw(folder / "images" / "coco" / "a.png", 8, 8)
        annotate(folder / "annotations.json", records(2))
        run(folder)
        annotate(folder / "annotations.json", records(4))

    def read(folder: Path) -> None:
        found = Shards(folder / "target")
        assert [found[place]["id"] for place in range(len(found))][:1] == ["a"]

    log = "target.images.jsonl"  # lines are added to it, and torn ones read over
    return Case(prepare, run, read_as(read), every=5, keeps=True, beside=(log,))


def measured_crossovers(monkeypatch) -> Case:
    def write(rows: int) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            monkeypatch.setenv("GRACE_CACHE", str(folder))
            crossover._write({"a": rows})

        return run

    return Case(write(4), write(16), warns=True, keeps=True, kinds=FAULTS[2:])


def quantized(make_model, seed: int) -> Any:
    model = make_model(seed)
    prepare(model, QuantSpec(bits=4, group_size=32))
    return model


def a_packed_directory(make_model, processor) -> Case:
    models = []
    for seed in (0, 1):
        model = quantized(make_model, seed)
        pack(model, bake(model), backend="reference")
        models.append(model)

    def write(place: int) -> Callable[[Path], None]:
        return lambda folder: save_packed(
            models[place], folder / "packed", processor=processor, overwrite=True
        )

    def read(folder: Path) -> None:
        load_packed(folder / "packed", backend="reference")

    return Case(write(0), write(1), read_as(read), every=5)


def an_exported_directory(make_model, processor) -> Case:
    models = [quantized(make_model, seed) for seed in (0, 1)]

    def write(place: int) -> Callable[[Path], None]:
        return lambda folder: save_compressed_tensors(
            models[place], folder / "export", processor=processor, overwrite=True, round_scales=True
        )

    reader = read_as(lambda folder: check_model_directory(folder / "export"))
    return Case(write(0), write(1), reader, every=11, kinds=FAULTS[:1])


def a_trained_student(make_model, processor) -> Case:
    """What `grace train` writes in the end."""

    def write(seed: int) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            out = folder / "student"
            scratch = folder / "student.checkpoints"
            scratch.mkdir(exist_ok=True)
            given: Any = cli_train.argparse.Namespace(out=str(out), overwrite=True, seed=seed)
            method = MethodConfig("qat", 4, QuantSpec(bits=4, group_size=32))
            model = quantized(make_model, seed)
            cli_train._write(given, model, processor, method=method, history=[], scratch=scratch)

        return run

    reader = read_as(lambda folder: check_model_directory(folder / "student"))
    return Case(write(0), write(1), reader, every=11, kinds=FAULTS[:1])


def a_run_of_the_pipeline(make_model, processor) -> Case:
    """The model directory that the stage train keeps if it follows from the same."""

    def write(seed: int) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            model, method = quantized(make_model, seed), MethodConfig("qat", 4, SPEC)
            save_trained(model, processor, folder / "seed0", method, {"seed": str(seed)})

        return run

    def kept(folder: Path) -> bool:
        return read_origin(folder / "seed0") == {"seed": "1"}  # as the stage asks

    return Case(write(0), write(1), kept, every=11, keeps=True, kinds=FAULTS[:1])


SPEC = QuantSpec(bits=4, group_size=32)
CASES = {
    made.__name__: made
    for made in (
        *(a_result_file, scores_and_outcomes, a_copy_of_results, shards_of_conversations),
        *(measured_crossovers, a_packed_directory, an_exported_directory, a_trained_student),
        a_run_of_the_pipeline,
    )
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    made = CASES[request.param]
    words = made.__code__.co_varnames[: made.__code__.co_argcount]
    return made(*(request.getfixturevalue(word) for word in words))


# --- the promises ---------------------------------------------------------------------------------


def world(folder: Path, case: Case) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    case.prepare(folder)
    return folder


@dataclass
class Ends:
    """What a case's folder holds before and after, undisturbed."""

    case: Case
    folder: Path
    old: dict[str, bytes]
    new: dict[str, bytes]

    @classmethod
    def of(cls, case: Case, folder: Path) -> "Ends":
        old = case.files(world(folder, case))
        case.run(folder)
        new = case.files(folder)
        assert new != old
        return cls(case, folder, old, new)

    def assert_sound(self, state: dict[str, bytes], when: str) -> None:
        """Every file is the old or the new one; and where they are mixed, the project's reader
        refuses them, or what it reads is of one kind."""
        found = {n: c for n, c in settled(state).items() if n not in self.case.beside}
        for name, content in found.items():
            known = content in (self.old.get(name), self.new.get(name))
            assert known, f"{when}: {name} is neither the old nor the new one"
        if found not in (self.old, self.new):
            put(self.folder, state)
            if self.case.whole(self.folder):
                changed = {n for n, c in found.items() if c != self.old.get(n)}
                lost = self.old.keys() - found.keys()
                assert not (changed and lost), f"{when}: believed, but without {sorted(lost)}"

    def assert_mends(self, state: dict[str, bytes], when: str) -> None:
        """Run again, it ends as if it had not been disturbed."""
        put(self.folder, state)
        self.case.run(self.folder)
        assert self.case.files(self.folder) == self.new, f"{when}: another result, run again"


@pytest.mark.slow
def test_a_fault_at_any_change(case, tmp_path):
    ends, disturbed = Ends.of(case, tmp_path / "world"), 0
    world(ends.folder, case)
    steps = len(changes_of(ends.folder, lambda: case.run(ends.folder)))
    for kind in case.kinds:
        for at in range(0, steps, case.every):
            when = f"{kind!r} at change {at}"
            put(ends.folder, ends.old)
            try:
                with failing(ends.folder, at, kind):
                    case.run(ends.folder)
            except (OSError, MemoryError, KeyboardInterrupt, InputError):
                disturbed += 1
            except Exception as error:  # compiled writers wrap the system's error
                told = str(error).lower()
                assert "space" in told or "read-only" in told, f"{when}: {error!r}"
                disturbed += 1
            state = contents(ends.folder)
            ends.assert_sound(state, when)
            left = [name for name in state if is_temporary(name) and ".old" not in name]
            assert case.keeps or not left, f"{when}: {left} are left"
            ends.assert_mends(state, when)
    assert disturbed


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_file(case, tmp_path):
    ends = Ends.of(case, tmp_path / "world")
    changed = (len(made) for name, made in ends.new.items() if ends.old.get(name) != made)
    sizes = sorted(set(changed))
    for limit in {0, sizes[0] - 1, sizes[-1] // 2, sizes[-1] - 1}:
        put(ends.folder, ends.old)
        try:
            with file_size(limit):
                case.run(ends.folder)
        except AssertionError:
            raise
        except Exception:  # in the library's own words
            pass
        else:
            assert case.warns, f"no error, though no file may have more than {limit} bytes"
        state, when = contents(ends.folder), f"files of at most {limit} bytes"
        ends.assert_sound(state, when)
        ends.assert_mends(state, when)


@pytest.mark.slow
def test_every_state_that_a_kill_leaves(case, tmp_path):
    ends = Ends.of(case, tmp_path / "world")
    put(ends.folder, ends.old)
    states = killed(ends.folder, lambda: case.run(ends.folder))
    assert len(states) > 2
    again = {len(states) // 3, 2 * len(states) // 3, len(states) - 1}
    for place, state in enumerate(states):
        when = f"killed in state {place} of {len(states)}"
        ends.assert_sound(state, when)
        if case.every == 1 or place in again:
            ends.assert_mends(state, when)


def test_the_harness_sees_a_writer_that_is_not_atomic(tmp_path):
    """A writer that opens its target is caught by both."""

    def write(value: int) -> Callable[[Path], None]:
        return lambda folder: (folder / "a.json").write_text(json.dumps([value] * 3000)) and None

    case = Case(write(1), write(2))
    for test in (
        test_a_disk_that_is_full_in_the_middle_of_a_file,
        test_every_state_that_a_kill_leaves,
    ):
        place = tmp_path / test.__name__
        place.mkdir()
        with pytest.raises(AssertionError, match="neither the old nor the new"):
            test(case, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_process_that_is_ended_leaves_a_whole_file(name, tmp_path):
    """Real signals, at times that chance chooses."""
    path = tmp_path / "a.json"
    write_json_atomic(path, {"values": [0] * 50_000})
    script = (
        "import itertools\n"
        "from replication.base.files import write_json_atomic\n"
        "for turn in itertools.count(1):\n"
        f"    write_json_atomic({str(path)!r}, {{'values': [turn] * 50_000}})\n"
        "    print(turn, flush=True)\n"
    )
    for wait in random.Random(name).choices(range(1, 40), k=2):
        child = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(wait / 1000)
        child.send_signal(getattr(signal, name))
        child.communicate(timeout=60)
        assert child.returncode != 0
        values = set(read_json(path)["values"])
        assert len(values) == 1
        if name == "SIGINT":
            assert not [one for one in tmp_path.iterdir() if one != path]


def test_what_a_kill_leaves_is_read_over(tmp_path):
    """Temporary names beside results are nothing to any reader."""
    result_files(0.5)(tmp_path)
    place = (tmp_path, "small", "qwen2_vl", "kd_int4")
    for path in (scores_path(*place), outcomes_path(*place)):
        path.with_name(f".{path.name}.abc.tmp").write_text("{")
    found = ResultSet(tmp_path, "small")
    assert [one.run for one in found.all()] == ["kd_int4"]
    assert read_outcomes(*place).answers.seeds == (0,)
    assert read_recordings(tmp_path / "none", "small") == []


def test_a_file_keeps_its_permissions_policy_and_is_on_the_disk_first(tmp_path):
    """The content is synchronised before the rename."""
    order: list[str] = []
    with watched(tmp_path, order.append), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("a")
    kinds = [what.split()[0] for what in order]
    assert kinds.index("fsync") < kinds.index("os.rename")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.slow
def test_checkpoints_are_complete_whenever_training_is_killed(tmp_path, family, conversations):
    from transformers import TrainingArguments

    from grace.data import ConversationDataset
    from grace.training import GraceTrainer, prepare_student

    small = family("qwen2_vl")
    model = small.model(1)
    method = MethodConfig("qat", 4, QuantSpec(bits=4, group_size=32))
    prepare_student(model, method)
    data = ConversationDataset(conversations, small.processor, model.config, limit=4)
    arguments = TrainingArguments(
        str(tmp_path / "scratch"),
        max_steps=2,
        save_steps=1,
        save_total_limit=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = GraceTrainer(model, arguments, data, small.collator(), method=method, teacher=None)
    states = killed(tmp_path / "scratch", trainer.train)
    names = {path.name for path in (tmp_path / "scratch" / "checkpoint-2").iterdir()}
    seen = 0
    for state in states:
        for step in (1, 2):
            found = {
                n.partition("/")[2]: c
                for n, c in state.items()
                if n.startswith(f"checkpoint-{step}/")
            }
            if not found:
                continue
            if found.keys() != names:  # the older one, while it is removed
                assert step == 1 and any(name.startswith("checkpoint-2/") for name in state)
                continue
            assert json.loads(found["trainer_state.json"])["global_step"] == step
            torch.load(io.BytesIO(found["optimizer.pt"]), weights_only=True)
            load(found["model.safetensors"])
            seen += 1
    assert seen > 2
