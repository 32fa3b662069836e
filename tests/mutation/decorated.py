"""Lets mutmut mutate decorated functions too.

By itself it passes over every function with a decorator other than staticmethod and classmethod:
here `backward` of the autograd functions, what runs under `torch.no_grad`, and properties. Its
reason is that the decorators would run once more for each mutant. They do not have to: the function
that chooses the mutant keeps them, the mutants themselves are plain.
"""

from typing import Any

import libcst as cst
from mutmut.mutation import file_mutation

KEPT = ("staticmethod", "classmethod")  # the mutants need them to be looked up in their class

_skips = file_mutation.MutationVisitor._skip_node_and_children
_arrange = file_mutation.function_trampoline_arrangement


def _skips_undecorated(visitor: Any, node: cst.CSTNode) -> bool:
    decorated = isinstance(node, cst.FunctionDef) and node.decorators
    return _skips(visitor, node.with_changes(decorators=()) if decorated else node)


def _arrange_decorated(function: cst.FunctionDef, mutants: Any, class_name: str | None) -> Any:
    kept = [
        one
        for one in function.decorators
        if isinstance(one.decorator, cst.Name) and one.decorator.value in KEPT
    ]
    plain = function.with_changes(decorators=kept)
    declared, (choosing, *copies), assigned, names = _arrange(plain, mutants, class_name)
    choosing = choosing.with_changes(decorators=[*function.decorators, choosing.decorators[-1]])
    return declared, [choosing, *copies], assigned, names


def install() -> None:
    """For this process and those forked from it."""
    file_mutation.MutationVisitor._skip_node_and_children = _skips_undecorated
    file_mutation.function_trampoline_arrangement = _arrange_decorated
