"""Figures: numbers are those of the result files, words are complete, text is legible."""

import importlib
import itertools
import json
import math
import re
import shutil
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colors
from matplotlib.text import Annotation, Text
from PIL import Image
from repository import ROOT

from grace.errors import InputError
from replication.report import figures
from replication.report.figures import Inputs, NotRun, pareto, regimes, style
from replication.report.figures import figure as figure_files
from replication.report.figures.reading import Accuracy

SMALL = ROOT / "results" / "small"
NAMES = sorted(  # a figure of runs that the committed results lack cannot be drawn from them
    name
    for name in figures.FIGURES
    if "not_run" not in json.loads((SMALL / "figures" / f"{name}.json").read_text())
)
WORDS = ("title", "caption", "alt", "n", "units", "command")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The committed results that figures are drawn from, where they may be changed."""
    root = tmp_path_factory.mktemp("figures") / "results"
    for name in ("tables", "measurements", "deploy", "training"):
        shutil.copytree(SMALL / name, root / "small" / name)
    (root / "engines").mkdir()
    shutil.copy(SMALL.parent / "engines" / "deploy.json", root / "engines")
    return root


@pytest.fixture(scope="module")
def drawn(results):
    """All figures of the committed results, drawn once."""
    return {name: draw_one(results, name) for name in NAMES}


def draw_one(results, name, family="qwen2_vl"):
    return figures.FIGURES[name](Inputs(results, "small", family))


def read(*parts):
    return json.loads(SMALL.joinpath(*parts).read_text())


def table_rows(name):
    """A table's rows from its CSV, the form that the figures do not read: {(run, column): row}."""
    frame = pd.read_csv(SMALL / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)
    return {(row["run"], row["column"]): row for row in frame.to_dict("records")}


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_accuracies_by_bits_are_the_table_s(drawn):
    data, rows = drawn["bits"].data, table_rows("bits")
    if (SMALL / "tables" / "qad.csv").is_file():
        rows = {**table_rows("qad"), **rows}
    base = float(rows["baseline", "Avg"]["measured"])
    assert data["baseline"]["accuracy"] == base
    points = [point for method in data["methods"].values() for point in method]
    runs = {run for (run, _), row in rows.items() if row["evidence"] == "measured"}
    runs -= {"teacher", "baseline"}
    assert {point["run"] for point in points} == runs
    for point in points:
        row = rows[point["run"], "Avg"]
        assert point["accuracy"] == float(row["measured"])
        assert point["low"] == pytest.approx(base + float(row["delta_low"]))
        assert point["high"] == pytest.approx(base + float(row["delta_high"]))
        assert (point["n"], point["bits"]) == (int(row["n"]), int(row["bits"]))


@pytest.mark.slow
def test_effects_are_the_table_s(drawn):
    effects = {row["labels"][0]: row["cells"] for row in read("tables", "effects.json")["rows"]}
    assert drawn["effects"].data["effects"].keys() == effects.keys()
    for effect, cells in drawn["effects"].data["effects"].items():
        for column, cell in cells.items():
            assert cell.items() <= effects[effect][column].items()


@pytest.mark.slow
def test_changed_answers_are_counted_as_the_outcomes_say(drawn):
    """From the outcomes themselves: the share of a type's questions, over seeds and pairs."""
    frames = {}
    for run in ("grace_bf16", "grace_int4", "baseline"):
        own = []
        for pair in ("qwen2_vl", "qwen2_vl_pair2"):
            folder = pair if run == "baseline" else f"{pair}_runs"
            frame = pd.read_parquet(SMALL / "outcomes" / folder / f"{run}.parquet")
            own.append(frame.assign(pair=pair))
        frame = pd.concat(own)
        frames[run] = frame[frame["benchmark"].isin(["MMBench", "SEED-Bench", "ScienceQA"])]
    for pair, types in drawn["flips"].data["pairs"].items():
        first, second = (frames[run] for run in pair.split(" → "))
        keys = ["pair", "benchmark", "question_id"]
        if first["seed"].nunique() > 1:
            keys.append("seed")
        both = second.merge(first, on=keys, suffixes=("", "_before"))
        before, after = both["credit_before"] >= 0.5, both["credit"] >= 0.5
        lost, gained = (before & ~after), (~before & after)
        assert {one["type"] for one in types} == set(both["skill"])
        for one in types:
            own = both["skill"] == one["type"]
            assert one["lost_percent"] == pytest.approx(100 * lost[own].mean())
            assert one["gained_percent"] == pytest.approx(100 * gained[own].mean())
            assert one["low"] <= one["change"] <= one["high"]


