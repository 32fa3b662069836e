"""The list of accepted mutants, and what it makes of a run."""

from collections import Counter

import pytest
from accepted import KINDS, Mutant, Outcome, read

FILE = "grace/quantization/spec.py"
ONE = Mutant(FILE, "QuantSpec.qmax", "- return 1\n+ return 2")
OTHER = Mutant(FILE, "width", "- return a\n+ return b")
ENTRY = """\
- file: grace/quantization/spec.py
  function: QuantSpec.qmax
  change: |
    - return 1
    + return 2
  kind: equivalent
  reason: nobody can tell
"""


def listed(**kinds):
    return {kind: Counter(kinds.get(kind, ())) for kind in KINDS}


def test_a_mutant_is_what_changes_and_not_where():
    diff = ["--- a", "+++ b", "@@ -1,3 +1,3 @@", " def f():", "-        return 1", "+    return 2"]
    assert Mutant.of(FILE, "QuantSpec.qmax", diff) == ONE
    assert Mutant.of(FILE, "QuantSpec.qmin", diff) != ONE
    assert str(ONE) == f"{FILE}: QuantSpec.qmax\n    - return 1\n    + return 2"
    signed = ["- -x", "+ +x"]  # lines that begin with a sign of their own
    assert Mutant.of(FILE, "f", signed).change == "- -x\n+ +x"


def test_a_list_is_read_by_kind(tmp_path):
    path = tmp_path / "spec.yaml"
    assert read(path) == listed()
    path.write_text("# nothing yet\n")
    assert read(path) == listed()
    path.write_text(ENTRY + ENTRY + ENTRY.replace("equivalent", "loops"))
    assert read(path) == listed(equivalent=[ONE, ONE], loops=[ONE])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("nobody can tell", '" "', "entry 1: give one of"),
        ("equivalent", "trivial", "entry 1: give one of"),
        ("reason: nobody", "why: nobody", "entry 1 has the keys"),
        ("  function: QuantSpec.qmax\n", "", "entry 1 has the keys"),
    ],
)
def test_an_entry_without_a_reason_or_a_known_kind_is_refused(tmp_path, old, new, said):
    path = tmp_path / "spec.yaml"
    path.write_text(ENTRY.replace(old, new))
    with pytest.raises(ValueError, match=said):
        read(path)


def test_a_run_passes_with_every_survivor_listed():
    run = Outcome("quantization", 40, (ONE,), (OTHER,))
    assert run.complaints(listed(equivalent=[ONE], loops=[OTHER]), whole=True) == []
    # one of 40 lives; the one that loops is killed
    assert run.score(Counter([OTHER])) == 97.5
    assert run.score(Counter()) == 95.0


@pytest.mark.parametrize("whole", [True, False])
def test_what_lives_unlisted_is_complained_of(whole):
    run = Outcome("quantization", 400, (ONE, ONE), (OTHER,))
    found = run.complaints(listed(equivalent=[ONE]), whole=whole)
    assert found == [f"lives, unlisted: {ONE}", f"ended by the time limit, unlisted: {OTHER}"]
    # listed as looping, it may not live
    found = run.complaints(listed(loops=[ONE, ONE, OTHER]), whole=False)
    assert found == [f"lives, unlisted: {ONE}"] * 2


def test_what_is_listed_and_killed_is_complained_of_in_a_whole_run():
    run = Outcome("quantization", 400, (), ())
    names = listed(equivalent=[ONE], loops=[OTHER])
    assert run.complaints(names, whole=False) == []
    assert run.complaints(names, whole=True) == [
        f"listed as equivalent, but killed or gone: {ONE}",
        f"listed as loops, but killed or gone: {OTHER}",
    ]


def test_a_score_below_what_is_required_is_complained_of_though_all_is_listed():
    run = Outcome("quantization", 19, (ONE,))
    assert run.complaints(listed(equivalent=[ONE]), whole=True) == [
        "score 94.7 %: 95 % is required"
    ]
    assert (
        Outcome("quantization", 20, (ONE,)).complaints(listed(equivalent=[ONE]), whole=True) == []
    )
