"""Figures of what is inside models: they show what was measured, and say what follows from it."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from replication.measure.inside import record
from replication.measure.inside.distributions import gate_histogram, histogram
from replication.report.figures import attention, distributions, observed, similarity
from replication.report.figures.figure import NotRun, write
from replication.report.figures.reading import Inputs
from replication.results.measurements import write_measurement
from replication.stats.verdict import Interval

FIGURES = (attention, similarity, distributions)
FAMILY = "qwen2_vl"
RUNS = ("baseline", "kd_int4", "grace_int4")
LAYERS = {"teacher": 4, "baseline": 2, "grace_int4": 2}


def measured(folder, *, layers=LAYERS, gain=(0.05, 0.02, 0.08), count=2, options=None):
    """A measurement as the stage writes it, of made-up numbers."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(buffer, "PNG")
    options = options or {"A": "red", "B": "blue"}
    models = {
        name: {
            "answer": "A" if name == "teacher" else "B",
            "attention": rng.dirichlet(np.ones(9), number)[:, :6].tolist(),
            "cosine": rng.uniform(-0.3, 1, 6).tolist(),
        }
        for name, number in layers.items()
    }
    scene = {
        "question_id": "7",
        "question": "What color is the circle?",
        "options": options,
        "target": "A",
        "image": base64.b64encode(buffer.getvalue()).decode(),
        "grid": [2, 3],
        "anchor": 4,
        "models": models,
    }
    values = {
        f"visual_share.{name}.{layer + 1}": Interval(0.1 * (layer + 1), 0.05, 0.9)
        for name, number in layers.items()
        for layer in range(number)
    }
    for key in ("cka", "overlap"):
        for place, name in enumerate(RUNS):
            values[f"{key}.{name}"] = Interval(0.6 + 0.1 * place, 0.55, 0.9)
            if name != "baseline":
                values[f"{key}_gain.{name}"] = Interval(*gain)
    weights = rng.normal(0, 0.1, 500)
    scales = rng.uniform(0.02, 0.05, 90)
    ratio = np.linspace(0.8, 1.2, 90)
    content = {
        "name": f"internals-{FAMILY}",
        "scale": "small",
        "method": "made up",
        "n": {"questions": 40, "conversations": 30, "tokens": 200, "seeds": 3},
        "values": record.rounded(values),
        "data": record.rounded(
            {
                "benchmark": "mmbench",
                "bits": 4,
                "kappa": 1.0,
                "seeds": {"teacher": 1, "baseline": 1, "kd_int4": 3, "grace_int4": 3},
                "scenes": [scene] * count,
                "distributions": {
                    "gates": gate_histogram(rng.uniform(0.5, 1, 200), 1.0, 9),
                    "weights": histogram(np.linspace(-1, 1, 10), before=weights, after=weights / 2),
                    "scales": histogram(np.linspace(0, 0.1, 10), before=scales, after=scales * 0.9),
                    "scale_ratio": histogram(np.linspace(0.5, 1.5, 10), ratio=ratio),
                },
            }
        ),
        "provenance": {"commit": "x"},
    }
    write_measurement(folder, content)
    return content


def test_the_models_shown_are_those_measured():
    assert observed.SHOWN == record.SHOWN
    assert set(similarity.ORDER) == {"baseline", record.STUDENT, *record.OTHERS}


@pytest.mark.parametrize("module", FIGURES)
def test_without_a_measurement_there_is_no_figure(module, tmp_path):
    with pytest.raises(NotRun, match="run the stage internals"):
        module.draw(Inputs(tmp_path, "small", FAMILY))


@pytest.mark.slow
@pytest.mark.parametrize("module", FIGURES)
def test_a_figure_is_written_alike_every_time(module, tmp_path):
    measured(tmp_path)
    for folder in ("first", "second"):
        write(module.draw(Inputs(tmp_path, "small", FAMILY)), tmp_path / folder)
    written = sorted((tmp_path / "first").iterdir())
    name = module.__name__.rpartition(".")[2]
    assert [path.name for path in written] == [f"{name}.{kind}" for kind in ("json", "png", "svg")]
    for path in written:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    sources = json.loads(written[0].read_text())["sources"]
    assert sources == [f"results/small/measurements/internals-{FAMILY}.json"]


