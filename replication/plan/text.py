"""Plans as text: sizes, durations, and tables for the terminal."""

from rich.table import Table as Grid

from replication.base.terminal import table
from replication.plan.needs import Plan, Table
from replication.plan.resources import Device


def size(count: float) -> str:
    """Bytes as text, in decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def duration(seconds: float | None) -> str:
    """Seconds as text; a dash where nothing is known."""
    if seconds is None:
        return "-"
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.0f} s"


def cost_table(plan: Plan, devices: int, full: bool) -> Grid:
    """A line for every table, and one for all.

    Args:
        plan: what the tables need.
        devices: number of devices that the duration is for.
        full: whether downloads and evaluation are counted; otherwise training alone is timed.
    """
    header = ["table", "models", "runs"]
    if full:
        header += ["download", "GPU-hours", "of training", "duration"]
    elif any(entry.train_seconds is not None for entry in plan.tables.values()):
        header.append("training")
    rows = []
    for entry in (*plan.tables.values(), plan.total):
        runs = sum(model.copies for model in entry.models if model.trained)
        row = [entry.name, str(len(entry.models)), str(runs)]
        if full:
            row += _full_costs(entry, devices)
        elif len(header) > len(row):
            row.append(duration(entry.train_seconds))
        rows.append(row)
    return table(header, rows, right=range(1, len(header)), indent=2)


def _full_costs(entry: Table, devices: int) -> list[str]:
    train, evaluate = entry.train_seconds, entry.evaluate_seconds
    both = None if train is None or evaluate is None else train + evaluate
    return [
        size(entry.download_bytes),
        "-" if both is None else f"{both / 3600:,.0f}",
        "-" if train is None else f"{train / 3600:,.0f}",
        duration(None if both is None else both / devices),
    ]


def model_table(plan: Plan) -> Grid:
    """The models of every table by family, with the number of seeds of each."""
    rows = []
    for entry in plan.tables.values():
        for family in dict.fromkeys(model.family for model in entry.models):
            names = [
                f"{model.name} x {model.copies}" if model.copies > 1 else model.name
                for model in entry.models
                if model.family == family
            ]
            rows.append((entry.name, f"{family}: {', '.join(names)}"))
    return table((), rows, indent=2)


def formula(name: str, device: Device) -> list[str]:
    """How the seconds on a device follow, in words."""
    return [
        "seconds = samples x (operations / (rate x utilisation) + traffic / bandwidth)",
        "operations a sample: 2 x weights a token forward, 4 backward, 2 recomputed, 2 of the",
        "  teacher's, and attention's; traffic: fake quantization, vocabulary (docs/scaling.md)",
        f"rate, bandwidth: data sheet of {name}; utilisation {device.utilisation:.2f}",
    ]
