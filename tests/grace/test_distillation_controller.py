"""The adaptive multiplier against a recurrence in plain Python and against its closed form."""

import json
import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waits import HostWaits

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
@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 0.99]),
    st.floats(0, 5),
    st.floats(0, 1),
)
def test_within_its_bounds_it_is_a_sum_of_a_filtered_loss(losses, decay, tau, eta):
    """EMA_n = d^(n-1) l_1 + (1-d) sum_k d^(n-k) l_k, beta_n = beta_0 + eta sum_k (EMA_k - tau):
    a first-order filter that starts at rest at the first loss, and a cumulative sum."""
    filtered, _ = scipy.signal.lfilter([1 - decay], [1, -decay], losses, zi=[decay * losses[0]])
    expected = 1000 + eta * np.cumsum(filtered - tau)
    controller = IBController(tau, eta, 1000.0, 0.0, 2000.0, decay)
    betas = [controller.update(loss).item() for loss in losses]
    np.testing.assert_allclose(betas, expected, rtol=1e-13)
    assert controller.ema.item() == pytest.approx(filtered[-1], rel=1e-12)


def test_published_decay_and_the_bounds_are_reached_as_the_closed_form_says():
    """A loss steadily off the constraint moves beta by eta times the excess a step, to a bound."""
    for loss, bound in ((0.75, 5.0), (0.25, 0.125)):
        controller = IBController(0.5, 0.5, 1.0, 0.125, 5.0)
        for step in range(1, 40):
            moved = 1.0 + step * 0.5 * (loss - 0.5)
            assert controller.update(loss) == min(max(moved, 0.125), 5.0)
        assert controller.beta == bound
    controller.update(100.0)
    assert controller.ema.item() == 0.99 * 0.25 + (1 - 0.99) * 100.0


def test_an_excess_beyond_the_largest_number_moves_by_the_step_size():
    """-1.7e308 - 1.7e308 is no float64; without a step size it must move nothing."""
    still = IBController(1.7e308, 0.0, 1.0, 0.1, 5.0)
    assert still.update(-1.7e308) == 1.0
    assert IBController(1.7e308, 0.1, 1.0, 0.1, 5.0).update(-1.7e308) == 0.1


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


def test_the_state_is_as_wide_as_documented():
    controller = IBController(**{**VALID, "tau": 1, "ema_decay": 0})
    assert all(isinstance(x, float) for x in (controller.tau, controller.eta, controller.ema_decay))
    for reading in ("beta", "ema", "observations", "skipped"):
        value = getattr(controller, reading)
        assert value.shape == ()
        assert value.dtype == (torch.float64 if reading in {"beta", "ema"} else torch.int64)
    assert controller.state_dict() == {"beta": 1.0, "ema": 0.0, "observations": 0, "skipped": 0}
    state = {"beta": 0.3, "ema": 0.1, "observations": 7, "skipped": 2}
    controller.load_state_dict(state)
    assert controller.state_dict() == state
    assert [type(value) for value in controller.state_dict().values()] == [float, float, int, int]
    # 0.1 as a half-precision loss reads it, not rounded again
    assert controller.update(torch.tensor([[0.1]], dtype=torch.bfloat16)) == torch.tensor(
        0.3, dtype=torch.float64
    ) + 0.1 * (torch.tensor(0.1, dtype=torch.bfloat16).double() - 1)


def test_the_state_follows_the_device_of_the_loss():
    """On the device `meta`, where no value exists that a host could read."""

    def places(controller):
        names = ("beta", "ema", "observations", "skipped")
        return {getattr(controller, name).device.type for name in names}

    controller = IBController(**VALID)
    assert places(controller) == {"cpu"}
    assert controller.update(torch.ones(1, device="meta")).device.type == "meta"
    assert places(controller) == {"meta"}
    controller.update(0.5)  # a plain number goes where the state is
    assert places(controller) == {"meta"}
    controller.load_state_dict({"beta": 1.0, "ema": 0.0, "observations": 0, "skipped": 0})
    assert places(controller) == {"meta"}
    moved = IBController(**VALID)
    assert places(moved.to(torch.device("meta"))) == {"meta"}


def test_update_does_not_wait_for_the_device():
    controller, loss = IBController(**VALID), torch.tensor([2.0])
    with HostWaits() as waits:
        controller.update(loss)
    assert not waits.found
    assert controller.beta == 1.0 + 0.1 * 1.5


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [
        ("tau", -0.1, "[0, inf]"),
        ("tau", math.nan, "[0, inf]"),
        ("eta", -1.0, "[0, inf]"),
        ("eta", math.inf, "[0, inf]"),
        ("eta", "0.1", "[0, inf]"),
        ("beta_min", -0.5, "[0, inf]"),
        ("beta_max", 0.05, "[0.1, inf]"),
        ("beta_max", math.inf, "[0.1, inf]"),
        ("beta_init", 6.0, "[0.1, 5]"),
        ("beta_init", 0.0, "[0.1, 5]"),
        ("beta_init", True, "[0.1, 5]"),
        ("ema_decay", 1.0, "[0, 1)"),
        ("ema_decay", -0.1, "[0, 1)"),
    ],
)
def test_illegal_values_are_named(field, value, legal):
    with pytest.raises(InputError) as caught:
        IBController(**{**VALID, field: value})
    assert str(caught.value) == f"{field} is {value!r}; give a finite number in {legal}"


@pytest.mark.parametrize("value", [0.1, 5.0])
def test_bounds_are_legal_starts(value):
    assert IBController(**{**VALID, "beta_init": value}).beta == value
    controller = IBController(**VALID)
    controller.load_state_dict({**controller.state_dict(), "beta": value})
    assert controller.beta == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 9.0}, r"beta is 9.0; give a finite number in \[0.1, 5\]"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"ema": math.nan}, "ema is nan"),
        ({"observations": -1}, "observations is -1; give an integer of at least 0"),
        ({"skipped": 1.5}, "skipped is 1.5"),
        ({"skipped": True}, "skipped is True"),
        ({"extra": 1}, r"entries \['beta', 'ema', 'extra', 'observations', 'skipped'\]; give"),
    ],
)
def test_illegal_states_are_refused_and_change_nothing(change, message):
    controller = IBController(**VALID)
    before = controller.state_dict()
    with pytest.raises(InputError, match=message):
        controller.load_state_dict({**before, "observations": 3, **change})
    assert controller.state_dict() == before


def test_a_state_that_lacks_an_entry_is_refused():
    with pytest.raises(InputError, match=r"entries \['beta'\]; give"):
        IBController(**VALID).load_state_dict({"beta": 1.0})


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 2)])
def test_a_loss_of_another_number_of_elements_is_a_programming_error(shape):
    with pytest.raises(AssertionError):
        IBController(**VALID).update(torch.zeros(shape))
