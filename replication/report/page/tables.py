"""Every table on the page: difference | measured | reported, its footnotes, and where its numbers
come from. What was measured stands first, where a narrow screen shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from replication.paper import AVERAGE, Reported
from replication.report.page.bars import Axis, bar
from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, heads, stacked
from replication.report.page.sources import Node, absent, counted, plain, quoted
from replication.report.tables.regimes import RUNS
from replication.report.tables.text import (
    Value,
    bits_text,
    evidence_text,
    has_deltas,
    method_text,
    models_of,
    recordings_of,
    score_values,
    summary_values,
)

_TALL = 24  # a table of more rows scrolls by itself
_WIDE = 12  # a table of more columns has small print on paper
GRACE = "grace_int4"  # the run that the paper is about
_KEYS = {GRACE: "INT4 GRACE", "grace_bf16": "BF16 GRACE"}


@dataclass(frozen=True)
class TableView:
    """A table, ready to print.

    Attributes:
        node: Its JSON content.
        models: The names of the stand-ins that were measured.
        key: The number that matters in it, with its words; "" for none.
        grid: What is shown first; None where nothing was run.
        more: The benchmarks behind the average, where there is one.
        footnotes: Its footnotes.
        origins: Where the files behind it come from.
        logs: The training logs behind it.
        command: What writes the table again.
        again: What measures its numbers again.
    """

    node: Node
    models: list[Markup]
    key: Markup
    grid: Grid | None
    more: Grid | None
    footnotes: list[Markup]
    origins: list[Origin]
    logs: list[str]
    command: str
    again: str

    @property
    def name(self) -> str:
        return str(self.node["short"].value)

    @property
    def printed(self) -> bool:
        """Whether it is a table of the paper's."""
        return "source" in self.node and bool(self.node["source"].value)


def _quoted(cell: Node, value: Value, pad: str = "") -> Markup:
    """A value with its source, or the word that stands for what is missing."""
    if not value.fields:
        return absent(value.text)
    for key in value.place:
        cell = cell[key]
    return quoted(cell, value.text, *value.fields, pad=pad)


def _scores(node: Node, row: Node, name: str, pad: str = "") -> list[Markup]:
    """The reported score of a cell, the measured one and the recorded ones."""
    reported, *measured = score_values(node.value, row.value, name)
    cell = row["cells"][name]
    return [_quoted(cell, reported), *(_quoted(cell, value, pad) for value in measured)]


def _deltas(node: Node, row: Node, name: str, pad: str = "") -> list[Markup]:
    """As :func:`_scores`, the differences from the baseline."""
    reported, *measured = score_values(node.value, row.value, name, delta=True)
    if row["role"].value == "baseline":
        return [absent("reference") for _ in (reported, *measured)]
    cell = row["cells"][name]
    return [_quoted(cell, reported), *(_quoted(cell, value, pad) for value in measured)]


def _axis(node: Node, columns: Iterable[Node]) -> Axis | None:
    """The axis of a table's differences from the baseline."""
    cells = [row["cells"][c["name"].value] for row in node["rows"].value for c in columns]
    ends = ("reported", "measured", "low", "high")
    return Axis.over(cell[f"delta_{end}"] for cell in cells for end in ends)


def _bar(axis: Axis | None, cell: Node) -> Markup:
    ends = ("measured", "low", "high", "reported")
    return bar(axis, *(cell.value[f"delta_{end}"] for end in ends))


def _heading(column: Node) -> Markup:
    """A column's name with the mark of a stand-in."""
    mark = Markup('<abbr title="stand-in benchmark">*</abbr>') if column["standin"].value else ""
    return Markup("{}{}").format(plain(column["name"]), mark)


def _sized(column: Node) -> Markup:
    """A column's heading and its number of questions."""
    if column["n"].value is None:
        return _heading(column)
    size = quoted(column["n"], f"{column['n'].value:,}")
    return Markup('{} <span class="n">n = {}</span>').format(_heading(column), size)


def _method(node: Node, row: Node) -> Cell:
    bits = quoted(row["bits"], bits_text(row.value)) if row["bits"].value != 16 else "BF16"
    role, name = row["role"].value, Markup("{}").format(method_text({}, row.value))
    if role in models_of(node.value):
        standin = plain(node["models"][role]["size"])
        words = Markup("{}, reported; <strong>stand-in</strong>, measured: {}")
        name = words.format(row["method"].value, standin)
    return Cell(Markup('{} <span class="bits">{}</span>').format(name, bits), "method", head=True)


def _standin_size(node: Node) -> Markup:
    """Of the students, for the heads of what was measured; nothing of published models."""
    if not models_of(node.value):
        return Markup("")
    size = plain(node["models"]["baseline"]["size"])
    return Markup(' <span class="n">stand-in, {}</span>').format(size)


def _devices(node: Node) -> list[str]:
    return [f"recorded, {recording['device']}" for recording in recordings_of(node.value)]


def _marked(node: Node) -> frozenset[int]:
    return frozenset(i for i, row in enumerate(node["rows"].value) if row["run"] == GRACE)


