"""A table's JSON content as markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from replication.report.tables.text import (
    NONE,
    NOT_RECORDED,
    NOT_REPORTED,
    NOT_RUN,
    QUOTED,
    Data,
    TextGrid,
    evidence_text,
    has_deltas,
    model_of,
    models_text,
    recordings_of,
    score_grid,
    starred,
    summary_grid,
)

# --- markdown -------------------------------------------------------------------------------------


def markdown_grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table whose columns are padded to equal width."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in (heads, *rows)]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def markdown(data: Data) -> str:
    """The table with its heading and footnotes."""
    about = f"Scale `{data['scale']}`, family `{data['family']}`."
    about, parts = " ".join(filter(None, [about, models_text(data)])), []
    if data["kind"] == "summary":
        grid = summary_grid(data)
        parts.append(markdown_grid(grid.heads, grid.rows) if grid.rows else f"{NOT_RUN}.")
    else:
        sizes = [f"{starred(c['name'], c['standin'])} {c['n']}" for c in data["columns"] if c["n"]]
        about += f" Questions: {', '.join(sizes)}." if sizes else ""
        scores = score_grid(data)
        scores = scores.with_column("Evidence", [evidence_text(data, row) for row in data["rows"]])
        retention = data["quantity"] == "retention"
        parts.append(f"## {'Percent of the baseline' if retention else 'Scores'}")
        parts.append(markdown_grid(scores.heads, scores.rows))
        if has_deltas(data):
            deltas = score_grid(data, delta=True)
            parts.append("## Difference from the baseline")
            parts.append(markdown_grid(deltas.heads, deltas.rows))
    notes = (note.replace("*", "\\*", 1) if note[0] == "*" else note for note in data["footnotes"])
    parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join([f"# {data['title']}", about, *parts]) + "\n"


# --- CSV ------------------------------------------------------------------------------------------

_SUMMARY_FIELDS = (
    *("table", "scale", "family", "row", "column", "unit", "standin"),
    *("reported", "measured", "low", "high", "seed_spread"),
)
_COMPARED = ("delta_measured", "delta_low", "delta_high", "resolvable")
_MEASURED = ("measured", "measured_low", "measured_high", "seed_spread", *_COMPARED, "n", "seeds")
_RECORDED = {
    "": "measured",
    "_low": "measured_low",
    "_high": "measured_high",
    "_seed_spread": "seed_spread",
    "_delta": "delta_measured",
    "_delta_low": "delta_low",
    "_delta_high": "delta_high",
    "_n": "n",
    "_standin": "standin",
    "_seeds": "seeds",
}
"""What a line of CSV says of a recording, behind its id, and where it stands."""


def csv(data: Data) -> str:
    """One line per row and column; no field is empty."""
    import pandas as pd

    summary = data["kind"] == "summary"
    lines = _summary_lines(data) if summary else _score_lines(data)
    frame = pd.DataFrame(lines, columns=_SUMMARY_FIELDS if summary else None, dtype=object)
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def _measured_fields(cell: Data, missing: str, reference: bool) -> dict[str, Any]:
    """What was measured or recorded of a cell, with words for what there is not.

    Args:
        cell: The measured part of a cell, or a recording's part.
        missing: The word for a number that could be measured.
        reference: Whether the row is the baseline, which is compared with nothing.
    """
    fields: dict[str, Any] = {"seeds": " ".join(map(str, cell["seeds"])) or missing}
    for key in _MEASURED[:-1]:
        fields[key] = cell[key]
        if cell[key] is None:
            compared = reference and key in _COMPARED
            lacks = cell["measured"] is None or (missing == NOT_RUN and key == "delta_measured")
            fields[key] = missing if lacks and not compared else NONE
    return fields


def _score_lines(data: Data) -> Iterator[dict[str, Any]]:
    for row in data["rows"]:
        reference, nothing = row["role"] == "baseline", NONE if row["ours"] else NOT_REPORTED
        for column in data["columns"]:
            cell = row["cells"][column["name"]]
            own = _measured_fields(cell, NOT_RUN, reference)
            reported, delta = cell["reported"], cell["delta_reported"]
            line = {
                **_head(data),
                **{key: row[key] for key in ("bits", "method", "role")},
                "model": model_of(data, row["role"]),
                "run": row["run"] or NONE,
                "column": column["name"],
                "standin": _lower(column["standin"]),
                "evidence": QUOTED if row["evidence"] == QUOTED else cell["evidence"],
                "reported": nothing if reported is None else reported,
                **{key: own[key] for key in _MEASURED[:4]},
                "delta_reported": (NONE if reference else nothing) if delta is None else delta,
                **{key: own[key] for key in _MEASURED[4:]},
            }
            for recording in recordings_of(data):
                other = _measured_fields(
                    cell["recorded"][recording["id"]], NOT_RECORDED, reference
                ) | {"standin": _lower(recording["standin"])}
                for suffix, key in _RECORDED.items():
                    line[f"recorded_{recording['id']}{suffix}"] = other[key]
            yield line


def _summary_lines(data: Data) -> Iterator[dict[str, Any]]:
    for row in data["rows"]:
        for column in data["columns"]:
            cell = row["cells"][column["name"]]
            absent = NOT_RUN if cell["measured"] is None else NONE
            words = {
                "reported": NOT_REPORTED if data["has_reported"] else NONE,
                **dict.fromkeys(("measured", "low", "high", "seed_spread"), absent),
            }
            yield {
                **_head(data),
                "row": " | ".join(map(str, row["labels"])),
                "column": column["name"],
                "unit": column["unit"] or NONE,
                "standin": _lower(column["standin"]),
                **{key: word if cell[key] is None else cell[key] for key, word in words.items()},
            }


def _head(data: Data) -> dict[str, str]:
    return {"table": data["short"], "scale": data["scale"], "family": data["family"]}


def _lower(value: bool) -> str:
    return str(value).lower()


# --- LaTeX ----------------------------------------------------------------------------------------

_TEX: dict[str, str | int | None] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
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
    return text.replace("->", "→").translate(str.maketrans(_TEX))


def _tex_row(cells: Iterable[str]) -> str:
    escaped = map(tex_escape, cells)
    # an opening bracket right after \\ would be read as its optional argument
    return " & ".join("{}" + text if text[:1] == "[" else text for text in escaped) + r" \\"


def _tex_tabular(grid: TextGrid) -> str:
    """A booktabs tabular that fills the line."""
    left, columns = grid.labels, len(grid.heads) - grid.labels
    head = [_tex_row(grid.heads)]
    if grid.groups:
        width = columns // len(grid.groups)
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{tex_escape(one)}}}" for one in grid.groups]
        firsts = range(left + 1, left + columns + 1, width)
        rules = (rf"\cmidrule(lr){{{first}-{first + width - 1}}}" for first in firsts)
        head = [" & ".join([*[""] * left, *spans]) + r" \\", " ".join(rules), _tex_row(grid.sides)]
    lines = [
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * left}{'r' * columns}}}",
        r"\toprule",
        *head,
        r"\midrule",
        *map(_tex_row, grid.rows),
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    return "\n".join(lines)


def _caption(data: Data) -> str:
    return " ".join(filter(None, [f"{data['title']} (scale {data['scale']}).", models_text(data)]))


def tex(data: Data) -> str:
    """A floating table with its footnotes, in LaTeX with booktabs."""
    if data["kind"] == "summary":
        grids = [summary_grid(data)]
    else:
        grids = [score_grid(data), *([score_grid(data, delta=True)] if has_deltas(data) else [])]
    lines = [
        "% Needs \\usepackage{booktabs,graphicx}.",
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{tex_escape(_caption(data))}}}",
        rf"\label{{tab:{data['short']}}}",
        "\n\n\\medskip\n".join(map(_tex_tabular, grids)),
        "",
        r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
        *(tex_escape(note) + r"\par" for note in data["footnotes"]),
        r"\end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
