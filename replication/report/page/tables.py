"""Every table on the page: reported | measured | difference, its footnotes, and where its numbers
come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from replication.paper import AVERAGE, Reported
from replication.report.page.bars import Axis, bar
from replication.report.page.evidence import Evidence, Origin, origins
from replication.report.page.grids import Cell, Grid, stacked
from replication.report.page.sources import Node, absent, counted, plain, quoted
from replication.report.tables import text

_TALL = 24  # a table of more rows scrolls by itself
_WORDS = {text.NOT_RUN, text.NOT_RECORDED, text.NOT_REPORTED, text.NONE}
GRACE = "grace_int4"  # the run that the paper is about


@dataclass(frozen=True)
class TableView:
    """A table, ready to print. more: the benchmarks behind the average, where there is one."""

    node: Node
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


def _shown(node: Node, written: str, *fields: str, pad: str = "") -> Markup:
    """A cell's text, or the word that stands for what is missing."""
    if written in _WORDS:
        return absent(written)
    kept = [name for name in fields if node.value[name] is not None]
    return quoted(node, written, *kept, pad=pad)


def _sides(node: Node, cell: Node) -> list[tuple[Node, str]]:
    """Where a cell's measured numbers are, of this machine and of each recording, and what stands
    for a missing one."""
    recordings = node.value.get("recordings", [])
    found = [(cell, text.NOT_RUN)]
    return found + [(cell["recorded"][one["id"]], text.NOT_RECORDED) for one in recordings]


def _measured(side: Node, missing: str, pad: str = "") -> Markup:
    written = text.measured_text(side.value, missing)
    fields = ("measured", "measured_low", "measured_high", "seed_spread")
    return _shown(side, written, *fields, pad=pad)


def _delta(row: Mapping[str, Any], side: Node, missing: str, pad: str = "") -> Markup:
    if row["role"] == "baseline":
        return absent("reference")
    written = text.delta_measured_text(side.value, missing)
    return _shown(side, written, "delta_measured", "delta_low", "delta_high", pad=pad)


def _delta_reported(row: Mapping[str, Any], cell: Node) -> Markup:
    if row["role"] == "baseline":
        return absent("reference")
    written = text.delta_reported_text(row, cell.value)
    return _shown(cell, written, "delta_reported")


def _axis(node: Node, columns: Iterable[Node]) -> Axis | None:
    """The axis of a table's differences from the baseline."""
    names, values = [column["name"].value for column in columns], []
    for row in node["rows"].value:
        for name in names:
            cell = row["cells"][name]
            values += [cell[f"delta_{end}"] for end in ("reported", "measured", "low", "high")]
    return Axis.over(values)


def _bar(axis: Axis | None, cell: Mapping[str, Any]) -> Markup:
    return bar(
        axis,
        cell["delta_measured"],
        cell["delta_low"],
        cell["delta_high"],
        cell["delta_reported"],
    )


def _heading(column: Node) -> Markup:
    """A column's name, with the mark of a stand-in and its number of questions."""
    mark = Markup('<abbr title="stand-in benchmark">*</abbr>') if column["standin"].value else ""
    name = Markup("{}{}").format(plain(column["name"]), mark)
    if column["n"].value is None:
        return name
    size = Markup('<span class="n">n = {}</span>').format(
        quoted(column["n"], f"{column['n'].value:,}")
    )
    return Markup("{} {}").format(name, size)


def _method(row: Node) -> Cell:
    bits = quoted(row["bits"], text.bits_text(row.value)) if row["bits"].value != 16 else "BF16"
    name = Markup('{} <span class="bits">{}</span>').format(text.method_text(row.value), bits)
    return Cell(name, head=True, css="method")


def _recorded_heads(node: Node) -> list[str]:
    return [f"recorded, {one['device']}" for one in node.value.get("recordings", [])]


def _has_deltas(node: Node) -> bool:
    rows = node["rows"].value
    return node["quantity"].value == "score" and any(row["role"] == "baseline" for row in rows)


