"""The benchmark of the method's own speed and memory, and the bounds on memory and arithmetic.

Counted bytes and products are the same in every run, so they are asserted; times are not.
"""

import dataclasses
import importlib
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grace.distillation import _common, rcka_loss
from grace.quantization import FakeQuantLinear, QuantSpec, initial_scales
from replication import bench
from replication.measure import harness, memory
from replication.measure.memory import peak_allocated
from replication.measure.method import (
    benchmark,
    compare,
    fake_quantization,
    gated_distillation,
    projection,
    relational,
    straightforward,
    tables,
)

CPU = torch.device("cpu")
MIB = 2**20
few = settings(deadline=None, max_examples=8)
seeds = st.integers(0, 2**31 - 1)


def normal(seed, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


# ------------------------------------------------------------------------------ what is compared


@few
@given(seeds, st.sampled_from([2, 4, 8]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_straight_through_is_the_fake_quantized_linear(seed, bits, dtype):
    linear = nn.Linear(64, 6).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(linear.parameters()):
            parameter.copy_(normal(seed + number, *parameter.shape))
    layer = FakeQuantLinear.from_linear(linear, QuantSpec(bits=bits, group_size=32))
    x, upstream = normal(seed + 2, 5, 64, dtype=dtype), normal(seed + 3, 5, 6, dtype=dtype)
    results = []
    for way in (layer, straightforward.StraightThroughLinear(layer)):
        leaf = x.clone().requires_grad_()
        out = way(leaf)
        gradients = torch.autograd.grad(
            out, [leaf, layer.weight, layer.log_scale, layer.bias], upstream
        )
        results.append([out.detach(), *gradients])
    tolerance = {"rtol": 2.0**-6, "atol": 2.0**-4} if dtype == torch.bfloat16 else {}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@few
@given(seeds, st.sampled_from([2, 4]), st.sampled_from([32, "row"]))
def test_both_searches_find_scales_of_one_error(seed, bits, group_size):
    weight, spec = normal(seed, 6, 64), QuantSpec(bits=bits, group_size=group_size)

    def error(scales):
        step = scales.double().repeat_interleave(64 // scales.shape[1], 1)
        codes = (weight.double() / step).round().clamp(spec.qmin, spec.qmax)
        square = (weight.double() - codes * step).square()
        return square.unflatten(1, (scales.shape[1], -1)).sum(-1)

    torch.testing.assert_close(
        error(initial_scales(weight, spec)),
        error(straightforward.scale_search(weight, spec)),
        rtol=1e-4,
        atol=0.0,
    )


@few
@given(seeds)
def test_both_losses_and_gradients_agree(seed):
    case = gated_distillation.Case(5, 40)
    student, teacher, targets = gated_distillation.logits(case, seed, CPU)
    student, teacher = student.double(), teacher.double()
    ways = (gated_distillation.ours, straightforward.gated_distillation)
    one, other = (gated_distillation.gradient(way, student, teacher, targets) for way in ways)
    torch.testing.assert_close(one, other)
    one, other = (way(student, teacher, targets) for way in ways)
    torch.testing.assert_close(one, other)


@few
@given(seeds, st.sampled_from([(4, 30, 40), (200, 8, 10)]))
def test_both_relations_and_gradients_agree(seed, sizes):
    student, teacher = relational.hidden_states(relational.Case(*sizes), seed, CPU)
    student, teacher = student.double(), teacher.double()
    ways = (relational.ours, straightforward.relational)
    one, other = (relational.step(way, student, teacher) for way in ways)
    torch.testing.assert_close(one, other)
    one, other = (way(student, teacher) for way in ways)
    torch.testing.assert_close(one, other)


@few
@given(seeds)
def test_both_projections_and_gradients_agree(seed):
    hidden, head, teacher = normal(seed, 7, 6), normal(seed + 1, 20, 6), normal(seed + 2, 7, 20)
    head.requires_grad_()
    labels = torch.tensor([-100, -100, 3, -100, 19, 0, 5])
    rows = torch.tensor([1, 3, 4, 5])
    chosen = (teacher[rows], labels[rows + 1], rows)
    one = projection.step(projection.selected, hidden, head, *chosen)
    other = projection.step(projection.whole, hidden, head, teacher, labels)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        projection.selected(hidden, head, *chosen), projection.whole(hidden, head, teacher, labels)
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_the_ways_of_a_step_share_their_parameters(autocast):
    plain = fake_quantization.decoder(
        fake_quantization.Case("qwen2-vl-2b", 1, 4, autocast, narrow=2), 0, CPU
    )
    quantized = fake_quantization.fake_quantized(plain)
    through = fake_quantization.straight_through(quantized)
    linears = [name for name, one in plain.named_modules() if type(one) is nn.Linear]
    assert len(linears) == 7
    for name in linears:
        weight = plain.get_submodule(name).weight
        layer = quantized.get_submodule(name)
        assert type(layer) is FakeQuantLinear and layer.weight is weight
        assert through.get_submodule(name).weight is weight
        assert through.get_submodule(name).log_scale is layer.log_scale
        assert weight.dtype == (torch.float32 if autocast else torch.bfloat16)


# ---------------------------------------------------------------------------------- how measured


@pytest.mark.parametrize(
    ("call", "most"),
    [
        (lambda x: x.new_empty(1000), 4000),
        (lambda x: ((x + 1) + 1) + 1, 8000),
        (lambda x: x.add_(1), 0),
        (lambda x: [x + 1, x + 2, x + 3], 12000),
        # what is read and what is written in the operation's dtype, made inside the kernel
        (lambda x: x[None, :500].bfloat16().mul_(torch.ones(1, 1)), 1000 + 4 + 2 * 2000),
    ],
)
def test_peak_counts_what_is_alive_at_once(call, most):
    x = torch.zeros(1000)
    # new scalars take a few bytes each
    assert most <= peak_allocated(lambda: call(x), CPU) <= most + 64


def test_peak_counts_the_backward_pass():
    x = torch.zeros(1000, requires_grad=True)

    def step():
        (x.exp() * x).sum().backward()

    # exp and the product, then both gradients while exp and x are still saved
    assert 12000 <= peak_allocated(step, CPU) <= 16064


# ---------------------------------------------------------------------------------------- bounds


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_a_fake_quantized_step_peaks_little_above_the_plain_one(autocast):
    """At the published width: the block buffers do not shrink with a layer."""
    case = fake_quantization.Case("qwen2-vl-2b", 2, 512, autocast)
    plain = fake_quantization.decoder(case, 0, CPU)
    x = normal(1, case.batch, case.length, plain.config.hidden_size, dtype=plain.dtype)
    quantized = fake_quantization.fake_quantized(plain)
    held = sum(p.numel() * p.element_size() for p in quantized.parameters())
    peaks = {}
    for name, model in {
        "plain": plain,
        "grace": quantized,
        "straightforward": fake_quantization.straight_through(quantized),
    }.items():
        step = fake_quantization.step_of(model, x, x, autocast)
        peaks[name] = held + peak_allocated(step, CPU)
    assert peaks["grace"] <= fake_quantization.MEMORY * peaks["plain"]
    assert peaks["straightforward"] > 1.5 * peaks["plain"]  # so the bound says something


@pytest.mark.slow
def test_the_loss_needs_one_gradient_and_a_workspace_that_does_not_grow():
    """At 2,048 tokens the workspace is under a tenth of a logit tensor."""
    vocabulary = 151_936
    bound = gated_distillation.WORKSPACE * 2048 * vocabulary * 2
    for tokens in (40, 120):
        data = gated_distillation.logits(gated_distillation.Case(tokens, vocabulary), 0, CPU)
        size = data[0].numel() * 2
        most = peak_allocated(
            lambda data=data: gated_distillation.gradient(gated_distillation.ours, *data), CPU
        )
        assert size <= most <= size + _common.WORKSPACE_BYTES + MIB <= size + bound


def test_the_gradient_errs_at_most_twice_as_much_as_the_straightforward_one():
    data = gated_distillation.logits(gated_distillation.Case(8, 20_000), 3, CPU)
    errors = gated_distillation.errors(*data)
    assert 0 < errors["grace"] <= gated_distillation.ERROR * errors["straightforward"]
    # two roundings to bfloat16 of relative size 2^-9 at most
    assert errors["grace"] <= 2.0**-8


@pytest.mark.parametrize("sizes", [(16, 96, 128), (64, 96, 128), (256, 96, 128), (512, 64, 64)])
def test_relation_multiplies_as_the_cheaper_form_does(sizes):
    n, student, teacher = sizes
    ours, theirs = relational.hidden_states(relational.Case(*sizes), 0, CPU)
    gram = n * n * (student + teacher)
    features = n * (student**2 + student * teacher + teacher**2)
    forward = relational.products(lambda: relational.ours(ours, theirs))
    assert forward == min(gram, features)
    plain = relational.products(lambda: straightforward.relational(ours, theirs))
    assert plain == gram
    # backward at most doubles the student's part of it
    both = relational.products(lambda: relational.step(relational.ours, ours, theirs))
    assert both <= 3 * min(gram, features)


def test_relation_of_many_tokens_makes_no_gram_matrix():
    n, width = 2048, 32
    ours, theirs = relational.hidden_states(relational.Case(n, width, width), 0, CPU)
    most = peak_allocated(lambda: relational.step(relational.ours, ours, theirs), CPU)
    assert most < n * n * 4 / 2
    plain = peak_allocated(lambda: relational.step(straightforward.relational, ours, theirs), CPU)
    assert plain > n * n * 4


@few
@given(seeds, st.sampled_from([(36, 48, 64), (300, 16, 24), (576, 64, 96)]))
def test_relation_in_single_precision_is_the_gram_form(seed, sizes):
    student, teacher = relational.hidden_states(relational.Case(*sizes), seed, CPU)
    exact = straightforward.relational(student.double(), teacher.double())
    loss = rcka_loss(student[None], teacher[None], [(0, 0, sizes[0])])
    assert loss.item() == pytest.approx(exact.item(), abs=relational.ERROR)


def test_search_holds_a_block_beside_the_scales():
    weight = normal(0, 2048, 1024, dtype=torch.bfloat16)
    spec = QuantSpec()
    ours = peak_allocated(lambda: initial_scales(weight, spec), CPU)
    plain = peak_allocated(lambda: straightforward.scale_search(weight, spec), CPU)
    assert ours < weight.numel() * 4 / 2 < 2 * weight.numel() * 4 < plain


def test_projection_of_the_supervised_makes_no_logits_of_the_rest():
    row = projection._row(projection.Case(256, 32, 16, 2_000), 1, 0, CPU)
    peaks = {name: one["peak_bytes"] for name, one in row["ways"].items()}
    assert peaks["grace"] < peaks["straightforward"] / 4
    assert row["memory"]["straightforward"] == peaks["grace"] / peaks["straightforward"] < 1


# ------------------------------------------------------------------------------------ the report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A quick run of all parts: one in a process as it is, the others in this one."""
    folder = tmp_path_factory.mktemp("performance")
    whole = harness.measure_in_process

    def measure(module, arguments, **options):
        if module == relational.__name__:
            return whole(module, arguments, **options)
        return importlib.import_module(module).measure_part(**arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "measure_in_process", measure)
        assert bench.main(["method", "--quick", "--repeats", "2", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_quick_run_measures_every_part(report):
    content = json.loads((report / benchmark.RESULT).read_text())
    assert set(content["parts"]) == set(benchmark.PARTS)
    assert content["settings"]["quick"] and content["provenance"]["seeds"] == [41]
    for name, part in content["parts"].items():
        assert len(part["rows"]) == len(benchmark.cases_of(name, True))
        for row in part["rows"]:
            others = set(row["ways"]) - {"grace"}
            assert set(row["time"]) == set(row["memory"]) == others != set()
            for way in row["ways"].values():
                assert way["peak_bytes"] > 0 and len(way["seconds"]["values"]) == 2
                assert 0 < way["seconds"]["low"] <= way["seconds"]["median"]
            for other in others:
                ours, theirs = (row["ways"][one]["seconds"]["values"] for one in ("grace", other))
                quotients = [a / b for a, b in zip(ours, theirs, strict=True)]
                assert row["time"][other]["values"] == pytest.approx(quotients)


@pytest.mark.slow
def test_the_tables_say_what_the_report_says(report):
    content = json.loads((report / benchmark.RESULT).read_text())
    printed = (report / benchmark.TABLES).read_text()
    assert printed == tables.markdown(content)
    for part in content["parts"].values():
        for row, bound in itertools.product(part["rows"], part["bounds"] or [None]):
            assert row["case"] in printed
            assert bound is None or bound["what"] in printed
    assert tables.tables(content)[-1].title == "Bounds"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.5, 0.6, 0.9), "held"),
        ((0.5, 0.9, 1.1), "held by the median"),
        ((0.5, 1.1, 1.2), "not held"),
        ((1.1, 1.2, 1.3), "not held"),
    ],
)
def test_a_bound_is_judged_by_all_rounds(values, verdict):
    bound = compare.bound("x", 1.0, dict(zip(("low", "median", "high"), values, strict=True)))
    assert tables.verdict(bound) == verdict


def test_what_does_not_fit_into_memory_is_not_run(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**30)
    part = gated_distillation.measure_part(
        [dataclasses.asdict(gated_distillation.Case(32, 500))], repeats=1, seed=0
    )
    (row,) = part["rows"]
    assert "GiB are free" in row["ways"]["straightforward"]["not_run"]
    assert row["time"] == {} and row["workspace"].keys() == {"grace"}
    assert not any(one["what"].endswith("time") for one in part["bounds"])
    cells = tables._cells(row, "straightforward")
    assert any("not run" in cell for cell in cells)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "relational,ralational"], "did you mean 'relational'"),
        (["--repeats", "0"], "repeats: 0 is no whole number from 1"),
        (["--threads", "-1"], "threads: -1 is no whole number from 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    arguments, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(harness, "measure_in_process", lambda *_, **__: pytest.fail("measured"))
    assert bench.main(["method", *arguments, "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
