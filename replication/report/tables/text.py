"""What tables print: the text of every cell, and the grids that hold them.

A table of scores (kind "scores") has two grids, of scores and of differences from the baseline; a
summary has one. Where results of another device were recorded, a table of scores has a further
column for each such device beside every measured one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from replication.judge.quantities import signed
from replication.report.names import ROLES

NOT_RUN = "not run"
NOT_RECORDED = "not recorded"
NOT_REPORTED = "not reported"
NONE = "none"
QUOTED = "reported"

_SCORE = ("measured", "measured_low", "measured_high", "seed_spread")
_DELTA = ("delta_measured", "delta_low", "delta_high", None)
_SUMMARY = ("measured", "low", "high", "seed_spread")
_REPORTED = ("reported", None, None, None)
_DELTA_REPORTED = ("delta_reported", None, None, None)

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """What is printed of a cell.

    Attributes:
        text: A number with its interval and spread, or the word that stands for a missing one.
        fields: The cell's entries whose numbers the text holds, in this order; none for a word.
        place: The keys that lead from the cell to these entries.
    """

    text: str
    fields: tuple[str, ...] = ()
    place: tuple[str, ...] = ()


def _value(
    cell: Data,
    keys: Sequence[str | None],
    show: Callable[[float], str],
    missing: str,
    place: tuple[str, ...] = (),
) -> Value:
    """A cell's "point [low, high] ± spread", by the names of these four entries."""
    for key in place:
        cell = cell[key]
    numbers: list[Any] = [None if key is None else cell[key] for key in keys]
    point, low, high, spread = numbers
    if point is None:
        return Value(missing)
    text = show(point)
    if low is not None:
        text += f" [{show(low)}, {show(high)}]"
    if spread is not None:
        text += f" ± {show(spread).lstrip('+')}"
    return Value(text, tuple(key for key in keys if key and cell[key] is not None), place)


def score_values(data: Data, row: Data, column: str, *, delta: bool = False) -> list[Value]:
    """A cell of a table of scores: reported, measured, and what each recording has.

    Args:
        data: The table's JSON content.
        row: One of its rows.
        column: A column's name.
        delta: Whether the differences from the baseline are asked for, not the scores.
    """
    cell = row["cells"][column]
    show: Callable[[float], str] = signed if delta else "{:.1f}".format
    nothing = NONE if row["ours"] else NOT_REPORTED
    keys = _DELTA if delta else _SCORE
    return [
        _value(cell, _DELTA_REPORTED if delta else _REPORTED, show, nothing),
        _value(cell, keys, show, NOT_RUN),
        *(
            _value(cell, keys, show, NOT_RECORDED, ("recorded", recording["id"]))
            for recording in recordings_of(data)
        ),
    ]


def summary_values(data: Data, column: Data, cell: Data) -> list[Value]:
    """A cell of a summary: the reported number, where the table has such, and the measured one."""
    places = column["places"]
    show = partial(signed, places=places) if column["signed"] else partial(_unsigned, places=places)
    measured = _value(cell, _SUMMARY, show, NOT_RUN)
    return [_value(cell, _REPORTED, show, NOT_REPORTED)] * data["has_reported"] + [measured]


def _unsigned(value: float, places: int) -> str:
    return f"{value:,.{places}f}".replace("-", "−")


def bits_text(row: Data) -> str:
    return "BF16" if row["bits"] == 16 else f"INT{row['bits']}"


def models_of(data: Data) -> Data:
    """Teacher and baseline that were measured, where these are not the published ones."""
    models: Data = data.get("models", {})
    return {role: models[role] for role in ROLES if role in models}


def model_of(data: Data, role: str) -> str:
    """The model that a row was measured on, or that its training started from."""
    models = models_of(data)
    return models.get(role, models["baseline"])["name"] if models else "published"


def models_text(data: Data) -> str:
    """Which models were measured, where these are not the published ones."""
    names = [model["name"] for model in models_of(data).values()]
    return f"Measured models (stand-ins): {'; '.join(names)}." if names else ""


def size_text(data: Data) -> str:
    """The mark of a column that was measured on stand-ins: ' (stand-in, 0.4 M parameters)'."""
    models = models_of(data)
    return f" (stand-in, {models['baseline']['size']})" if models else ""


