"""Rows, columns and cells of a table that holds no scores, as its JSON has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from replication.stats.verdict import Interval


def cell(
    measured: float | None = None,
    interval: Interval | None = None,
    *,
    reported: float | None = None,
    seed_spread: float | None = None,
) -> dict[str, float | None]:
    """One cell. An interval brings its point."""
    return {
        "reported": reported,
        "measured": measured if interval is None else interval.point,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "seed_spread": seed_spread,
    }


def column(
    name: str,
    unit: str = "",
    *,
    places: int = 1,
    signed: bool = False,
    standin: bool = False,
    axis: str = "",
) -> dict[str, Any]:
    """One column; columns of one ``axis`` are drawn on the same."""
    column = {"name": name, "unit": unit, "places": places, "signed": signed, "standin": standin}
    return column | ({"axis": axis} if axis else {})


def row(
    columns: Iterable[Mapping[str, Any]], labels: Sequence[Any], cells: Mapping[str, Any]
) -> dict[str, Any]:
    """A row whose other cells are empty."""
    return {
        "labels": [*labels],
        "cells": {c["name"]: cells.get(c["name"], cell()) for c in columns},
    }