def _evidence(node: Node, row: Node) -> Markup:
    evidence: Markup | str = evidence_text(node.value, row.value)
    if not recordings_of(node.value):
        seeds, of, pairs = evidence.partition(" of ")
        evidence = counted(row["seeds"], seeds)
        if of:
            evidence += Markup(" of {}").format(counted(row["pairs"], pairs))
    run = Markup("<code>{}</code>").format(plain(row["run"])) if row["run"].value else ""
    return stacked(evidence, run)


def _headline(node: Node, column: Node) -> Grid:
    """One column of a table of scores, spread out: differences with their intervals, and levels."""
    devices, name, unit = _devices(node), column["name"].value, column["unit"].value
    axis = _axis(node, [column])
    measured_head = Markup("Measured, {}{}").format(unit, _standin_size(node))
    deltas_head = ["Δ measured, 95 % interval", *(f"Δ {device}" for device in devices)]
    levels_head = ["Δ reported", measured_head, *devices, f"Reported, {unit}"]
    rows = []
    for row in node["rows"]:
        reported, *measured = _scores(node, row, name, pad="spread")
        delta_reported, *deltas = _deltas(node, row, name, pad="range")
        rows.append(
            [
                _method(node, row),
                *(Cell(delta, "num range") for delta in deltas),
                Cell(_bar(axis, row["cells"][name]) or absent("none"), "drawn"),
                Cell(delta_reported, "num"),
                *(Cell(score, "num spread") for score in measured),
                Cell(reported, "num"),
                Cell(_evidence(node, row), "words small"),
            ]
        )
    below = [
        *heads("num", *deltas_head),
        *heads("words", "Δ drawn"),
        *heads("num", *levels_head),
        *heads("words", "Evidence"),
    ]
    above = [
        Cell("Method", head=True, rows=2),
        Cell(_sized(column), "group", head=True, columns=len(below)),
    ]
    return Grid(f"{node['title'].value}: {name}", [above, below], rows, marked=_marked(node))


def _benchmarks(node: Node, columns: Sequence[Node]) -> Grid:
    """The columns of a table of scores side by side, each level under its difference."""
    deltas = has_deltas(node.value)
    axis = _axis(node, columns) if deltas else None
    sides = [Markup("measured{}").format(_standin_size(node)), *_devices(node), "reported"]
    rows = []
    for row in node["rows"]:
        line = [_method(node, row)]
        compared = deltas and row["role"].value != "baseline"
        for column in columns:
            name = column["name"].value
            cell = row["cells"][name]
            scores = _scores(node, row, name)
            above: list[Markup | str] = [""] * len(scores)
            if compared:
                above = [*_deltas(node, row, name)]
            if cell["reported"].value is None:
                above[0] = ""
            drawn = _bar(axis, cell) if compared else ""
            line += [
                Cell(stacked(above[1], drawn, scores[1]), "num start"),
                *(Cell(stacked(*pair), "num") for pair in zip(above[2:], scores[2:], strict=True)),
                Cell(stacked(above[0], scores[0]), "num"),
            ]
        rows.append(line)
    top = [
        Cell("Method", head=True, rows=2),
        *(Cell(_sized(c), "group", head=True, columns=len(sides)) for c in columns),
    ]
    what = "Differences from the baseline, with levels below" if deltas else "Levels"
    title = f"{node['title'].value}. {what}"
    head = [top, heads("num", *sides * len(columns))]
    return Grid(title, head, rows, wide=True, marked=_marked(node))


def _axis_name(column: Mapping[str, Any]) -> str:
    """Columns of one name are drawn on one axis."""
    return str(column.get("axis", column["name"]))


def _rank(column: Node) -> int:
    """Differences and ratios stand before effects, and these before levels."""
    if "−" in column["name"].value or column["unit"].value == "×":
        return 0
    return 1 if column["signed"].value else 2


