"""The smoke replication twice, from nothing, and whether both give the same bytes.

    make determinism        # a quarter of an hour on two cores

Two copies of the repository are made in the folder for temporary files. What the clock says is not
compared: speeds of stage deploy, what training took, and the tables, the figure, the parts of
claims and the page that show them.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from repository import contents, copy_repository, python

TIMED = (
    *("deploy/", "measurements/deploy-", "tables/cost.", "tables/deploy.", "figures/deployment."),
    "report.html",
)
"""How the names of result files begin that hold times alone, or among other things."""
COMMAND = ("-m", "replication.scale", "smoke", "repro")


def without_times(name: str, content: bytes) -> object:
    """What equal replications have in common of a result file."""
    if name.startswith("training/"):
        found = json.loads(content)
        return {key: value for key, value in found.items() if key not in ("cost", "seconds")}
    if name == "claims.json":
        return [
            part
            for claim in json.loads(content)["claims"]
            for part in claim["parts"]
            if part["quantity"]["kind"] not in ("cost_ratio", "deployment")
        ]
    return content


def differences(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """The files, by their paths in a folder of results, in which two replications differ."""
    found = sorted(first.keys() ^ second.keys())
    for name in sorted(first.keys() & second.keys()):
        if not name.startswith(TIMED) and first[name] != second[name]:
            one, other = without_times(name, first[name]), without_times(name, second[name])
            found += [name] if one != other else []
    return found


def replicate(folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Results and weights of a replication in a new copy of the repository."""
    copy_repository(folder)
    started = time.monotonic()
    done = python(*COMMAND, cwd=folder, timeout=7200)
    if done.returncode:
        sys.exit(f"error: {(done.stdout + done.stderr)[-4000:]}")
    print(f"{folder.name}: {time.monotonic() - started:.0f} s", flush=True)
    models = contents(folder / ".scales" / "smoke" / "models")
    weights = {n: c for n, c in models.items() if n.endswith(".safetensors")}
    return contents(folder / "results" / "smoke"), weights


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = (replicate(Path(folder, name)) for name in ("first", "second"))
    results = differences(first[0], second[0])
    weights = sorted(
        name
        for name in first[1].keys() | second[1].keys()
        if first[1].get(name) != second[1].get(name)
    )
    timed = sum(name.startswith(TIMED) for name in first[0])
    print(f"{len(first[0]) - timed} result files and {len(first[1])} files of weights are compared")
    print(f"{timed} result files hold times and are not")
    for name in (*results, *weights):
        print(f"differs: {name}")
    sys.exit(1 if results or weights else 0)


if __name__ == "__main__":
    main()
