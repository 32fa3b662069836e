"""Every public name of `grace` has an example in its docstring, and those with a result run."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest

import grace

PACKAGES = [
    module.name
    for module in pkgutil.iter_modules(grace.__path__, "grace.")
    if module.ispkg and module.name not in ("grace.cli", "grace.bench")  # commands alone
]
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    if module.name != "grace.evaluation.lmms"  # it imports lmms-eval
]


def public():
    """(package, name) of every public class and function."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield package, name


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    for example in finder.find(importlib.import_module(name), globs={}):
        assert doctest.DocTestRunner(verbose=False).run(example).failed == 0, example.name


@pytest.mark.parametrize(("package", "name"), public())
def test_every_public_name_has_an_example(package, name):
    text = inspect.getdoc(getattr(importlib.import_module(package), name))
    if ">>>" in text:
        return  # it runs in the test above
    example = re.search(r"::\n\n((?: {4,}.*\n?|\n)+)", text)
    assert example, f"{package}.{name} has no example"
    assert ast.parse(textwrap.dedent(example[1])).body
