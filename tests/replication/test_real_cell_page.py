"""The cell with a pretrained language model on the page: every number is that of its file."""

import json

from page_world import disagreement, parse, words

from replication.base.validation import validate
from replication.report.page.real_cell import logits_grid, scores_grid
from replication.report.page.sources import Node
from replication.results.real_cell import RESULT, RealCell

FILE = f"results/{RESULT.as_posix()}"


def interval(point):
    return {"point": point, "low": point - 0.25, "high": point + 0.25, "level": 0.95,
            "standard_error": 0.1}  # fmt: skip


def scores(first):
    return {name: interval(first + k) for k, name in enumerate(("nll", "agreement", "kl"))}


def content():
    model = {"name": "A model", "parameters": 134_500_000, "layers": 30, "width": 576,
             "vocabulary": 49152}  # fmt: skip
    course = {"steps": [1, 2], "gdkd": [6.125, 2.5], "gate": [0.8, 0.8], "beta": [1.0, 1.2],
              "ema": [6.0, 5.0], "tau": 0.35, "bounds": [0.1, 5.0]}  # fmt: skip
    measured = {"n": {"tokens": 9}, "values": {"entropy": interval(2.9), "gate": interval(0.77)}}
    covariance = {"n": {"tokens": 9}, "values": {"covariance": interval(-0.125)}}
    run = {"method": "grace", "bits": 4, "distillation": {}, "seeds": [0, 1],
           "scores": scores(2.0), "effects": scores(-0.5)}  # fmt: skip
    return {
        "teacher": model, "student": {**model, "layers": 12}, "settings": {},
        "texts": {"held_out": {"sequences": 3, "tokens": 9, "sha256": "0"}},
        "levels": {"teacher": scores(1.0), "recovered": scores(3.0)},
        "runs": {"grace_int4": run},
        "comparisons": {}, "teacher_on": {"held_out": measured},
        "courses": {"grace_int4": {"0": course, "1": {**course, "tau": None}}},
        "gate_covariance": {"recovered": covariance}, "entropy_error": {},
        "seconds": {"teacher": 1.0}, "provenance": {"commit": "0" * 40},
    }  # fmt: skip


def test_every_number_names_its_place(tmp_path):
    made = content()
    validate(RealCell, made, "made up")
    path = tmp_path / FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(made))
    node = Node(FILE, made)
    grids = (scores_grid(node), logits_grid(node))
    html = "".join(str(cell.html) for grid in grids for row in grid.rows for cell in row)
    page = parse(f"<div>{html}</div>")
    found = page.xpath("//*[@data-source]")
    assert len(found) >= 2 * 3 + 6 + 1 + 3 + 2 * 2
    assert [one for e in found if (one := disagreement(tmp_path, e, {}))] == []
    assert "−0.500 [−0.750, −0.250]" in words(page)
    assert "6.12 to 2.50, τ 0.35" in words(page) and "τ fixed" in words(page)
    for grid in grids:
        assert all(len(row) == len(grid.head[0]) for row in grid.rows)
