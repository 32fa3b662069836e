"""Tables as text: markdown, CSV and LaTeX, all made from a table's JSON content.

A table of scores ("scores") has two grids, of scores and of differences from the baseline; a
summary ("summary") has one. Where results of another device were recorded, a table of scores has a
further column for each such device beside every measured one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from replication.judge.quantities import signed

NOT_RUN = "not run"
NOT_RECORDED = "not recorded"
NOT_REPORTED = "not reported"
NONE = "none"
QUOTED = "reported"


def _number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.1f}"


def _is_ours(row: Mapping[str, Any]) -> bool:
    return bool(row["ours"])


def reported_text(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    return _number(cell["reported"], NONE if _is_ours(row) else NOT_REPORTED)


def measured_text(cell: Mapping[str, Any], missing: str = NOT_RUN) -> str:
    text = _number(cell["measured"], missing)
    if cell["measured_low"] is not None:
        text += f" [{cell['measured_low']:.1f}, {cell['measured_high']:.1f}]"
    return text if cell["seed_spread"] is None else f"{text} ± {cell['seed_spread']:.1f}"


def delta_reported_text(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    if cell["delta_reported"] is None:
        return NONE if _is_ours(row) else NOT_REPORTED
    return signed(cell["delta_reported"])


def delta_measured_text(cell: Mapping[str, Any], missing: str = NOT_RUN) -> str:
    if cell["delta_measured"] is None:
        return missing
    text = signed(cell["delta_measured"])
    if cell["delta_low"] is None:
        return text
    return f"{text} [{signed(cell['delta_low'])}, {signed(cell['delta_high'])}]"


def bits_text(row: Mapping[str, Any]) -> str:
    return "BF16" if row["bits"] == 16 else f"INT{row['bits']}"


def method_text(row: Mapping[str, Any]) -> str:
    if row["role"] in ("teacher", "baseline"):
        return f"{row['method']} ({row['role']})"
    return f"{row['method']}{' †' if _is_ours(row) else ''}"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def evidence_text(row: Mapping[str, Any], recordings: Sequence[Mapping[str, Any]]) -> str:
    if row["evidence"] == QUOTED:
        return "reported, not rerun"
    text = NOT_RUN
    if row["evidence"] != NOT_RUN:
        text = f"{row['evidence']}, {_seeds(len(row['seeds']))}"
    for recording in recordings:
        cells = [cell["recorded"][recording["id"]] for cell in row["cells"].values()]
        if count := max(len(cell["seeds"]) for cell in cells):
            text += f"; recorded, {_seeds(count)}, {recording['device']}"
    return text


def _heading(column: Mapping[str, Any]) -> str:
    return f"{column['name']}{'*' if column['standin'] else ''}"


def _recordings(data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = data.get("recordings", [])
    return found


def _recorded_heading(recording: Mapping[str, Any]) -> str:
    low, high = recording["seeds"]
    seeds = _seeds(high) if low == high else f"{low} to {_seeds(high)}"
    return f"recorded ({recording['device']}, {seeds})"


def _score_cells(data: Mapping[str, Any], row: Mapping[str, Any], name: str) -> list[str]:
    """A column's scores in a row: reported, measured, and of each recording."""
    cell = row["cells"][name]
    others = [cell["recorded"][one["id"]] for one in _recordings(data)]
    return [
        reported_text(row, cell),
        measured_text(cell),
        *(measured_text(other, NOT_RECORDED) for other in others),
    ]


def _delta_cells(data: Mapping[str, Any], row: Mapping[str, Any], name: str) -> list[str]:
    """A column's differences from the baseline, as :func:`_score_cells`."""
    cell = row["cells"][name]
    others = [cell["recorded"][one["id"]] for one in _recordings(data)]
    return [
        delta_reported_text(row, cell),
        delta_measured_text(cell),
        *(delta_measured_text(other, NOT_RECORDED) for other in others),
    ]


def _score_heads(data: Mapping[str, Any], column: Mapping[str, Any], mark: str = "") -> list[str]:
    """The heads of a column's cells in markdown; ``mark`` stands before what they are."""
    others = [
        f"{column['name']}{'*' if one['standin'] else ''} {mark}{_recorded_heading(one)}"
        for one in _recordings(data)
    ]
    return [f"{column['name']} {mark}reported", f"{_heading(column)} {mark}measured", *others]