class _Summary:
    """A table that holds no scores."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.columns = sorted(node["columns"], key=_rank)
        self.paired: bool = node["has_reported"].value
        self.axes: dict[str, Axis | None] = {}
        self.pads: dict[str, str] = {}
        for column in self.columns:
            name = column["name"].value
            cells = [row["cells"][name] for row in node["rows"].value]
            ends = ("reported", "measured", "low", "high")
            shared = [
                one["name"]
                for one in node["columns"].value
                if _axis_name(one) == _axis_name(column.value)
            ]
            drawn = [row["cells"][one] for row in node["rows"].value for one in shared]
            over = Axis.over(cell[end] for cell in drawn for end in ends)
            self.axes[name] = over if column["signed"].value else None
            kinds = (("low", "range"), ("seed_spread", "spread"))
            known = [pad for key, pad in kinds if any(cell[key] is not None for cell in cells)]
            self.pads[name] = known[0] if known else ""

    def grid(self) -> Grid:
        rows = [
            [self._name(row), *(cell for c in self.columns for cell in self._cells(row, c))]
            for row in self.node["rows"]
        ]
        tall, wide = len(rows) > _TALL, len(self.columns) > _WIDE
        return Grid(self.node["title"].value, self._head(), rows, tall=tall, wide=wide)

    def _head(self) -> list[list[Cell]]:
        deep = 2 if self.paired else 1
        labels = Markup(", ").join(plain(label) for label in self.node["labels"])
        above = [Cell(labels, "words", head=True, rows=deep)]
        css = "group" if self.paired else "num"
        for column in self.columns:
            unit = f", {column['unit'].value}" if column["unit"].value else ""
            name = Markup("{}{}").format(_heading(column), unit)
            above.append(Cell(name, css, head=True, columns=deep))
        measured = Markup("measured{}").format(_standin_size(self.node))
        below = heads("num", *(measured, "reported") * len(self.columns))
        return [above, below] if self.paired else [above]

    def _name(self, row: Node) -> Cell:
        """The row's labels in one cell, which stays in view as the others scroll."""
        return Cell(stacked(*(plain(label) for label in row["labels"])), "words", head=True)

    def _cells(self, row: Node, column: Node) -> list[Cell]:
        name = column["name"].value
        cell, pad = row["cells"][name], self.pads[name]
        *reported, measured = summary_values(self.node.value, column.value, cell.value)
        ends = ("measured", "low", "high", "reported")
        drawn = bar(self.axes[name], *(cell.value[end] for end in ends))
        return [
            Cell(stacked(_quoted(cell, measured, pad), drawn), f"num start {pad}".strip()),
            *(Cell(_quoted(cell, value), "num") for value in reported),
        ]


def _files(node: Node, evidence: Evidence, reported: Reported) -> tuple[list[Node], list[Node]]:
    """The files with provenance behind a table, and the training logs behind it."""
    family, name = node["family"].value, node["short"].value
    if node["kind"].value == "scores":
        runs = [row["run"] for row in node["rows"].value if row["run"]]
        return evidence.scores(family, runs), []
    if name == "deploy":
        return evidence.files.matching("deploy/*/deploy.json"), []
    if name == "regimes":
        groups = [group for group, *_ in node["cells"].value]
        models = [f"scores/{family}/teacher.json", "scores/regimes/*.json"]
        measured = [one for model in models for one in evidence.files.matching(model)]
        return measured + [one for group in groups for one in evidence.scores(group, RUNS)], []
    if name == "tuned":  # of several families, each with a record of its candidates
        records = evidence.files.matching("tuning/*.json")
        tried = {one["pair"].value: [c["run"] for c in one["candidates"].value] for one in records}
        scores = [one for pair in tried for one in evidence.scores(pair, tried[pair])]
        return records + [one for one in scores if one["pair"].value in tried], []
    summary = reported.summaries[name]
    runs = sorted(summary.named)
    if name == "cost":
        return [], evidence.logs(family, runs)
    if name == "effects":
        runs = list(reported.table(summary.table).design().values())
    return evidence.scores(family, runs), []


def _key(node: Node) -> Markup:
    """GRACE's difference from the baseline on the average of a table of the paper's."""
    if node["kind"].value != "scores" or not node["source"].value or not has_deltas(node.value):
        return Markup("")
    rows = {row["run"].value: row for row in node["rows"]}
    for run, name in _KEYS.items():
        if run in rows and AVERAGE in rows[run]["cells"]:
            cell = rows[run]["cells"][AVERAGE]
            measured = score_values(node.value, rows[run].value, AVERAGE, delta=True)[1]
            if measured.fields:
                return Markup("{} − baseline: {} points").format(name, _quoted(cell, measured))
    return Markup("")


def _models(node: Node) -> list[Node]:
    return [node["models"][role] for role in models_of(node.value)]


def _grids(node: Node) -> tuple[Grid | None, Grid | None]:
    """What is shown of a table, and what is shown on demand."""
    if node["kind"].value == "summary":
        return (_Summary(node).grid() if len(node["rows"]) else None), None
    columns = list(node["columns"])
    average = [column for column in columns if column["name"].value == AVERAGE]
    if average and has_deltas(node.value):
        others = [column for column in columns if column is not average[0]]
        return _headline(node, average[0]), _benchmarks(node, others)
    return _benchmarks(node, columns), None


def table_views(evidence: Evidence, reported: Reported) -> list[TableView]:
    """Every table that was written, in the order of tables.yaml."""
    views = []
    for name in reported.short_names():
        node = evidence.files.find(f"{evidence.files.results}/tables/{name}.json")
        if node is None:  # of an earlier run, which did not know the table
            continue
        grid, more = _grids(node)
        files, logs = _files(node, evidence, reported)
        views.append(
            TableView(
                node=node,
                models=[plain(model["name"]) for model in _models(node)],
                key=_key(node),
                grid=grid,
                more=more,
                footnotes=[plain(note) for note in node["footnotes"]],
                origins=origins(files),
                logs=[log.file for log in logs],
                command=evidence.command([], "tables"),
                again=evidence.command([*files, *logs], "tables"),
            )
        )
    return views
