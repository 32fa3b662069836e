"""A performance report as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from replication.measure import printing
from replication.measure.method import OURS
from replication.measure.printing import ResultTable, range_text

_MIB = 2**20
TITLES = {
    "fake_quantization": "A training step of one decoder layer",
    "scale_search": "Start of the scales",
    "gated_distillation": "GDKD, forward and backward",
    "projection": "Vocabulary projection, cross-entropy and GDKD, forward and backward",
    "relational": "RCKA of one image, forward and backward",
    "loading": "A batch of conversations with photos, in one process",
}
_HEADER = ("case", "against", "ms", "its ms", "time ×", "MiB", "its MiB", "memory ×")


def markdown(report: Mapping[str, Any]) -> str:
    """The tables in markdown."""
    origin = report["provenance"]
    device = ", ".join(filter(None, [report["device"], origin.get("instruction_set")]))
    introduction = (
        f"Measured on {device}: medians of {report['settings']['repeats']} rounds, in "
        "which the ways take turns; a quotient's ends are those of single rounds. Peak memory: "
        f"{report['memory']}."
    )
    return printing.markdown(introduction, tables(report))


def tables(report: Mapping[str, Any]) -> list[ResultTable]:
    """Every part, then the bounds."""
    parts = {name: report["parts"][name] for name in TITLES if name in report["parts"]}
    result = [
        ResultTable(
            TITLES[name],
            _HEADER,
            [
                _cells(row, other)
                for row in part["rows"]
                for other in sorted(row["ways"])
                if other != OURS
            ],
        )
        for name, part in parts.items()
    ]
    bounds = [
        (bound["what"], f"{bound['at_most']:g}", range_text(bound), verdict(bound))
        for part in parts.values()
        for bound in part["bounds"]
    ]
    if bounds:
        result.append(ResultTable("Bounds", ("what", "at most", "measured", ""), bounds))
    return result


def _cells(row: Mapping[str, Any], other: str) -> Sequence[str]:
    ours, theirs = row["ways"][OURS], row["ways"][other]
    time, memory = f"{1000 * ours['seconds']['median']:.1f}", f"{ours['peak_bytes'] / _MIB:.1f}"
    if "not_run" in theirs:
        return (row["case"], other, time, f"not run: {theirs['not_run']}", "", memory, "", "")
    return (
        row["case"],
        other,
        time,
        f"{1000 * theirs['seconds']['median']:.1f}",
        range_text(row["time"][other]),
        memory,
        f"{theirs['peak_bytes'] / _MIB:.1f}",
        f"{row['memory'][other]:.3f}",
    )


def verdict(bound: Mapping[str, Any]) -> str:
    """Whether a bound was held by all rounds, by their median, or not."""
    if bound["high"] <= bound["at_most"]:
        return "held"
    if bound["median"] <= bound["at_most"]:
        return "held by the median"
    return "not held"
