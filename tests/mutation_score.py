"""python tests/mutation_score.py: the share of mutants that a test noticed, by package.

Reads what `mutmut run` left in `mutants/` and exits with 1 where a package's score is below
`REQUIRED`. `mutmut show NAME` prints a mutant that survived.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from mutmut.stats import status_by_exit_code

REQUIRED = 95.0  # percent of a package's mutants
# A mutant that never ends, or crashes the interpreter, was noticed too.
NOTICED = ("killed", "timeout", "segfault")


def outcomes(folder: Path) -> dict[str, dict[str, str]]:
    """Package -> mutant -> its status in mutmut's words.

    Args:
        folder: `mutants/`, with one `.meta` file of JSON beside each mutated module.
    """
    packages: dict[str, dict[str, str]] = defaultdict(dict)
    for file in sorted(folder.rglob("*.py.meta")):
        module = file.relative_to(folder)
        # A folder of grace is a package; of replication only single files are mutated.
        package = "/".join(module.parts[:2]) if module.parts[0] == "grace" else str(module)[:-5]
        for mutant, code in json.loads(file.read_text())["exit_code_by_key"].items():
            packages[package][mutant] = status_by_exit_code[code]
    return packages


def main() -> int:
    packages = outcomes(Path("mutants"))
    if not packages:
        sys.exit("error: mutants/ has no results: run `mutmut run` first")
    failed = False
    for package, statuses in packages.items():
        counts = Counter(statuses.values())
        ran = len(statuses) - counts["not checked"]
        if not ran:
            continue
        for mutant, status in statuses.items():
            if status not in (*NOTICED, "not checked"):
                print(f"{status}: {mutant}")
        score = 100 * sum(counts[status] for status in NOTICED) / ran
        failed |= score < REQUIRED
        print(f"{package}: {score:.1f} % of {ran} mutants noticed, {dict(counts)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