@pytest.mark.slow
def test_entropies_are_the_measurements(drawn):
    families = drawn["entropy_error"].data["families"]
    assert set(families) == {"llava", "qwen2_vl", "qwen3_vl"}
    for family, data in families.items():
        found = read("measurements", f"entropy_error-{family}.json")
        assert data["bin_entropy"] == found["data"]["bin_entropy"]
        assert data["bin_error"] == found["data"]["bin_error"]
        for name in ("pearson_r", "binned_r2"):
            assert data[name].items() <= found["values"][name].items()
        # the R² that is printed is that of the line that is drawn
        r = np.corrcoef(data["bin_entropy"], data["bin_error"])[0, 1]
        assert r**2 == pytest.approx(data["binned_r2"]["point"])


@pytest.mark.slow
def test_courses_are_those_of_the_training_logs(drawn):
    data = drawn["controller"].data
    logs = {f"{family}_runs/grace_int4": one for family, one in data["families"].items()}
    logs |= {f"controller/{run}": one for run, one in data["sweep"].items()}
    assert set(logs) >= {
        f"controller/{path.name}" for path in (SMALL / "training" / "controller").iterdir()
    }
    models = yaml.safe_load((ROOT / "params.yaml").read_text())["runs"]["controller"]["models"]
    own_tau = {
        f"controller/{run}": settings["distillation"]["tau"]
        for run, settings in models.items()
        if "tau" in settings.get("distillation", {})
    }
    for place, seeds in logs.items():
        assert len(seeds) == len(list((SMALL / "training" / place).iterdir()))
        for seed, course in seeds.items():
            log = read("training", place, f"seed{seed}.json")
            assert log["controller"]["tau"] == own_tau.get(place, data["tau"])
            for name in ("step", "beta", "ema"):
                assert course[name] == [entry[name] for entry in log["history"]]


@pytest.mark.slow
def test_speeds_are_those_of_the_deployment_files(drawn):
    assert set(drawn["deployment"].data) == {"llava-1.5-7b", "qwen2-vl-2b", "qwen3-vl-2b"}
    parts = [json.loads(path.read_text()) for path in (SMALL / "deploy").glob("*/parts/*/*.json")]
    best = max(rate for part in parts for rate in part.get("copy_bandwidth", []))
    for model, data in drawn["deployment"].data.items():
        variants = read("deploy", model, "deploy.json")["models"][model]["variants"]
        assert set(data["variants"]) == {k for k, part in variants.items() if "not_run" not in part}
        for name, one in data["variants"].items():
            assert one["peak_bytes"] == variants[name]["peak_bytes"]["batch 1"]
            assert one["weight_bytes"] == variants[name]["weight_bytes"]
            for batch, speed in one["tokens_per_second"].items():
                step = variants[name]["decode"][batch]
                values = step["tokens_per_second"]["values"]
                assert speed["median"] == pytest.approx(np.median(values))
                assert (speed["low"], speed["high"]) == (min(values), max(values))
                assert speed["floor"] * step["bytes_per_step"] / best == pytest.approx(int(batch))