def _headline(node: Node, column: Node) -> Grid:
    """One column of a table of scores, spread out: levels, differences and their intervals."""
    devices, name = _recorded_heads(node), column["name"].value
    recordings = node.value.get("recordings", [])
    axis = _axis(node, [column])
    unit = column["unit"].value
    heads = [
        "Method", f"Reported, {unit}", "Measured, " + unit, *devices,
        "Δ reported", "Δ measured, 95 % interval", *(f"Δ {one}" for one in devices),
        "Δ drawn", "Evidence",
    ]  # fmt: skip
    rows = []
    for row in node["rows"]:
        cell = row["cells"][name]
        sides = _sides(node, cell)
        said: Markup | str = text.evidence_text(row.value, recordings)
        if not recordings:
            said = counted(row["seeds"], said)
        evidence = stacked(
            said,
            Markup("<code>{}</code>").format(plain(row["run"])) if row["run"].value else "",
        )
        reported = _shown(cell, text.reported_text(row.value, cell.value), "reported")
        rows.append(
            [
                _method(row),
                Cell(reported, css="num"),
                *(Cell(_measured(*side, pad="spread"), css="num spread") for side in sides),
                Cell(_delta_reported(row.value, cell), css="num"),
                *(Cell(_delta(row.value, *side, pad="range"), css="num range") for side in sides),
                Cell(_bar(axis, cell.value) or absent("none"), css="drawn"),
                Cell(evidence, css="words small"),
            ]
        )
    head = [[Cell(heads[0], head=True, rows=2), Cell(_heading(column), head=True,
             columns=len(heads) - 1, css="group")],
            [Cell(one, head=True, css="words" if one in ("Δ drawn", "Evidence") else "num")
             for one in heads[1:]]]  # fmt: skip
    return Grid(f"{node['title'].value}: {name}", head, rows, marked=_marked(node))


def _marked(node: Node) -> frozenset[int]:
    return frozenset(i for i, row in enumerate(node["rows"].value) if row["run"] == GRACE)


def _benchmarks(node: Node, columns: Sequence[Node]) -> Grid:
    """The columns of a table of scores side by side, each difference under its level."""
    devices, deltas = _recorded_heads(node), _has_deltas(node)
    axis = _axis(node, columns) if deltas else None
    width = 2 + len(devices)
    rows = []
    for row in node["rows"]:
        line = [_method(row)]
        for column in columns:
            cell = row["cells"][column["name"].value]
            level = _shown(cell, text.reported_text(row.value, cell.value), "reported")
            compared = deltas and row["role"].value != "baseline"
            printed = cell["reported"].value is not None
            below = _delta_reported(row.value, cell) if compared and printed else ""
            line.append(Cell(stacked(level, below), css="num start"))
            for index, side in enumerate(_sides(node, cell)):
                below = _delta(row.value, *side) if compared else ""
                drawn = _bar(axis, cell.value) if compared and index == 0 else ""
                line.append(Cell(stacked(_measured(*side), below, drawn), css="num"))
        rows.append(line)
    head = [
        [
            Cell("Method", head=True, rows=2),
            *(Cell(_heading(c), head=True, columns=width, css="group") for c in columns),
        ],
        [
            Cell(one, head=True, css="num")
            for _ in columns
            for one in ("reported", "measured", *devices)
        ],
    ]
    what = "Levels, with differences from the baseline below" if deltas else "Levels"
    return Grid(f"{node['title'].value}. {what}", head, rows, wide=True, marked=_marked(node))


def _summary_heading(column: Node) -> Markup:
    mark = Markup('<abbr title="stand-in benchmark">*</abbr>') if column["standin"].value else ""
    unit = f", {column['unit'].value}" if column["unit"].value else ""
    return Markup("{}{}{}").format(plain(column["name"]), mark, unit)


