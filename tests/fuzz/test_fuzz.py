"""Whatever a loader is given, it returns a correct result or raises InputError.

A few inputs here; `make fuzz` gives each loader thousands.
"""

import signal
import time
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from loaders import LOADERS, Valid
from transformers.utils import logging

from grace.errors import InputError

PATIENCE = 60  # seconds, after which a loader hangs
PENDING = {
    "conversations": "grace.data looks at the columns' names, and not at what they hold",
    "model_config": "grace.models takes a config.json that is no mapping",
    "teacher_outputs": "grace.teacher does not expect every error of a damaged array",
}


@pytest.fixture
def valid(family, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path / "cache"))
    return Valid(family, conversations, tmp_path)


def known(name):
    """The loaders that still raise other errors."""
    if name not in PENDING:
        return name
    return pytest.param(name, marks=pytest.mark.xfail(reason=PENDING[name], strict=False))


def hangs(*_):
    raise AssertionError(f"hangs: more than {PATIENCE} seconds")


@pytest.mark.parametrize("name", [known(name) for name in LOADERS])
def test_a_result_or_an_input_error(name, valid, capsys):
    loader = LOADERS[name](valid)
    thorough = settings.get_current_profile_name() == "fuzz"
    refused = inputs = 0

    @settings(
        max_examples=loader.many if thorough else loader.few,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(loader.inputs)
    def check(given):
        nonlocal inputs, refused
        inputs += 1
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(PATIENCE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loader.load(given)
        except InputError as error:
            assert str(error).strip() and len(str(error)) < 20_000
            refused += 1
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    logging.set_verbosity_error()
    started = time.monotonic()
    check()
    if thorough:
        with capsys.disabled():
            seconds = time.monotonic() - started
            print(
                f"\n{name}: {inputs:,} inputs in {seconds:.0f} s, {refused:,} refused", flush=True
            )