@pytest.mark.slow
def test_engines_are_drawn_from_their_own_file_and_those_that_did_not_run_are_named(
    results, tmp_path
):
    report = read("deploy", "llava-1.5-7b", "deploy.json")
    report["settings"] |= {"rounds": 2, "image": False, "text_tokens": 640}
    (model,) = report["models"].values()
    ours = model["variants"]["int4"]
    model["variants"]["llama_cpp"] = {**ours, "label": "Q4_0, llama.cpp"}
    model["variants"]["openvino"] = {"label": "INT4, OpenVINO GenAI", "not_run": "it fails"}
    root = shutil.copytree(results, tmp_path / "results")
    (root / "engines" / "deploy.json").unlink()
    with pytest.raises(NotRun, match="make bench-engines"):
        draw_one(root, "engines")
    (root / "engines" / "deploy.json").write_text(json.dumps(report))
    found = draw_one(root, "engines")
    drawn = found.data["llava-1.5-7b"]["variants"]
    assert set(drawn) == {"bf16", "int8", "int4", "llama_cpp"}
    rates = [step["tokens_per_second"]["median"] for step in (
        ours["decode"]["1"], ours["decode"]["16"])]  # fmt: skip
    assert [drawn["llama_cpp"]["tokens_per_second"][b]["median"] for b in ("1", "16")] == rates
    bars = {axes.get_xlabel(): [b.get_width() for b in axes.patches] for axes in found.canvas.axes}
    ran = [model["variants"][name] for name in drawn]
    for batch in ("1", "4", "16"):
        speeds = [part["decode"][batch]["tokens_per_second"]["median"] for part in ran]
        assert bars[f"batch {batch}\ntokens/s"] == speeds
    assert bars["first token, s"] == [part["time_to_first_token"]["median"] for part in ran]
    assert "Not run on LLaVA-1.5-7B: INT4, OpenVINO GenAI." in found.caption
    assert report["device"] in found.caption
    assert_legible(found)


@pytest.mark.slow
def test_the_front_joins_speed_and_accuracy_of_equal_formats(drawn):
    tables = {
        "llava": ("table2", "table1"),
        "qwen2_vl": ("table4", "bits"),
        "qwen3_vl": ("qwen3vl",),
    }
    for family, data in drawn["pareto"].data.items():
        rows = {}
        for name in tables[family]:
            rows = {**table_rows(name), **rows}
        deployed = read("deploy", data["model"], "deploy.json")["models"][data["model"]]["variants"]
        assert {point["run"] for point in data["points"]} >= {"baseline", "grace_int4", "qat_int4"}
        for point in data["points"]:
            part = deployed[point["variant"]]
            assert point["accuracy"] == float(rows[point["run"], "Avg"]["measured"])
            assert point["tokens_per_second"] == part["decode"]["1"]["tokens_per_second"]["median"]
            assert point["peak_bytes"] == part["peak_bytes"]["batch 1"]
            bits = {"bf16": 16, "int8": 8, "int4": 4, "nf4": 4}[point["variant"]]
            assert bits == point["bits"]
            assert (point["variant"] == "nf4") == (point["run"] == "nf4_int4")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_figure_shows_moves_with_its_results(results, drawn, tmp_path, name):
    """A number changed in a source changes the picture: nothing is drawn from elsewhere."""
    root = shutil.copytree(results, tmp_path / "results")
    for source in drawn[name].sources:
        path = tmp_path / source
        path.write_text(json.dumps(raised(json.loads(path.read_text()))))
    after = draw_one(root, name)
    assert after.data != drawn[name].data
    assert picture(after, tmp_path / "after.png") != picture(drawn[name], tmp_path / "before.png")


_MOVED = {
    *("measured", "bin_error", "edges", "ema", "median"),
    *("low", "high", "delta_low", "delta_high"),
}


