"""Full disks, lost permissions, signals and no memory: what was there stays, or is wholly new.

Each case is a writer with what it replaces. It is disturbed at every change that it makes to its
folder (see `faults`), or at every few, and then run again.
"""

import errno
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotated import annotate, draw, talk
from faults import changes_of, contents, failing, file_size, is_temporary, killed, put, settled
from safetensors.torch import load
from transformers import TrainingArguments

from grace.data import ConversationDataset
from grace.data.sources import open_records
from grace.errors import InputError
from grace.export import load_packed, save_compressed_tensors, save_packed
from grace.files import atomic_path, write_json
from grace.int4 import pack
from grace.models import check_model_directory
from grace.quantization import QuantSpec, bake, prepare
from grace.training import GraceTrainer, MethodConfig, prepare_student, save_student
from grace.training.report import REPORT_FILE
from replication.base.files import write_json_atomic
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
from replication.train.fit import read_origin, save_trained

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FORBIDDEN = OSError(errno.EROFS, os.strerror(errno.EROFS))
FAULTS = (FULL, FORBIDDEN, MemoryError("out of memory"), KeyboardInterrupt())
SPEC = QuantSpec(bits=4, group_size=32)


@dataclass
class Case:
    """A writer.

    Attributes:
        prepare: writes the old content.
        run: writes the new content.
        believed: whether the project's own reader takes what a folder holds; asked only of states
            that are neither the old nor the new one.
        every: it is disturbed at every so many of its changes.
        kinds: the faults.
        keeps: whether temporary files may be left, to go on with.
        beside: files that are no result.
    """

    prepare: Callable[[Path], Any]
    run: Callable[[Path], Any]
    believed: Callable[[Path], bool] = lambda _: True
    every: int = 1
    kinds: tuple[BaseException, ...] = FAULTS
    keeps: bool = False
    beside: tuple[str, ...] = ()

    def files(self, state: dict[str, bytes]) -> dict[str, bytes]:
        """The writer's files under their final names."""
        return {n: content for n, content in settled(state).items() if n not in self.beside}


def read_by(reader: Callable[[Path], Any]) -> Callable[[Path], bool]:
    def believed(folder: Path) -> bool:
        try:
            reader(folder)
        except InputError:
            return False
        return True

    return believed


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
    """Two files that belong together: where the scores are, the outcomes are theirs."""

    def agree(folder: Path) -> bool:
        results = ResultSet(folder, "small")
        if results.all():  # raises where the outcomes are not those of the scores
            assert results.answers("qwen2_vl", ["kd_int4"], ["GQA"]) is not None
        return bool(results.all())

    return Case(result_files(0.5), result_files(0.75), agree)


def shards_of_conversations() -> Case:
    def records(count: int) -> list[dict[str, Any]]:
        text = [{"id": n, "conversations": talk(1, seed=n)} for n in range(count)]
        return [{"id": "a", "image": "coco/a.png", "conversations": talk(1, 1)}, *text]

    def run(folder: Path) -> None:
        source = find_annotations(str(folder / "annotations.json"))
        images = Images(str(folder / "images"))
        convert([source], images, folder / "target", shard_size=2, workers=1)

    def prepare(folder: Path) -> None:
        draw(folder / "images" / "coco" / "a.png", 8, 8)
        annotate(folder / "annotations.json", records(2))
        run(folder)
        annotate(folder / "annotations.json", records(4))

    def read(folder: Path) -> None:
        assert open_records(folder / "target")[0]["id"] == "a"

    log = "target.images.jsonl"  # lines are added to it, and torn ones are skipped
    return Case(prepare, run, read_by(read), every=5, keeps=True, beside=(log,))


def quantized(make_model, seed: int) -> Any:
    model = make_model(seed)
    prepare(model, SPEC)
    return model


def a_packed_directory(make_model, processor) -> Case:
    def write(seed: int) -> Callable[[Path], None]:
        model = quantized(make_model, seed)
        pack(model, bake(model), backend="reference")
        return lambda folder: save_packed(
            model, folder / "packed", processor=processor, overwrite=True
        )

    reader = read_by(lambda folder: load_packed(folder / "packed", backend="reference"))
    return Case(write(0), write(1), reader, every=5)


def an_exported_directory(make_model, processor) -> Case:
    def write(seed: int) -> Callable[[Path], None]:
        model = quantized(make_model, seed)
        return lambda folder: save_compressed_tensors(
            model, folder / "export", processor=processor, overwrite=True, round_scales=True
        )

    reader = read_by(lambda folder: check_model_directory(folder / "export"))
    return Case(write(0), write(1), reader, every=11, kinds=FAULTS[:1])


def a_trained_student(make_model, processor) -> Case:
    """What `grace train` writes in the end."""

    def write(seed: int) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            model, method = quantized(make_model, seed), MethodConfig("qat", 4, SPEC)
            save_student(
                model,
                processor,
                folder / "student",
                method,
                overwrite=True,
                also=lambda directory: write_json(directory / REPORT_FILE, {"seed": seed}),
            )

        return run

    reader = read_by(lambda folder: check_model_directory(folder / "student"))
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


CASES = (
    *(a_result_file, scores_and_outcomes, shards_of_conversations, a_packed_directory),
    *(an_exported_directory, a_trained_student, a_run_of_the_pipeline),
)


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request) -> Case:
    words = request.param.__code__.co_varnames[: request.param.__code__.co_argcount]
    return request.param(*(request.getfixturevalue(word) for word in words))


