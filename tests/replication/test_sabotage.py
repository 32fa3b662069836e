"""Sabotage: the method broken on purpose, in a copy of the repository, must make a test fail.

Each case is the kind of error that leaves everything running and only the numbers wrong.
"""

import pytest
from repository import copy_repository, python

pytestmark = [pytest.mark.slow, pytest.mark.weekly]

DEFINITIONS = "tests/grace/test_training.py::test_logged_terms_equal_the_definitions"
PIPELINE = "tests/replication/test_stages.py::test_the_cached_outputs_are_the_teacher_s"

CASES = {
    "the gate is inverted": (
        *("grace/distillation/gate.py", "(-kappa / math.log(vocab))", "(kappa / math.log(vocab))"),
        DEFINITIONS,
    ),
    "the gate is dropped": (
        *("grace/training/trainer.py", "config.kappa", "0.0"),
        DEFINITIONS,
    ),
    "teacher and student change places in the loss": (
        "grace/training/trainer.py",
        "            logits,\n            teacher.logits,\n",
        "            teacher.logits.float().requires_grad_(),\n            logits.detach(),\n",
        DEFINITIONS,
    ),
    "the baseline is its own teacher": (
        "replication/train/teacher_outputs.py",
        'layout.model(name, "teacher")',
        'layout.model(name, "baseline")',
        PIPELINE,
    ),
    "the quantizer is the identity": (
        "grace/quantization/primitives.py",
        "    return quantized\n\n\ndef _backward(",
        "    return weight.detach().to(dtype)\n\n\ndef _backward(",
        "tests/grace/test_quantization_linear.py",
    ),
    "the multiplier moves against the constraint": (
        "grace/distillation/controller.py",
        "average - self.tau",
        "self.tau - average",
        DEFINITIONS,
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("sabotage"))


@pytest.mark.parametrize("tests", [DEFINITIONS, PIPELINE])
def test_what_is_whole_passes(copy, tests):
    done = python("-m", "pytest", "-x", tests, cwd=copy, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_sabotage_is_noticed(copy, case):
    name, sound, broken, tests = CASES[case]
    path = copy / name
    before = path.read_text()
    assert before.count(sound) >= 1, f"{name} has changed: choose another text to replace"
    try:
        path.write_text(before.replace(sound, broken))
        done = python("-m", "pytest", "-x", "-p", "no:cacheprovider", tests, cwd=copy, timeout=600)
    finally:
        path.write_text(before)
    assert done.returncode == 1, done.stdout + done.stderr  # tests ran, and failed
    assert "FAILED" in done.stdout or "AssertionError" in done.stdout
