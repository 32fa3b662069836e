"""Input that is nearly right: documents and bytes, mutated at random."""

import copy
import datetime
import pickle
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD_JSON: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, 2**63, 10**400, -0.0, 0.5, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "0", "-1", "nan", "null", "\0", "\ud800", "ä" * 40, "../../etc/passwd", "/etc"),
    *([], {}, [[]], [None], {"": None}, {"id": "x"}, [1, 2, 3], ["a", "a"]),
)
"""Values that a document may suddenly hold."""
ODD_YAML = (*ODD_JSON, (), datetime.date(2026, 1, 1), b"\xff\x00", {1: 2}, {None: 1})


def nodes(document: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every node below the root."""
    known: list[tuple[Any, Any]] = []
    waiting = [document]
    for node in waiting:  # which grows meanwhile
        keys = node if type(node) is dict else range(len(node)) if type(node) is list else ()
        known += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return known


def documents(valid: Any, odd: tuple[Any, ...] = ODD_JSON) -> st.SearchStrategy:
    """`valid` (mappings, lists and scalars) with one to three nodes replaced, removed, renamed,
    repeated, swapped or wrapped; now and then something else altogether."""
    kept = pickle.dumps(valid)  # a fresh copy of a large document, ten times as fast as deepcopy
    return _documents(lambda: pickle.loads(kept), lambda: odd)  # functions: short in an error


@st.composite
def _documents(draw, fresh: Callable[[], Any], odd_of: Callable[[], tuple]) -> Any:
    document, odd = fresh(), odd_of()
    if draw(st.integers(0, 49)) == 0:
        return copy.deepcopy(draw(st.sampled_from(odd)))
    for _ in range(draw(st.integers(1, 3))):
        known = nodes(document)
        if not known:
            break
        container, key = draw(st.sampled_from(known))
        value = container[key]
        kind = draw(st.integers(0, 9))
        if kind <= 3:
            container[key] = copy.deepcopy(draw(st.sampled_from(odd)))
        elif kind == 4:
            del container[key]
        elif kind == 5 and isinstance(container, dict):
            container[draw(st.sampled_from(("x", "", "id", "kind", f"{key}s")))] = value
        elif kind == 5:
            container.insert(key, copy.deepcopy(value))
        elif kind == 6:
            other, place = draw(st.sampled_from(known))
            if place in other if isinstance(other, dict) else place < len(other):
                container[key] = copy.deepcopy(other[place])
        elif kind == 7:
            container[key] = [[[value]]]
        elif isinstance(value, bool | int | float):
            container[key] = draw(st.sampled_from((-value, value + 1, value * 10**9, str(value))))
        elif isinstance(value, str):
            container[key] = draw(st.sampled_from((value[:-1], value.upper(), value * 9)))
    return document


def contents(valid: bytes) -> st.SearchStrategy:
    """`valid` with one to four runs of bytes flipped, removed, inserted or repeated, or cut off."""
    return _contents(lambda: valid)


@st.composite
def _contents(draw, valid_of: Callable[[], bytes]) -> bytes:
    content = bytearray(valid_of())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.integers(0, 5))
        if kind == 0 and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del content[at : at + draw(st.integers(1, 16))]
        elif kind == 2:
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == 3:
            content[at:at] = bytes([draw(st.sampled_from(b"{}[]\"':,-.e019&*!|>%@#\n\t\0"))])
        elif kind == 4:
            start = draw(st.integers(0, len(content)))
            content[at:at] = content[start : start + draw(st.integers(1, 64))]
        elif kind == 5:
            del content[at:]
    return bytes(content)
