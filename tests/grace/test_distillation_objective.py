"""Options of the objective, warm-up and the combined loss."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace.distillation import DistillationConfig, combine, linear_warmup
from grace.errors import InputError

NUMBERS = st.floats(-100, 100)


@settings(deadline=None, max_examples=25)
@given(NUMBERS, NUMBERS, NUMBERS, st.floats(0, 5), st.floats(0, 5))
def test_combined_loss_and_its_gradient(ce, gdkd, rcka, beta, omega):
    terms = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (ce, gdkd, rcka)]
    weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (beta, omega)]
    loss = combine(*terms, *weights)
    assert loss.item() == pytest.approx(ce + beta * gdkd + omega * rcka)
    assert combine(*terms, beta, omega) == loss
    loss.backward()
    assert [term.grad.item() for term in terms] == [1.0, beta, omega]
    assert all(weight.grad is None for weight in weights)


def test_a_float64_multiplier_does_not_widen_the_loss():
    one, wide = torch.ones(()), torch.ones((), dtype=torch.float64)
    assert combine(one, one, one, wide, 1.0).dtype == torch.float32
    assert combine(one, one, one, 1.0, wide).dtype == torch.float32
    # Each weight takes the dtype of its own term.
    third = pytest.approx(2 + 1 / 3, rel=1e-15)
    assert combine(one, one.double(), one, wide / 3, wide).item() == third
    assert combine(one, one, one.double(), wide, wide / 3).item() == third


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 500))
def test_warmup(step, warmup_steps):
    factor = linear_warmup(step, warmup_steps)
    assert factor == (1.0 if warmup_steps == 0 else min(1.0, step / warmup_steps))
    assert linear_warmup(step + 1, warmup_steps) >= factor
    assert linear_warmup(warmup_steps, warmup_steps) == 1.0


@pytest.mark.parametrize("steps", [(-1, 5), (1, -5)])
def test_negative_counts_are_programming_errors(steps):
    with pytest.raises(AssertionError):
        linear_warmup(*steps)


def test_defaults_are_valid_and_round_trip():
    config = DistillationConfig()
    assert DistillationConfig.from_dict(dataclasses.asdict(config)) == config
    assert DistillationConfig.from_dict({}) == config
    assert (config.temperature, config.alpha, config.beta_dkd, config.kappa) == (2.0, 1.0, 4.0, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 2.0


def test_the_controller_gets_every_option_of_its_own():
    chosen = {"tau": 0.25, "eta": 0.5, "beta_min": 0.75, "beta_max": 3.0, "ema_decay": 0.125}
    controller = DistillationConfig(beta_init=2.0, **chosen).controller()
    assert {name: getattr(controller, name) for name in chosen} == chosen
    assert (controller.beta, controller.ema, controller.observations) == (2.0, 0.0, 0)


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [
        ("temperature", 0.0, "a finite number in (0, inf]"),
        ("temperature", "2", "a finite number in (0, inf]"),
        ("alpha", -1.0, "a finite number in [0, inf]"),
        ("beta_dkd", math.nan, "a finite number in [0, inf]"),
        ("kappa", math.inf, "a finite number in [-50, 50]"),
        ("kappa", 50.5, "a finite number in [-50, 50]"),
        ("kappa", -50.5, "a finite number in [-50, 50]"),
        ("weight", -0.5, "a finite number in [0, inf]"),
        ("rcka_weight", -1, "a finite number in [0, inf]"),
        ("decoupled", "yes", "true or false"),
        ("adaptive", 1, "true or false"),
        ("tau", -1.0, "a finite number in [0, inf]"),
        ("eta", math.nan, "a finite number in [0, inf]"),
        ("beta_init", 50.0, "a finite number in [0.1, 5]"),
        ("beta_min", -1.0, "a finite number in [0, inf]"),
        ("beta_max", 0.0, "a finite number in [0.1, inf]"),
        ("ema_decay", 1.0, "a finite number in [0, 1)"),
        ("distill_warmup_steps", -1, "an integer of at least 0"),
        ("rcka_warmup_steps", 2.5, "an integer of at least 0"),
    ],
)
def test_illegal_values_are_named(field, value, legal):
    with pytest.raises(InputError) as caught:
        DistillationConfig.from_dict({field: value})
    assert str(caught.value) == f"{field} is {value!r}; give {legal}"


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 1e-3), ("kappa", -50), ("kappa", 50.0), ("beta_init", 5), ("beta_init", 0.1)]
    + [(field, 0) for field in ("alpha", "beta_dkd", "weight", "rcka_weight", "tau", "eta")],
)
def test_ends_of_the_legal_ranges_are_legal(field, value):
    assert getattr(DistillationConfig.from_dict({field: value}), field) == value


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("temprature", "temperature"),
        ("beta_dk", "beta_dkd"),
        ("warmup_rcka", "rcka_warmup_steps"),
        ("zzz", None),  # near to none of them, and yet an answer
        (7, None),
    ],
)
def test_unknown_options_suggest_the_nearest(unknown, meant):
    with pytest.raises(InputError) as caught:
        DistillationConfig.from_dict({unknown: 1.5})
    start = f"unknown distillation option {unknown!r} (value 1.5); did you mean "
    assert str(caught.value).startswith(start)
    names = [repr(field.name) for field in dataclasses.fields(DistillationConfig)]
    assert str(caught.value).removeprefix(start).removesuffix("?") in (
        [repr(meant)] if meant else names
    )
