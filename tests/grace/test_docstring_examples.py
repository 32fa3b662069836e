"""The examples in docstrings run as they stand."""

import doctest
import importlib
import pkgutil

import pytest

from grace import distillation, int4, quantization
from grace.distillation import DistillationConfig, IBController
from grace.int4 import Int4Linear
from grace.quantization import FakeQuantLinear, QuantSpec

MODULES = [
    module.name
    for package in (quantization, distillation, int4)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    for example in finder.find(importlib.import_module(name), globs={}):
        assert doctest.DocTestRunner(verbose=False).run(example).failed == 0, example.name


def test_public_classes_have_an_example():
    for public in (QuantSpec, FakeQuantLinear, DistillationConfig, IBController, Int4Linear):
        assert ">>>" in public.__doc__, public
