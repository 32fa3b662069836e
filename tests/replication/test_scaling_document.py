"""docs/scaling.md shows what the cost model and the measured growth say now."""

import json

import pytest

from grace.errors import InputError
from replication.base.files import ROOT
from replication.measure.growth import AXES, OUT
from replication.report.scaling import DOCUMENT, NAMES, contents, fill, growth


@pytest.mark.slow
def test_the_document_is_current():
    measured = json.loads((ROOT / OUT).read_text())
    text = DOCUMENT.read_text()
    assert fill(text, contents(measured)) == text, "run python -m replication.report.scaling"
    assert measured["provenance"]["commit"]


def test_a_document_without_its_places_is_refused():
    with pytest.raises(InputError, match="tables:begin"):
        fill("", dict.fromkeys(NAMES, ""))


def test_a_missing_point_is_named():
    axis = next(iter(AXES))
    with pytest.raises(InputError, match=f"{axis}={AXES[axis][0]}"):
        growth({"points": {}, "provenance": {"device": ""}, "settings": {"steps": 1}})