@pytest.mark.slow
@pytest.mark.parametrize("module", FIGURES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"count": 1},
        {"layers": {"teacher": 3, "baseline": 2, "grace_int4": 2}},
        {"layers": {"teacher": 40, "baseline": 32, "grace_int4": 32}},
    ],
)
def test_no_word_leaves_the_page(module, changes, tmp_path):
    measured(tmp_path, **changes)
    canvas = module.draw(Inputs(tmp_path, "small", FAMILY)).canvas
    renderer = canvas.canvas.get_renderer()
    canvas.draw(renderer)
    axes = canvas.get_axes()
    texts = [*canvas.texts, *(label for one in axes for label in one.get_xticklabels())]
    assert all(text.get_fontsize() >= 8 for text in texts)
    boxes = [text.get_window_extent() for text in canvas.texts]
    boxes += [one.get_tightbbox(renderer) for one in axes]  # with what stands around them
    for box in boxes:
        assert min(box.x0, box.y0) >= -1, box
        assert box.x1 <= canvas.bbox.width + 1 and box.y1 <= canvas.bbox.height + 1, box


def test_attention_is_what_was_measured(tmp_path):
    content = measured(tmp_path)
    figure = attention.draw(Inputs(tmp_path, "small", FAMILY))
    [scene, _] = figure.data["scenes"]
    for name, given in content["data"]["scenes"][0]["models"].items():
        assert np.array(scene["maps"][name]).reshape(-1, 6).tolist() == given["attention"]
    assert scene["target"] == "red"
    assert scene["answers"] == {"teacher": "red", "baseline": "blue", "grace_int4": "blue"}
    assert [one["point"] for one in figure.data["visual_share"]["teacher"]] == [0.1, 0.2, 0.3, 0.4]
    words = [text.get_text() for text in figure.canvas.texts]
    assert "What color is the circle? (red)" in words
    assert words.count("blue ✗") == 4
    assert words.count("red ✓") == 2
    # one bar a map, as high as the share that it shows
    bars = next(axes for axes in figure.canvas.axes if axes.patches)
    assert [round(bar.get_height()) for bar in bars.patches] == [10, 20, 30, 40, 10, 20, 10, 20]
    assert "every decoder layer" in figure.caption


@pytest.mark.slow
def test_of_many_layers_some_are_shown_and_it_is_said(tmp_path):
    measured(tmp_path, layers={"teacher": 40, "baseline": 32, "grace_int4": 32})
    figure = attention.draw(Inputs(tmp_path, "small", FAMILY))
    assert figure.data["layers"]["teacher"] == [1, 14, 27, 40]
    assert figure.data["layers"]["baseline"][-1] == 32
    assert "some of the decoder layers" in figure.caption


@pytest.mark.slow
@pytest.mark.parametrize("module", [attention, similarity])
@pytest.mark.parametrize(
    ("gain", "word"),
    [
        ((0.05, 0.02, 0.08), "is higher"),
        ((-0.05, -0.08, -0.02), "is lower"),
        ((0.01, -0.02, 0.04), "does not differ"),
    ],
)
def test_the_caption_claims_what_the_interval_allows(module, gain, word, tmp_path):
    measured(tmp_path, gain=gain)
    caption = module.draw(Inputs(tmp_path, "small", FAMILY)).caption
    span = "{:.3f} [{:.3f}, {:.3f}]".format(*gain)
    assert f"{word} than the baseline's" in caption or f"{word} from the baseline's" in caption
    assert span in caption


@pytest.mark.slow
def test_similarity_is_what_was_measured(tmp_path):
    content = measured(tmp_path)
    figure = similarity.draw(Inputs(tmp_path, "small", FAMILY))
    given = content["data"]["scenes"][0]["models"]
    found = figure.data["scenes"][0]["cosine"]
    assert {name: np.ravel(one).tolist() for name, one in found.items()} == {
        name: one["cosine"] for name, one in given.items()
    }
    assert [one["point"] for one in figure.data["cka"].values()] == [0.6, 0.7, 0.8]
    assert list(figure.data["cka"]) == list(RUNS)


def test_distributions_are_what_was_measured(tmp_path):
    content = measured(tmp_path)["data"]["distributions"]
    figure = distributions.draw(Inputs(tmp_path, "small", FAMILY))
    assert {name: figure.data[name] for name in content} == content
    shown = figure.canvas.axes[1].patches  # weights: before, then after
    for patch, name in zip(shown, ("before", "after"), strict=True):
        values, edges, _ = patch.get_data()
        assert values.sum() == pytest.approx(100)
        assert (values * 5).round().tolist() == content["weights"][name]["counts"]
        assert edges.tolist() == content["weights"]["edges"]