# --- the promises ---------------------------------------------------------------------------------


class Ends:
    """What a case's folder holds before and after, undisturbed."""

    def __init__(self, case: Case, folder: Path):
        self.case, self.folder = case, folder
        folder.mkdir()
        case.prepare(folder)
        self.old = contents(folder)
        self.steps = len(changes_of(folder, lambda: case.run(folder)))
        self.new = case.files(contents(folder))
        assert self.new != case.files(self.old)

    def assert_sound(self, state: dict[str, bytes], when: str) -> None:
        """Every file is the old or the new one; and where they are mixed, the project's reader
        refuses them, or what it reads is of one kind."""
        old, files = self.case.files(self.old), self.case.files(state)
        for name, content in files.items():
            assert content in (old.get(name), self.new.get(name)), f"{when}: {name} is torn"
        if files not in (old, self.new):
            put(self.folder, state)
            if self.case.believed(self.folder) and any(c != old.get(n) for n, c in files.items()):
                lost = sorted(old.keys() - files.keys())
                assert not lost, f"{when}: believed, but without {lost}"

    def assert_mends(self, state: dict[str, bytes], when: str) -> None:
        """Run again, it ends as if it had not been disturbed."""
        put(self.folder, state)
        self.case.run(self.folder)
        assert self.case.files(contents(self.folder)) == self.new, f"{when}: another result"


@pytest.mark.slow
def test_a_fault_at_any_change(case, tmp_path):
    ends = Ends(case, tmp_path / "world")
    for kind in case.kinds:
        for at in range(0, ends.steps, case.every):
            when = f"{kind!r} at change {at}"
            put(ends.folder, ends.old)
            try:
                with failing(ends.folder, at, kind):
                    case.run(ends.folder)
            except (OSError, MemoryError, KeyboardInterrupt, InputError):
                pass
            except Exception as error:  # compiled writers wrap the system's error
                message = str(error).lower()
                assert "space" in message or "read-only" in message, f"{when}: {error!r}"
            state = contents(ends.folder)
            ends.assert_sound(state, when)
            left = [name for name in state if is_temporary(name) and ".old" not in name]
            assert case.keeps or not left, f"{when}: {left} are left"
            ends.assert_mends(state, when)


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_file(case, tmp_path):
    ends = Ends(case, tmp_path / "world")
    sizes = sorted(len(c) for n, c in ends.new.items() if ends.old.get(n) != c)
    for limit in {0, sizes[0] - 1, sizes[-1] // 2, sizes[-1] - 1}:
        put(ends.folder, ends.old)
        with pytest.raises(Exception), file_size(limit):  # noqa: B017  # in a library's own words
            case.run(ends.folder)
        state, when = contents(ends.folder), f"files of at most {limit} bytes"
        ends.assert_sound(state, when)
        ends.assert_mends(state, when)


@pytest.mark.slow
def test_every_state_that_a_kill_leaves(case, tmp_path):
    ends = Ends(case, tmp_path / "world")
    put(ends.folder, ends.old)
    states = killed(ends.folder, lambda: case.run(ends.folder))
    assert len(states) > 2
    again = {len(states) // 3, 2 * len(states) // 3, len(states) - 1}
    for place, state in enumerate(states):
        when = f"killed in state {place} of {len(states)}"
        ends.assert_sound(state, when)
        if case.every == 1 or place in again:
            ends.assert_mends(state, when)


def test_temporary_files_of_a_killed_process_are_ignored(tmp_path):
    result_files(0.5)(tmp_path)
    place = (tmp_path, "small", "qwen2_vl", "kd_int4")
    for path in (scores_path(*place), outcomes_path(*place)):
        path.with_name(f".{path.name}.abc.tmp").write_text("{")
    assert [scores.run for scores in ResultSet(tmp_path, "small").all()] == ["kd_int4"]
    assert read_outcomes(*place).answers.seeds == (0,)
    assert read_recordings(tmp_path / "none", "small") == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path):
    def write():
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("a")

    kinds = [change.split()[0] for change in changes_of(tmp_path, write)]
    assert kinds.index("fsync") < kinds.index("os.rename")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.slow
def test_checkpoints_are_complete_whenever_training_is_killed(tmp_path, family, conversations):
    small, scratch = family("qwen2_vl"), tmp_path / "scratch"
    model, method = small.model(1), MethodConfig("qat", 4, SPEC)
    prepare_student(model, method)
    data = ConversationDataset(conversations, small.processor, model.config, limit=4)
    arguments = TrainingArguments(
        str(scratch),
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
    states = killed(scratch, trainer.train)
    names = {path.name for path in (scratch / "checkpoint-2").iterdir()}
    complete = 0
    for state in states:
        for step in (1, 2):
            start = f"checkpoint-{step}/"
            files = {n.removeprefix(start): c for n, c in state.items() if n.startswith(start)}
            if not files:
                continue
            if files.keys() != names:  # the older one, while it is removed
                assert step == 1 and any(name.startswith("checkpoint-2/") for name in state)
                continue
            assert json.loads(files["trainer_state.json"])["global_step"] == step
            torch.load(io.BytesIO(files["optimizer.pt"]), weights_only=True)
            load(files["model.safetensors"])
            complete += 1
    assert complete > 2
