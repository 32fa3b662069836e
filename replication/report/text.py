"""Tables as text: markdown, CSV and LaTeX, all made from a table's JSON content.

A table of scores ("scores") has two grids, of scores and of differences from the baseline; a
summary ("summary") has one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from replication.quantities import signed

NOT_RUN = "not run"
NOT_REPORTED = "not reported"
NONE = "none"
QUOTED = "reported"


def _number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.1f}"


def _is_ours(row: Mapping[str, Any]) -> bool:
    return bool(row["ours"])


def _reported_text(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    return _number(cell["reported"], NONE if _is_ours(row) else NOT_REPORTED)


def _measured_text(cell: Mapping[str, Any]) -> str:
    text = _number(cell["measured"], NOT_RUN)
    if cell["measured_low"] is not None:
        text += f" [{cell['measured_low']:.1f}, {cell['measured_high']:.1f}]"
    return text if cell["seed_spread"] is None else f"{text} ± {cell['seed_spread']:.1f}"


def _delta_reported_text(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    if cell["delta_reported"] is None:
        return NONE if _is_ours(row) else NOT_REPORTED
    return signed(cell["delta_reported"])


def _delta_measured_text(cell: Mapping[str, Any]) -> str:
    if cell["delta_measured"] is None:
        return NOT_RUN
    text = signed(cell["delta_measured"])
    if cell["delta_low"] is None:
        return text
    return f"{text} [{signed(cell['delta_low'])}, {signed(cell['delta_high'])}]"


def bits_text(row: Mapping[str, Any]) -> str:
    return "BF16" if row["bits"] == 16 else f"INT{row['bits']}"


def _method(row: Mapping[str, Any]) -> str:
    if row["role"] in ("teacher", "baseline"):
        return f"{row['method']} ({row['role']})"
    return f"{row['method']}{' †' if _is_ours(row) else ''}"


def _evidence(row: Mapping[str, Any]) -> str:
    if row["evidence"] == QUOTED:
        return "reported, not rerun"
    if row["evidence"] == NOT_RUN:
        return NOT_RUN
    count = len(row["seeds"])
    return f"{row['evidence']}, {count} seed{'' if count == 1 else 's'}"


def _heading(column: Mapping[str, Any]) -> str:
    return f"{column['name']}{'*' if column['standin'] else ''}"


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
        score_lines[0] += [f"{column['name']} reported", f"{_heading(column)} measured"]
    score_lines[0].append("Evidence")
    for row in data["rows"]:
        line = [bits_text(row), _method(row)]
        for name in names:
            cell = row["cells"][name]
            line += [_reported_text(row, cell), _measured_text(cell)]
        score_lines.append([*line, _evidence(row)])
    sized = [f"{_heading(column)} {column['n']}" for column in columns if column["n"]]
    text = [f"# {data['title']}", "", f"Scale `{data['scale']}`, family `{data['family']}`."]
    if sized:
        text[-1] += f" Questions: {', '.join(sized)}."
    what = "Percent of the baseline" if data["quantity"] == "retention" else "Scores"
    text += ["", f"## {what}", "", _grid(score_lines)]
    if _has_deltas(data):
        delta_lines = [["Bits", "Method"]]
        for column in columns:
            delta_lines[0] += [f"{column['name']} Δ reported", f"{_heading(column)} Δ measured"]
        for row in data["rows"]:
            if row["role"] == "baseline":
                continue
            line = [bits_text(row), _method(row)]
            for name in names:
                cell = row["cells"][name]
                line += [_delta_reported_text(row, cell), _delta_measured_text(cell)]
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


def score_csv(data: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, SCORE_FIELDS, lineterminator="\n")
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
    """A booktabs tabular: `left` columns of text, then pairs of numbers."""
    width = len(body[0])
    top = " & ".join(
        [*[""] * left, *(rf"\multicolumn{{2}}{{c}}{{{tex_escape(one)}}}" for one in head[0])]
    )
    rules = " ".join(
        rf"\cmidrule(lr){{{left + 1 + 2 * i}-{left + 2 + 2 * i}}}" for i in range(len(head[0]))
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
    heads = [_heading(column) for column in columns]
    second = ["Bits", "Method", *["reported", "measured"] * len(columns)]
    body = []
    for row in data["rows"]:
        line = [bits_text(row), _method(row)]
        for name in names:
            cell = row["cells"][name]
            line += [_reported_text(row, cell), _measured_text(cell)]
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
            line = [bits_text(row), _method(row)]
            for name in names:
                cell = row["cells"][name]
                line += [_delta_reported_text(row, cell), _delta_measured_text(cell)]
            deltas.append(line)
        second = ["Bits", "Method", *["Δ reported", "Δ measured"] * len(columns)]
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


def _summary_reported(column: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    if cell["reported"] is None:
        return NOT_REPORTED
    if column["signed"]:
        return signed(cell["reported"], column["places"])
    return _places(cell["reported"], column["places"], NOT_REPORTED)


def _summary_measured(column: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
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
                line.append(_summary_reported(column, cell))
            line.append(_summary_measured(column, cell))
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