def method_text(data: Data, row: Data) -> str:
    """A row's method; of teacher and baseline which model is reported and which is measured."""
    if row["role"] not in ("teacher", "baseline"):
        return f"{row['method']}{' †' if row['ours'] else ''}"
    if row["role"] not in models_of(data):
        return f"{row['method']} ({row['role']})"
    standin = models_of(data)[row["role"]]["name"]
    return f"{row['method']} (reported); {standin}, stand-in (measured)"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def evidence_text(data: Data, row: Data) -> str:
    """What a row of scores rests on."""
    if row["evidence"] == QUOTED:
        return "reported, not rerun"
    text = NOT_RUN
    if row["evidence"] != NOT_RUN:
        text = f"{row['evidence']}, {_seeds(len(row['seeds']))}"
        if len(row["pairs"]) > 1:
            text += f" of {len(row['pairs'])} pairs"
    for recording in recordings_of(data):
        cells = [cell["recorded"][recording["id"]] for cell in row["cells"].values()]
        if count := max(len(cell["seeds"]) for cell in cells):
            text += f"; recorded, {_seeds(count)}, {recording['device']}"
    return text


def recordings_of(data: Data) -> Sequence[Data]:
    recordings: Sequence[Data] = data.get("recordings", [])
    return recordings


def has_deltas(data: Data) -> bool:
    """Whether a table of scores has a baseline that its rows are compared with."""
    return data["quantity"] == "score" and any(row["role"] == "baseline" for row in data["rows"])


def starred(name: str, standin: bool) -> str:
    """A column's name, marked where its benchmark is a stand-in."""
    return f"{name}*" if standin else name


def _recorded_head(recording: Data) -> str:
    low, high = recording["seeds"]
    seeds = _seeds(high) if low == high else f"{low} to {_seeds(high)}"
    return f"recorded ({recording['device']}, {seeds})"


@dataclass(frozen=True)
class TextGrid:
    """A table of text.

    Attributes:
        heads: Of every column, complete in itself.
        rows: As many texts each as there are heads.
        labels: How many columns, from the left, name their row.
        groups: Names over equal numbers of the other columns; none for a head of one line.
        sides: What stands under the groups, for every column.
    """

    heads: list[str]
    rows: list[list[str]]
    labels: int
    groups: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()

    def with_column(self, head: str, texts: Sequence[str]) -> TextGrid:
        """The grid with one more column on the right."""
        rows = [[*row, text] for row, text in zip(self.rows, texts, strict=True)]
        return replace(self, heads=[*self.heads, head], rows=rows)


def score_grid(data: Data, *, delta: bool = False) -> TextGrid:
    """The scores of a table, or the differences of its other rows from the baseline."""
    recordings, labels = recordings_of(data), ("Bits", "Method")
    sides = ["reported", f"measured{size_text(data)}", *map(_recorded_head, recordings)]
    if delta:
        sides = [f"Δ {side}" for side in sides]
    heads, groups = list(labels), []
    for column in data["columns"]:
        standins = [False, column["standin"], *(one["standin"] for one in recordings)]
        names = [starred(column["name"], standin) for standin in standins]
        heads += [f"{name} {side}" for name, side in zip(names, sides, strict=True)]
        groups.append(starred(column["name"], any(standins)))
    rows = []
    for row in data["rows"]:
        if delta and row["role"] == "baseline":
            continue
        values = (score_values(data, row, c["name"], delta=delta) for c in data["columns"])
        texts = [value.text for cell in values for value in cell]
        rows.append([bits_text(row), method_text(data, row), *texts])
    below = (*labels, *sides * len(groups))
    return TextGrid(heads, rows, len(labels), tuple(groups), below)


def summary_grid(data: Data) -> TextGrid:
    """A summary's row labels, then the numbers of every column."""
    heads = list(data["labels"])
    for column in data["columns"]:
        name = starred(column["name"], column["standin"])
        name += f" ({column['unit']})" if column["unit"] else ""
        pair = [f"{column['name']} reported", f"{name} measured"]
        heads += pair if data["has_reported"] else [name]
    rows = []
    for row in data["rows"]:
        values = (summary_values(data, c, row["cells"][c["name"]]) for c in data["columns"])
        texts = [value.text for cell in values for value in cell]
        rows.append([*map(str, row["labels"]), *texts])
    return TextGrid(heads, rows, len(data["labels"]))