def raised(value, key=""):
    """A result with its decisive numbers a little larger."""
    if isinstance(value, dict):
        return {name: raised(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [raised(one, key) for one in value]
    number = isinstance(value, float)
    return value * 1.01 + 0.001 if number and key in _MOVED else value


def picture(figure, path):
    style.save(figure.canvas, path, "png", "test")
    with Image.open(path) as opened:
        return opened.convert("RGB").tobytes()


# --- words ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_figure_says_what_it_is(drawn, name):
    record = drawn[name].record()
    assert record["name"] == name
    for key in WORDS:
        assert record[key].strip(), key
        assert "None" not in record[key] and "nan" not in record[key].split(), key
    assert record["command"] == "python -m replication.scale small repro figures"
    assert record["sources"] and all((ROOT / source).is_file() for source in record["sources"])
    known = {claim["id"] for claim in read("claims.json")["claims"]}
    assert set(record["claims"]) <= known


# --- files ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_files_are_written_and_are_the_same_again(results, tmp_path, monkeypatch):
    """Once by the stage, where it runs, and once beside it, under settings of another's."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(results, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["figures"])
    importlib.import_module("replication.stages.figures").main()
    matplotlib.rcParams["lines.linewidth"] = 7  # what others set changes nothing
    matplotlib.rcParams["svg.hashsalt"] = "other"
    done = figures.draw_all(results, "small", tmp_path / "second")
    assert done == {name: name in NAMES for name in figures.FIGURES}
    folders = tmp_path / "results" / "small" / "figures", tmp_path / "second"
    first, second = ({path.name: path.read_bytes() for path in f.iterdir()} for f in folders)
    pictures = {f"{name}.{kind}" for name in NAMES for kind in ("svg", "png")}
    assert set(first) == pictures | {f"{name}.json" for name in figures.FIGURES}
    assert first == second
    assert sum(map(len, first.values())) < 4e6
    for name in NAMES:
        assert b"dc:date" not in first[f"{name}.svg"]
        with Image.open(folders[0] / f"{name}.png") as opened:
            assert opened.width <= 7 * style.DPI
            assert not {"Software", "Creation Time"} & set(opened.info)


def test_every_figure_that_is_drawn_is_a_plot_of_dvc():
    for pipeline in ("dvc.yaml", "replication/settings/values/paper.dvc.yaml"):
        listed = yaml.safe_load((ROOT / pipeline).read_text())["plots"]
        shown = [one for one in listed if isinstance(one, str)]
        drawn = [name for name in figures.FIGURES if name in NAMES]
        assert shown == [f"results/${{scale}}/figures/{name}.png" for name in drawn]


def test_without_results_a_figure_says_so_and_has_no_picture(tmp_path):
    (tmp_path / "results" / "small").mkdir(parents=True)
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "bits.png").write_bytes(b"of an earlier run")
    done = figures.draw_all(tmp_path / "results", "small", folder)
    assert done == dict.fromkeys(figures.FIGURES, False)
    assert {path.suffix for path in folder.iterdir()} == {".json"}
    for name in figures.FIGURES:
        record = json.loads((folder / f"{name}.json").read_text())
        assert record["name"] == name
        assert len(record["not_run"].split()) > 3
        assert record["title"] and record["command"]


@pytest.mark.slow
def test_partial_results_draw_what_there_is(results, tmp_path):
    """One figure's missing table takes no other figure with it, and panels are left out."""
    root = shutil.copytree(results, tmp_path / "results")
    for name in ("tables/bits.json", "measurements/entropy_error-llava.json"):
        (root / "small" / name).unlink()
    shutil.rmtree(root / "small/training/controller")
    done = figures.draw_all(root, "small", tmp_path / "figures")
    missing = {name for name, there in done.items() if not there}
    assert missing == {"bits", *figures.FIGURES} - {*NAMES} | {"bits"}
    entropy, courses = draw_one(root, "entropy_error"), draw_one(root, "controller")
    assert set(entropy.data["families"]) == {"qwen2_vl", "qwen3_vl"}
    assert courses.data["sweep"] == {}
    for one in (entropy, courses):
        assert len(one.canvas.axes) == 2
        assert_legible(one)


@pytest.mark.slow
def test_runs_that_were_not_evaluated_are_named(results, tmp_path):
    root = shutil.copytree(results, tmp_path / "results")
    for name in ("flips", "effects", "bits"):
        for table in (name, "qad") if name == "bits" else (name,):
            path = root / "small" / "tables" / f"{table}.json"
            data = json.loads(path.read_text())
            for row in data["rows"]:
                for cell in row["cells"].values():
                    cell["measured"] = None
            path.write_text(json.dumps(data))
        with pytest.raises(NotRun):
            draw_one(root, name)
    with pytest.raises(NotRun, match="not in llava"):
        draw_one(results, "flips", "llava")
    (root / "small" / "tables" / "flips.json").write_text("[]")
    with pytest.raises(InputError, match="is no table"):
        draw_one(root, "flips")


@pytest.mark.slow
def test_other_architectures_get_panels_of_their_own(results, tmp_path):
    """As many models as were deployed, each beside the accuracies of its own family."""
    root = shutil.copytree(results, tmp_path / "results")
    for model, factor in (("qwen2-vl-2b", 4.0), ("qwen3-vl-2b", 3.0)):
        report = read("deploy", "llava-1.5-7b", "deploy.json")
        content = report["models"].pop("llava-1.5-7b")
        for part in content["variants"].values():
            for step in part["decode"].values():
                for key in ("median", "low", "high"):
                    step["tokens_per_second"][key] *= factor
        content["variants"]["nf4"] = {"label": "NF4", "not_run": "not here"}
        report["models"][model] = content
        (root / "small" / "deploy" / model / "deploy.json").write_text(json.dumps(report))
    front, deployed = draw_one(root, "pareto"), draw_one(root, "deployment")
    assert list(front.data) == ["qwen2_vl", "llava", "qwen3_vl"]
    assert set(deployed.data) == {"llava-1.5-7b", "qwen2-vl-2b", "qwen3-vl-2b"}
    assert "nf4" not in deployed.data["qwen2-vl-2b"]["variants"]
    for one in (front, deployed):
        assert_legible(one)


@pytest.mark.slow
def test_a_model_built_in_part_is_marked_and_compared_with_nothing(results, tmp_path):
    root = shutil.copytree(results, tmp_path / "results")
    path = root / "small" / "deploy" / "llava-1.5-7b" / "deploy.json"
    report = json.loads(path.read_text())
    report["settings"]["layers"] = 1
    path.write_text(json.dumps(report))
    found = draw_one(root, "deployment")
    assert "1 layer only" in found.canvas.axes[0].get_title("left")
    assert_legible(draw_one(root, "pareto"))
    labels = {label for axes in found.canvas.axes for label in axes.get_legend_handles_labels()[1]}
    assert not any("reported" in label for label in labels)


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_not_written(drawn, tmp_path):
    broken = figures.Figure(**{**vars(drawn["bits"]), "data": {"value": math.nan}})
    with pytest.raises(InputError, match="finite"):
        figure_files.write(broken, tmp_path)
    assert not list(tmp_path.iterdir())


# --- looks ------------------------------------------------------------------------------------


def shown_texts(canvas):
    """Every text that is drawn: of axes, legends and notes; ticks in view only."""
    hidden = set()
    for axes in canvas.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in canvas.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def assert_legible(figure):
    """Letters of 8 points or more that lie inside the canvas and not on each other."""
    canvas = figure.canvas
    assert canvas.get_figwidth() <= 7
    canvas.draw_without_rendering()
    renderer, whole = canvas._get_renderer(), canvas.bbox
    boxes = {}
    for text in shown_texts(canvas):
        assert text.get_fontsize() >= 8, text.get_text()
        box = Text.get_window_extent(text, renderer)  # of a note without its line
        inside = whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 <= box.y1
        assert inside and box.y1 <= whole.y1, f"{figure.name}: {text.get_text()!r}"
        boxes[text] = box.padded(-0.5)
    for (first, one), (second, other) in itertools.combinations(boxes.items(), 2):
        assert not one.overlaps(other), f"{figure.name}: {first} lies on {second}"
    for legend in filter(None, [*canvas.legends, *(axes.get_legend() for axes in canvas.axes)]):
        box = legend.get_window_extent(renderer)
        for point in (point for axes in canvas.axes for point in points_of(axes)):
            assert not box.contains(*point), f"{figure.name}: a legend covers a point"


def points_of(axes):
    """The drawn points of an axes' lines, in pixels."""
    for line in axes.lines:
        if line.get_transform() == axes.transData:
            yield from axes.transData.transform(line.get_xydata())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_text_is_legible(drawn, name):
    assert_legible(drawn[name])
    text = [one for one in shown_texts(drawn[name].canvas) if not isinstance(one, Annotation)]
    assert len(text) > 5


@pytest.mark.slow
def test_no_mark_lies_outside_its_panel(drawn):
    """Axes show every point; the closer panel of bits alone leaves out those that fall away."""
    for name, figure in drawn.items():
        figure.canvas.draw_without_rendering()
        for number, axes in enumerate(figure.canvas.axes):
            if (name, number) == ("bits", 1):
                continue
            box = axes.get_window_extent().padded(1)
            for x, y in points_of(axes):
                if np.isfinite((x, y)).all():
                    assert box.contains(x, y), (name, number)


def luminance(color):
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
        for part in colors.to_rgb(color)
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_stand_out_and_markers_differ():
    """WCAG: 3 to 1 for what is drawn, 4.5 to 1 for text, on white."""
    assert set(style.COLORS) == set(style.MARKERS) == set(style.LABELS)
    for name, color in style.COLORS.items():
        assert 1.05 / (luminance(color) + 0.05) >= 3, name
    for color in (style.INK, style.GREY):
        assert 1.05 / (luminance(color) + 0.05) >= 4.5
    for values in (style.COLORS, style.MARKERS, style.LABELS):
        assert len(set(values.values())) == len(values)
    assert style.SEQUENTIAL in matplotlib.colormaps


def test_colours_stand_out_on_a_dark_page_too():
    """As on white, on the dark ground and on the dark grounds of the map's panels."""
    dark = {light.lower(): colour for light, colour in style.DARK.items()}
    grounds = [dark[ground.lower()] for ground, _ in regimes._OUTCOMES.values()]
    assert dark["#ffffff"] in grounds

    def contrast(light, ground):
        colour = dark.get(light.lower(), light)
        return (luminance(colour) + 0.05) / (luminance(ground) + 0.05)

    for name, color in style.COLORS.items():
        assert min(contrast(color, ground) for ground in grounds) >= 3, name
    for color in (style.INK, style.GREY):
        assert min(contrast(color, ground) for ground in grounds) >= 4.5
    methods = [dark.get(color.lower(), color.lower()) for color in style.COLORS.values()]
    assert len(set(methods)) == len(methods)


@pytest.mark.slow
def test_a_drawing_follows_the_colour_scheme(drawn, tmp_path):
    """Every colour of a drawing that changes on a dark page is named in its rules."""
    for name, figure in drawn.items():
        path = tmp_path / f"{name}.svg"
        style.save(figure.canvas, path, "svg", name, figure.models)
        text = path.read_text()
        (rules,) = re.findall(r"<style>@media \(prefers-color-scheme:dark\)\{(.*)\}</style>", text)
        used = set(re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", text.replace(rules, "")))
        for light in style.DARK:
            for what in ("fill", "stroke"):
                rule = f'[style*="{what}: {light.lower()}"]'
                assert (rule in rules) == (f"{what}: {light.lower()}" in used), (name, rule)


@pytest.mark.slow
def test_every_drawing_says_what_was_measured_and_its_size(drawn):
    for name, figure in drawn.items():
        assert figure.models, name
        for line in figure.models:
            assert "parameters" in line
            assert "tand-in" in line or "random weights" in line, name


@pytest.mark.slow
def test_a_method_looks_the_same_everywhere(drawn):
    """Every line that a legend calls by a method's name has its colour and marker."""
    names = {label: method for method, label in style.LABELS.items()}
    seen = set()
    for figure in drawn.values():
        for axes in figure.canvas.axes:
            for container in axes.containers:
                method = names.get(container.get_label())
                if method:
                    line = container[0]
                    assert colors.same_color(line.get_color(), style.COLORS[method])
                    assert line.get_marker() == style.MARKERS[method]
                    seen.add(method)
    assert seen >= {"rtn", "awq", "qat", "kd", "grace"}


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=8),
    st.floats(0.01, 1.2),
)
def test_spread_labels_stand_apart_in_order(wanted, gap):
    found = style.spread(wanted, gap, 0.0, 10.0)
    ordered = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [found[index] for index in ordered]
    assert all(-1e-9 <= place <= 10 + 1e-9 for place in places)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(places))
    if all(abs(a - b) >= gap for a, b in itertools.combinations(wanted, 2)):
        assert found == pytest.approx(wanted)


def test_a_run_s_format_is_that_of_its_bits():
    def variant(run, bits):
        return pareto._variant(Accuracy(run, bits, 50.0, None, None, 10, 1))

    assert variant("baseline", 16) == "bf16"
    assert variant("grace_int4", 4) == "int4"
    assert variant("nf4_int4", 4) == "nf4"
    assert variant("llm_int8", 8) is None  # no kernel of ours: its speed was not measured
    assert variant("teacher", 16) is None
    assert variant("grace_int3", 3) is None