def _summary(node: Node) -> Grid:
    """A table that holds no scores."""
    columns, has_reported = list(node["columns"]), node["has_reported"].value
    deep = 2 if has_reported else 1
    head = [[Cell(plain(one), head=True, rows=deep, css="words") for one in node["labels"]]]
    for column in columns:
        css = "group" if has_reported else "num"
        head[0].append(Cell(_summary_heading(column), head=True, columns=deep, css=css))
    if has_reported:
        sides = ("reported", "measured") * len(columns)
        head.append([Cell(one, head=True, css="num") for one in sides])
    axes, kinds = {}, {}
    for column in columns:
        cells = [row["cells"][column["name"].value] for row in node["rows"].value]
        ends = ("reported", "measured", "low", "high")
        parts = (("low", "num range"), ("seed_spread", "num spread"))
        kinds[column["name"].value] = next(
            (css for end, css in parts if any(cell[end] is not None for cell in cells)), "num"
        )
        axes[column["name"].value] = (
            Axis.over(cell[end] for cell in cells for end in ends)
            if column["signed"].value
            else None
        )
    rows, before = [], None
    for index, row in enumerate(node["rows"]):
        labels = list(row["labels"])
        line = []
        first = labels[0].value
        if len(labels) == 1 or first != before:
            same = 1
            if len(labels) > 1:
                later = node["rows"].value[index:]
                same = next(
                    (i for i, one in enumerate(later) if one["labels"][0] != first), len(later)
                )
            line.append(Cell(plain(labels[0]), head=True, rows=same, css="words"))
        before = first
        line += [Cell(plain(one), css="words") for one in labels[1:]]
        for column in columns:
            cell = row["cells"][column["name"].value]
            if has_reported:
                written = text.summary_reported_text(column.value, cell.value)
                line.append(Cell(_shown(cell, written, "reported"), css="num start"))
            written = text.summary_measured_text(column.value, cell.value)
            kind = kinds[column["name"].value]
            pad = kind.removeprefix("num").strip()
            shown = _shown(cell, written, "measured", "low", "high", "seed_spread", pad=pad)
            value = cell.value
            drawn = bar(
                axes[column["name"].value],
                value["measured"], value["low"], value["high"], value["reported"],
            )  # fmt: skip
            line.append(Cell(stacked(shown, drawn), css=kind))
        rows.append(line)
    return Grid(node["title"].value, head, rows, tall=len(rows) > _TALL)


def _files(node: Node, evidence: Evidence, reported: Reported) -> tuple[list[Node], list[Node]]:
    """The files with provenance behind a table, and the training logs behind it."""
    family, name = node["family"].value, node["short"].value
    if node["kind"].value == "scores":
        runs = [row["run"] for row in node["rows"].value if row["run"]]
        return evidence.scores(family, runs), []
    if name == "deploy":
        return evidence.files.matching("deploy/*/deploy.json"), []
    summary = reported.summaries[name]
    if name == "cost":
        return [], evidence.logs(family, sorted(summary.named))
    runs = sorted(summary.named)
    if name == "effects":
        runs = list(reported.table(summary.table).design().values())
    return evidence.scores(family, runs), []


def table_view(node: Node, evidence: Evidence, reported: Reported) -> TableView:
    """A table's JSON, ready to print."""
    more = None
    if node["kind"].value == "summary":
        grid = _summary(node) if len(node["rows"]) else None
    else:
        columns = list(node["columns"])
        average = [column for column in columns if column["name"].value == AVERAGE]
        if average and _has_deltas(node):
            grid = _headline(node, average[0])
            more = _benchmarks(node, [one for one in columns if one is not average[0]])
        else:
            grid = _benchmarks(node, columns)
    found, logs = _files(node, evidence, reported)
    return TableView(
        node=node,
        grid=grid,
        more=more,
        footnotes=[plain(note) for note in node["footnotes"]],
        origins=origins(found),
        logs=[log.file for log in logs],
        command=evidence.command([], "tables"),
        again=evidence.command([*found, *logs], "tables"),
    )


def table_views(evidence: Evidence, reported: Reported) -> list[TableView]:
    """Every table, in the order of tables.yaml."""
    return [
        table_view(evidence.files.need(f"tables/{name}.json", "tables"), evidence, reported)
        for name in reported.short_names()
    ]