def _notes(data: Mapping[str, Any]) -> list[str]:
    notes = [note.replace("*", "\\*", 1) if note[0] == "*" else note for note in data["footnotes"]]
    return ["", *(f"- {note}" for note in notes)]


def _has_deltas(data: Mapping[str, Any]) -> bool:
    return data["quantity"] == "score" and any(row["role"] == "baseline" for row in data["rows"])


def _grid(lines: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns padded to equal width."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    padded = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def score_markdown(data: Mapping[str, Any]) -> str:
    columns = data["columns"]
    names = [column["name"] for column in columns]
    score_lines = [["Bits", "Method"]]
    for column in columns:
        score_lines[0] += _score_heads(data, column)
    score_lines[0].append("Evidence")
    for row in data["rows"]:
        line = [bits_text(row), method_text(row)]
        for name in names:
            line += _score_cells(data, row, name)
        score_lines.append([*line, evidence_text(row, _recordings(data))])
    sized = [f"{_heading(column)} {column['n']}" for column in columns if column["n"]]
    text = [f"# {data['title']}", "", f"Scale `{data['scale']}`, family `{data['family']}`."]
    if sized:
        text[-1] += f" Questions: {', '.join(sized)}."
    what = "Percent of the baseline" if data["quantity"] == "retention" else "Scores"
    text += ["", f"## {what}", "", _grid(score_lines)]
    if _has_deltas(data):
        delta_lines = [["Bits", "Method"]]
        for column in columns:
            delta_lines[0] += _score_heads(data, column, "Δ ")
        for row in data["rows"]:
            if row["role"] == "baseline":
                continue
            line = [bits_text(row), method_text(row)]
            for name in names:
                line += _delta_cells(data, row, name)
            delta_lines.append(line)
        text += ["", "## Difference from the baseline", "", _grid(delta_lines)]
    text += _notes(data)
    return "\n".join(text) + "\n"


SCORE_FIELDS = (
    "table",
    "scale",
    "family",
    "bits",
    "method",
    "role",
    "run",
    "column",
    "standin",
    "evidence",
    "reported",
    "measured",
    "measured_low",
    "measured_high",
    "seed_spread",
    "delta_reported",
    "delta_measured",
    "delta_low",
    "delta_high",
    "resolvable",
    "n",
    "seeds",
)


_RECORDED_FIELDS = {
    "": "measured",
    "_low": "measured_low",
    "_high": "measured_high",
    "_seed_spread": "seed_spread",
    "_delta": "delta_measured",
    "_delta_low": "delta_low",
    "_delta_high": "delta_high",
    "_n": "n",
    "_standin": None,
    "_seeds": None,
}
"""What a line of CSV says of a recording, behind its id, and where in the cell it stands."""


def _recorded_fields(
    recording: Mapping[str, Any], row: Mapping[str, Any], cell: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of one recording in a line of CSV."""
    other, found = cell["recorded"][recording["id"]], {}
    absent = NOT_RECORDED if other["measured"] is None else NONE
    for suffix, key in _RECORDED_FIELDS.items():
        value = None if key is None else other[key]
        missing = NONE if "delta" in suffix and row["role"] == "baseline" else absent
        found[f"recorded_{recording['id']}{suffix}"] = missing if value is None else value
    found[f"recorded_{recording['id']}_standin"] = str(recording["standin"]).lower()
    seeds = " ".join(map(str, other["seeds"]))
    found[f"recorded_{recording['id']}_seeds"] = seeds or NOT_RECORDED
    return found


def score_csv(data: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    recordings = _recordings(data)
    more = [f"recorded_{one['id']}{suffix}" for one in recordings for suffix in _RECORDED_FIELDS]
    writer = csv.DictWriter(stream, [*SCORE_FIELDS, *more], lineterminator="\n")
    writer.writeheader()
    for row in data["rows"]:
        for column in data["columns"]:
            cell = row["cells"][column["name"]]
            run = cell["measured"] is not None

            def show(value: Any, missing: str) -> Any:
                return missing if value is None else value

            measured = NONE if run else NOT_RUN
            reference = row["role"] == "baseline"
            nothing = NONE if _is_ours(row) else NOT_REPORTED
            writer.writerow(
                {
                    "table": data["short"],
                    "scale": data["scale"],
                    "family": data["family"],
                    "bits": row["bits"],
                    "method": row["method"],
                    "role": row["role"],
                    "run": show(row["run"], NONE),
                    "column": column["name"],
                    "standin": str(column["standin"]).lower(),
                    "evidence": QUOTED if row["evidence"] == QUOTED else cell["evidence"],
                    "reported": show(cell["reported"], nothing),
                    "measured": show(cell["measured"], NOT_RUN),
                    "measured_low": show(cell["measured_low"], measured),
                    "measured_high": show(cell["measured_high"], measured),
                    "seed_spread": show(cell["seed_spread"], measured),
                    "delta_reported": show(cell["delta_reported"], NONE if reference else nothing),
                    "delta_measured": show(cell["delta_measured"], NONE if reference else NOT_RUN),
                    "delta_low": show(cell["delta_low"], NONE if reference else measured),
                    "delta_high": show(cell["delta_high"], NONE if reference else measured),
                    "resolvable": show(cell["resolvable"], NONE if reference else measured),
                    "n": show(cell["n"], NOT_RUN),
                    "seeds": " ".join(map(str, cell["seeds"])) or NOT_RUN,
                    **{
                        name: value
                        for one in recordings
                        for name, value in _recorded_fields(one, row, cell).items()
                    },
                }
            )
    return stream.getvalue()


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "†": r"$\dagger$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "β": r"$\beta$",
    "η": r"$\eta$",
    "κ": r"$\kappa$",
    "ω": r"$\omega$",
    "²": "$^2$",
    "<": r"$<$",
    ">": r"$>$",
}


def tex_escape(text: str) -> str:
    """Text as LaTeX would print it."""
    return "".join(_TEX.get(character, character) for character in text.replace("->", "→"))


def _tex_tabular(head: Sequence[Sequence[str]], body: Sequence[Sequence[str]], left: int) -> str:
    """A booktabs tabular: `left` columns of text, then as many columns under each first head."""
    width = len(body[0])
    size = (width - left) // len(head[0])
    top = " & ".join(
        [*[""] * left, *(rf"\multicolumn{{{size}}}{{c}}{{{tex_escape(one)}}}" for one in head[0])]
    )
    rules = " ".join(
        rf"\cmidrule(lr){{{left + 1 + size * i}-{left + size * (i + 1)}}}"
        for i in range(len(head[0]))
    )
    lines = [
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (width - left)}}}",
        r"\toprule",
        top + r" \\",
        rules,
        " & ".join(tex_escape(one) for one in head[1]) + r" \\",
        r"\midrule",
        # an opening bracket right after \\ would be read as its optional argument
        *(" & ".join("{}" + t if t[:1] == "[" else t for t in map(tex_escape, line)) + r" \\"
          for line in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines)


def _tex_start(data: Mapping[str, Any]) -> list[str]:
    return [
        "% Needs \\usepackage{booktabs,graphicx}.",
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{tex_escape(data['title'])} (scale {tex_escape(data['scale'])}).}}",
        rf"\label{{tab:{data['short']}}}",
        r"\resizebox{\linewidth}{!}{%",
    ]


def score_tex(data: Mapping[str, Any]) -> str:
    columns = data["columns"]
    names = [column["name"] for column in columns]
    others = _recordings(data)
    standin = any(one["standin"] for one in others)
    heads = [_heading({**one, "standin": one["standin"] or standin}) for one in columns]
    recorded = [_recorded_heading(one) for one in others]
    second = ["Bits", "Method", *["reported", "measured", *recorded] * len(columns)]
    body = []
    for row in data["rows"]:
        line = [bits_text(row), method_text(row)]
        for name in names:
            line += _score_cells(data, row, name)
        body.append(line)
    parts = [
        *_tex_start(data),
        _tex_tabular([heads, second], body, 2) + "}",
    ]
    if _has_deltas(data):
        deltas = []
        for row in data["rows"]:
            if row["role"] == "baseline":
                continue
            line = [bits_text(row), method_text(row)]
            for name in names:
                line += _delta_cells(data, row, name)
            deltas.append(line)
        marked = [f"Δ {one}" for one in ("reported", "measured", *recorded)]
        second = ["Bits", "Method", *marked * len(columns)]
        parts += [
            "",
            r"\medskip",
            r"\resizebox{\linewidth}{!}{%",
            _tex_tabular([heads, second], deltas, 2) + "}",
        ]
    parts += _tex_end(data)
    return "\n".join(parts) + "\n"


def _tex_end(data: Mapping[str, Any]) -> list[str]:
    return [
        "",
        r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
        *(tex_escape(note) + r"\par" for note in data["footnotes"]),
        r"\end{minipage}",
        r"\end{table}",
    ]


# --- summaries ------------------------------------------------------------------------------------


def _places(value: float | None, places: int, missing: str) -> str:
    return missing if value is None else f"{value:,.{places}f}".replace("-", "−")


def summary_reported_text(column: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    if cell["reported"] is None:
        return NOT_REPORTED
    if column["signed"]:
        return signed(cell["reported"], column["places"])
    return _places(cell["reported"], column["places"], NOT_REPORTED)


def summary_measured_text(column: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    if cell["measured"] is None:
        return NOT_RUN

    def show(value: float) -> str:
        places = column["places"]
        return signed(value, places) if column["signed"] else _places(value, places, NOT_RUN)

    text = show(cell["measured"])
    if cell["low"] is not None:
        text += f" [{show(cell['low'])}, {show(cell['high'])}]"
    if cell["seed_spread"] is not None:
        text += f" ± {_places(cell['seed_spread'], column['places'], NONE)}"
    return text


def _summary_heading(column: Mapping[str, Any]) -> str:
    return _heading(column) + (f" ({column['unit']})" if column["unit"] else "")


def _summary_grid(data: Mapping[str, Any]) -> list[list[str]]:
    """Heads and lines: the row's labels, then a column's reported number, where the table has
    reported numbers, and its measured one."""
    head = list(data["labels"])
    for column in data["columns"]:
        if data["has_reported"]:
            head += [f"{column['name']} reported", f"{_summary_heading(column)} measured"]
        else:
            head.append(_summary_heading(column))
    lines = [head]
    for row in data["rows"]:
        line = [str(label) for label in row["labels"]]
        for column in data["columns"]:
            cell = row["cells"][column["name"]]
            if data["has_reported"]:
                line.append(summary_reported_text(column, cell))
            line.append(summary_measured_text(column, cell))
        lines.append(line)
    return lines


def summary_markdown(data: Mapping[str, Any]) -> str:
    head = [f"# {data['title']}", "", f"Scale `{data['scale']}`, family `{data['family']}`.", ""]
    body = [_grid(_summary_grid(data))] if data["rows"] else [f"{NOT_RUN}."]
    return "\n".join([*head, *body, *_notes(data)]) + "\n"


SUMMARY_FIELDS = (
    *("table", "scale", "family", "row", "column", "unit", "standin"),
    *("reported", "measured", "low", "high", "seed_spread"),
)


def summary_csv(data: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, SUMMARY_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in data["rows"]:
        for column in data["columns"]:
            cell = row["cells"][column["name"]]
            absent = NOT_RUN if cell["measured"] is None else NONE
            shown = {
                "reported": NOT_REPORTED if data["has_reported"] else NONE,
                "measured": NOT_RUN,
                **dict.fromkeys(("low", "high", "seed_spread"), absent),
            }
            writer.writerow(
                {
                    "table": data["short"],
                    "scale": data["scale"],
                    "family": data["family"],
                    "row": " | ".join(map(str, row["labels"])),
                    "column": column["name"],
                    "unit": column["unit"] or NONE,
                    "standin": str(column["standin"]).lower(),
                    **{k: missing if cell[k] is None else cell[k] for k, missing in shown.items()},
                }
            )
    return stream.getvalue()


def summary_tex(data: Mapping[str, Any]) -> str:
    grid = _summary_grid(data)
    left = len(data["labels"])
    rows = [" & ".join("{}" + t if t[:1] == "[" else t for t in map(tex_escape, line)) + r" \\"
            for line in grid]  # fmt: skip
    tabular = [
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(grid[0]) - left)}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    return "\n".join([*_tex_start(data), *tabular, *_tex_end(data)]) + "\n"
