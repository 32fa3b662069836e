"""The adaptive multiplier against a recurrence written in plain Python."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from grace.distillation import IBController
from grace.errors import InputError

SETTINGS = settings(deadline=None, max_examples=50)
LOSSES = st.lists(st.floats() | st.floats(0, 10), max_size=20)  # nan, inf and negatives included


@st.composite
def settings_of_controllers(draw):
    low, first, high = sorted(draw(st.lists(st.floats(0, 10), min_size=3, max_size=3)))
    return {
        "tau": draw(st.floats(0, 5)),
        "eta": draw(st.floats(0, 2)),
        "beta_init": first,
        "beta_min": low,
        "beta_max": high,
        "ema_decay": draw(st.sampled_from([0.0, 0.5, 0.99])),
    }


VALID = {"tau": 0.5, "eta": 0.1, "beta_init": 1.0, "beta_min": 0.1, "beta_max": 5.0}


@SETTINGS
@given(settings_of_controllers(), LOSSES)
def test_multiplier_stays_in_bounds_whatever_the_losses(chosen, losses):
    controller = IBController(**chosen)
    for loss in losses:
        beta = controller.update(loss)
        assert 0 <= chosen["beta_min"] <= beta <= chosen["beta_max"]
        assert controller.ema.isfinite()
    assert controller.skipped == sum(not math.isfinite(loss) for loss in losses)
    assert controller.skipped + controller.observations == len(losses)


@SETTINGS
@given(settings_of_controllers(), st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=30))
def test_follows_the_recurrence(chosen, losses):
    controller, ema, beta = IBController(**chosen), None, chosen["beta_init"]
    for loss in losses:
        if not math.isnan(loss):
            decay = chosen["ema_decay"]
            ema = loss if ema is None else decay * ema + (1 - decay) * loss
            beta = beta + chosen["eta"] * (ema - chosen["tau"])
            beta = min(max(beta, chosen["beta_min"]), chosen["beta_max"])
        assert controller.update(torch.tensor(loss, dtype=torch.float64)).item() == beta
        assert controller.ema.item() == (0.0 if ema is None else ema)


@SETTINGS
@given(st.floats(0, 5), st.lists(st.floats(0, 10), min_size=1, max_size=10))
def test_rises_above_the_constraint_and_falls_below_it(tau, losses):
    controller = IBController(tau, 0.01, 2.5, 0.0, 5.0, ema_decay=0.9)
    for loss in losses:
        before = controller.beta
        after = controller.update(loss)
        change = (after - before).item()
        excess = controller.ema.item() - tau
        assert change >= 0 if excess >= 0 else change <= 0
        if abs(excess) > 1e-6 and 0 < after < 5:
            assert change != 0


@SETTINGS
@given(
    settings_of_controllers(),
    st.lists(st.floats(0, 10), max_size=5),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_non_finite_loss_only_counts(chosen, losses, bad):
    controller = IBController(**chosen)
    for loss in losses:
        controller.update(loss)
    before = controller.state_dict()
    controller.update(bad)
    controller.update(torch.tensor(bad))
    assert controller.state_dict() == {**before, "skipped": 2}


@SETTINGS
@given(settings_of_controllers(), LOSSES, st.lists(st.floats(0, 10), max_size=5))
def test_state_survives_json_exactly(chosen, before, after):
    controller, restored = IBController(**chosen), IBController(**chosen)
    for loss in before:
        controller.update(loss)
    text = json.dumps(controller.state_dict(), allow_nan=False)
    restored.load_state_dict(json.loads(text))
    assert restored.state_dict() == controller.state_dict()
    for loss in after:
        assert restored.update(loss) == controller.update(loss)
    assert restored.state_dict() == controller.state_dict()


def test_readings_are_copies_without_gradient():
    controller = IBController(**VALID)
    loss = torch.tensor(3.0, requires_grad=True)
    beta = controller.update(loss * 2)
    assert not beta.requires_grad and beta.dtype == torch.float64
    beta += 1
    assert controller.beta != beta
    assert controller.to("cpu") is controller


def test_update_does_not_wait_for_the_device():
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func) and "is_nonzero" not in str(func)
            return func(*args, **(kwargs or {}))

    controller, loss = IBController(**VALID), torch.tensor([2.0])
    with NoWaiting():
        controller.update(loss)
    assert controller.beta == 1.0 + 0.1 * 1.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tau", -0.1),
        ("tau", math.nan),
        ("eta", -1.0),
        ("eta", math.inf),
        ("eta", "0.1"),
        ("beta_min", -0.5),
        ("beta_max", 0.05),
        ("beta_max", math.inf),
        ("beta_init", 6.0),
        ("beta_init", 0.0),
        ("beta_init", True),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
    ],
)
def test_illegal_values_are_named(field, value):
    with pytest.raises(InputError) as caught:
        IBController(**{**VALID, field: value})
    assert field in str(caught.value) and repr(value) in str(caught.value)
    assert "give a finite number" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"beta": 9.0}, "beta is 9.0"),
        ({"ema": math.nan}, "ema is nan"),
        ({"skipped": -1}, "skipped is -1"),
        ({"extra": 1}, "extra"),
    ],
)
def test_illegal_states_are_refused_and_change_nothing(change, word):
    controller = IBController(**VALID)
    before = controller.state_dict()
    with pytest.raises(InputError, match=word):
        controller.load_state_dict({**before, "observations": 3, **change})
    assert controller.state_dict() == before


def test_a_loss_of_many_elements_is_refused():
    with pytest.raises(InputError, match=r"\(2,\)"):
        IBController(**VALID).update(torch.zeros(2))
