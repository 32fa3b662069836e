"""Whatever a loader is given, it returns a correct result or raises InputError.

A few inputs here; `make fuzz` gives each loader thousands.
"""

import signal
import time
import warnings

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from loaders import LOADERS, PENDING, Valid, expected
from transformers.utils import logging

from grace.errors import InputError

PATIENCE = 60  # seconds, after which a loader hangs


@pytest.fixture
def valid(family, conversations, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path / "cache"))
    return Valid(family, conversations, tmp_path)


def hangs(*_):
    raise AssertionError(f"hangs: more than {PATIENCE} seconds")


@pytest.mark.slow
@pytest.mark.parametrize("name", expected(*LOADERS))
def test_a_result_or_an_input_error(name, valid, capsys):
    loader = LOADERS[name](valid)
    thorough = settings.get_current_profile_name() == "fuzz"
    refused = inputs = 0

    @settings(
        max_examples=loader.many if thorough else loader.few,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if name in PENDING else settings().phases,
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
    started = time.process_time()
    check()
    if thorough:
        with capsys.disabled():
            seconds = time.process_time() - started
            told = f"{inputs:,} inputs in {seconds:.0f} s of a processor, {refused:,} refused"
            print(f"\n{name}: {told}", flush=True)
