"""The examples in docstrings run as they stand."""

import doctest
import importlib
import pkgutil

import pytest

import grace

MODULES = [
    module.name
    for name in ("quantization", "distillation", "int4")
    for module in pkgutil.walk_packages(
        importlib.import_module(f"{grace.__name__}.{name}").__path__, f"grace.{name}."
    )
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    for example in finder.find(importlib.import_module(name), globs={}):
        assert doctest.DocTestRunner(verbose=False).run(example).failed == 0, example.name


def test_public_classes_have_an_example():
    from grace.distillation import DistillationConfig, IBController
    from grace.int4 import Int4Linear
    from grace.quantization import FakeQuantLinear, QuantSpec

    for public in (QuantSpec, FakeQuantLinear, DistillationConfig, IBController, Int4Linear):
        assert ">>>" in public.__doc__, public
