"""Decorated functions are mutated like any other, and decorated once."""

import os
import types

import decorated
import pytest
from mutmut.mutation import file_mutation

SOURCE = """
import functools

decorations = []


def noted(function):
    decorations.append(function.__qualname__)

    @functools.wraps(function)
    def call(*args):
        return ("noted", function(*args))

    return call


@noted
def less(x):
    return x - 1


class Pair:
    left = 5

    @property
    def sum(self):
        return self.left + 2

    @staticmethod
    @noted
    def product(a, b):
        return a * b

    @classmethod
    def twice(cls):
        return cls.left * 2
"""


@pytest.fixture
def made(monkeypatch):
    for name in ("MutationVisitor._skip_node_and_children", "function_trampoline_arrangement"):
        owner, _, part = name.rpartition(".")
        holder = getattr(file_mutation, owner) if owner else file_mutation
        monkeypatch.setattr(holder, part, getattr(holder, part))  # taken back afterwards
    decorated.install()
    found = file_mutation.mutate_file_contents("sample.py", SOURCE)
    module = types.ModuleType("sample")
    exec(compile(found.code, "sample.py", "exec"), module.__dict__)
    return module, found.mutant_names


def results(module, monkeypatch, mutant):
    monkeypatch.setitem(os.environ, "MUTANT_UNDER_TEST", mutant and f"sample.{mutant}")
    pair = module.Pair()
    return module.less(4), pair.sum, module.Pair.product(6, 2), pair.twice()


def test_the_module_is_as_it_was_while_no_mutant_is_chosen(made, monkeypatch):
    module, _ = made
    assert results(module, monkeypatch, "") == (("noted", 3), 7, ("noted", 12), 10)
    assert module.decorations == ["less", "Pair.product"]  # not once more for each mutant


def test_every_mutant_of_a_decorated_function_is_its_functions_alone(made, monkeypatch):
    module, names = made
    plain = results(module, monkeypatch, "")
    places = {"x_less": 0, "xǁPairǁsum": 1, "xǁPairǁproduct": 2, "xǁPairǁtwice": 3}
    seen = {place: set() for place in places.values()}
    for name in (one for one in names if "noted" not in one):
        found = results(module, monkeypatch, name)
        place = places[name.partition("__mutmut")[0]]
        assert found[place] != plain[place]
        assert found[:place] + found[place + 1 :] == plain[:place] + plain[place + 1 :]
        seen[place].add(found[place])
    assert seen[0] == {("noted", 5), ("noted", 2)}  # x + 1, x - 2
    assert seen[1] == {3, 8}
    assert seen[2] == {("noted", 3.0)}
    assert seen[3] == {2.5, 15}
