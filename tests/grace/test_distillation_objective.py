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
    one = torch.ones(())
    assert combine(one, one, one, torch.ones((), dtype=torch.float64), 1.0).dtype == torch.float32


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 500))
def test_warmup(step, warmup_steps):
    factor = linear_warmup(step, warmup_steps)
    assert factor == (1.0 if warmup_steps == 0 else min(1.0, step / warmup_steps))
    assert linear_warmup(step + 1, warmup_steps) >= factor
    assert linear_warmup(warmup_steps, warmup_steps) == 1.0


@pytest.mark.parametrize("steps", [(-1, 5), (1, -5), (1.5, 5)])
def test_warmup_refuses_illegal_counts(steps):
    with pytest.raises(InputError):
        linear_warmup(*steps)


def test_defaults_are_valid_and_round_trip():
    config = DistillationConfig()
    assert DistillationConfig.from_dict(dataclasses.asdict(config)) == config
    assert DistillationConfig.from_dict({}) == config
    assert (config.temperature, config.alpha, config.beta_dkd, config.kappa) == (2.0, 1.0, 4.0, 1.0)
    controller = config.controller()
    assert (controller.beta, controller.tau) == (config.beta_init, config.tau)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", "2"),
        ("alpha", -1.0),
        ("beta_dkd", math.nan),
        ("kappa", math.inf),
        ("weight", -0.5),
        ("rcka_weight", -1),
        ("decoupled", "yes"),
        ("adaptive", 1),
        ("tau", -1.0),
        ("eta", math.nan),
        ("beta_init", 50.0),
        ("beta_min", -1.0),
        ("beta_max", 0.0),
        ("ema_decay", 1.0),
        ("distill_warmup_steps", -1),
        ("rcka_warmup_steps", 2.5),
    ],
)
def test_illegal_values_are_named(field, value):
    with pytest.raises(InputError) as caught:
        DistillationConfig.from_dict({field: value})
    assert f"{field} is {value!r}" in str(caught.value) and "give" in str(caught.value)


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [("temprature", "temperature"), ("beta_dk", "beta_dkd"), ("warmup_rcka", "rcka_warmup_steps")],
)
def test_unknown_options_suggest_the_nearest(unknown, meant):
    with pytest.raises(InputError) as caught:
        DistillationConfig.from_dict({unknown: 1.0})
    assert repr(unknown) in str(caught.value) and repr(meant) in str(caught.value)
