"""What is mutated, what runs against it, and what an end of the tests' process is taken to mean."""

import re
import signal

import engine
import pytest
from accepted import Mutant, read

PACKAGES = {package.name: package for package in engine.packages()}
packages = pytest.mark.parametrize("name", PACKAGES)


def test_the_packages_are_those_that_are_promised():
    promised = ["replication/stats/bootstrap.py"]
    for folder in ("quantization", "distillation", "int4"):
        files = (engine.ROOT / "grace" / folder).rglob("*.py")
        promised += [str(path.relative_to(engine.ROOT)) for path in files]
    for file in promised:
        assert [one for one in PACKAGES.values() if one.has([file])], file


@packages
def test_their_tests_are_there(name):
    package = PACKAGES[name]
    for file in package.tests:
        assert (engine.ROOT / file).is_file(), file
    for one in package.deselect:
        file, _, test = one.partition("::")
        assert file in package.tests
        assert re.search(rf"(?m)^def {test}\(", (engine.ROOT / file).read_text()), one


@packages
def test_their_lists_are_of_functions_that_are_there(name):
    for mutants in read(PACKAGES[name].accepted).values():
        for mutant in mutants:
            assert PACKAGES[name].has([mutant.file])
            source = (engine.ROOT / mutant.file).read_text()
            assert f"def {mutant.function.rpartition('.')[2]}(" in source, mutant
            for line in mutant.change.splitlines():
                assert line[0] == "+" or line[2:] in source, mutant


def test_paths_choose_packages_and_files():
    int4 = PACKAGES["int4"]
    assert int4.has([]) and int4.has(["grace/int4/*"]) and int4.has(["*/pack.py", "nothing"])
    assert not int4.has(["grace/quantization/*"]) and not int4.has(["pack.py"])
    found = [
        engine.Found(file, Mutant(file, "f", ""), None)
        for file in ("grace/int4/pack.py", "grace/int4/linear.py")
    ]
    assert engine.of_paths(found, ["grace/int4/p*"]) == found[:1]
    assert engine.of_paths(found, []) == found


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (None, None),
        (0, engine.LIVED),
        (5, engine.LIVED),  # no test was selected
        (33, engine.LIVED),  # no test reaches the function
        (1, engine.KILLED),
        (3, engine.KILLED),
        (-signal.SIGSEGV, engine.KILLED),
        (-signal.SIGXCPU, engine.TIMED_OUT),
        (-signal.SIGKILL, engine.TIMED_OUT),
        (255, engine.TIMED_OUT),  # the tests could not be run
        (2, engine.TIMED_OUT),
    ],
)
def test_only_a_failing_test_or_a_crash_kills(code, status):
    assert engine.status_of(code) == status


def test_a_sample_is_the_same_each_time_and_of_the_size_asked_for():
    mutants = [Mutant("grace/int4/pack.py", "pack", f"- {k}\n+ {k + 1}") for k in range(4000)]
    drawn = [one for one in mutants if engine.in_sample(one, 40)]
    assert 60 <= len(drawn) <= 140
    assert drawn == [one for one in mutants if engine.in_sample(one, 40)]
    assert all(engine.in_sample(one, 1) for one in mutants)


def test_the_outcome_counts_every_end():
    ends = [engine.KILLED] * 5 + [engine.LIVED, engine.TIMED_OUT]
    found = [engine.Found(str(k), Mutant("f.py", "f", str(k)), end) for k, end in enumerate(ends)]
    outcome = engine.outcome(PACKAGES["int4"], found)
    assert (outcome.package, outcome.total) == ("int4", 7)
    assert outcome.lived == (found[5].mutant,) and outcome.timed_out == (found[6].mutant,)
