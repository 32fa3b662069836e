"""Input that is nearly right, and input that is not: documents and bytes, mutated at random."""

import copy
import datetime
import pickle
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, 2**63, 10**400, -0.0, 0.5, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "0", "-1", "nan", "null", "\0", "\ud800", "ä" * 40, "../../etc/passwd", "/etc"),
    *([], {}, [[]], [None], {"": None}, {"id": "x"}, [1, 2, 3], ["a", "a"]),
    *((), datetime.date(2026, 1, 1), b"\xff\x00", {1: 2}, {None: 1}),
)
"""Values that a document may suddenly hold. JSON cannot say the last row; YAML can."""
ODD_JSON = ODD[:-5]


def _nested(depth: int) -> Any:
    found: Any = None
    for _ in range(depth):
        found = [found]
    return found


def places(document: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every node below the root."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    for node in waiting:  # which grows meanwhile
        kind = type(node)
        if kind is dict:
            found += [(node, key) for key in node]
            waiting += [value for value in node.values() if type(value) in _CONTAINERS]
        elif kind is list:
            found += [(node, key) for key in range(len(node))]
            waiting += [value for value in node if type(value) in _CONTAINERS]
    return found


_CONTAINERS = {dict, list}


def documents(valid: Any, odd: tuple[Any, ...] = ODD_JSON) -> st.SearchStrategy:
    """`valid` (mappings, lists and scalars) with one to three nodes replaced, removed, renamed,
    repeated, swapped or wrapped; now and then something else altogether."""
    kept = pickle.dumps(valid)  # a fresh copy of a large document, ten times as fast as deepcopy
    # as functions, because nobody wants to see what they give in an error
    return _documents(lambda: pickle.loads(kept), lambda: odd)


@st.composite
def _documents(draw, fresh: Callable[[], Any], odd_of: Callable[[], tuple]) -> Any:
    document, odd = fresh(), odd_of()
    if draw(st.integers(0, 49)) == 0:
        return copy.deepcopy(draw(st.sampled_from((document, *odd))))
    for _ in range(draw(st.integers(1, 3))):
        known = places(document)
        if not known:
            break
        container, key = known[draw(st.integers(0, len(known) - 1))]
        value = container[key]
        kind = draw(st.integers(0, 12))
        if kind <= 4:
            container[key] = copy.deepcopy(odd[draw(st.integers(0, len(odd) - 1))])
        elif kind == 5:
            del container[key]
        elif kind == 6:
            if isinstance(container, dict):
                container[draw(st.sampled_from(("x", "", "id", "kind", f"{key}s")))] = value
            else:
                container.insert(key, copy.deepcopy(value))
        elif kind == 7:
            other, place = known[draw(st.integers(0, len(known) - 1))]
            if place in other if isinstance(other, dict) else place < len(other):
                container[key] = copy.deepcopy(other[place])
        elif kind == 8:
            container[key] = [value]
        elif isinstance(value, bool | int | float):
            other = (-value, value + 1, value // 2, value * 2, value * 10**9, str(value))
            container[key] = draw(st.sampled_from(other))
        elif isinstance(value, str):
            container[key] = draw(
                st.sampled_from((value[:-1], value + "x", value.upper(), value * 9))
            )
        else:
            container[key] = _nested(draw(st.sampled_from((3, 50))))
    return document


def contents(valid: bytes, grammar: bytes = b'{}[]",:-.e019 \n') -> st.SearchStrategy:
    """`valid` with one to four runs of bytes flipped, removed, inserted, repeated or moved, or cut
    off; now and then bytes that have nothing to do with it.

    grammar: bytes that are more likely than others to be put in.
    """
    return _contents(lambda: valid, grammar)


@st.composite
def _contents(draw, valid_of: Callable[[], bytes], grammar: bytes) -> bytes:
    valid = valid_of()
    if draw(st.integers(0, 24)) == 0:
        return draw(st.binary(max_size=64))
    found = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        size = len(found)
        at = draw(st.integers(0, size)) if size else 0
        kind = draw(st.integers(0, 6))
        if kind == 0 and at < size:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1 and at < size:
            found[at] = draw(st.sampled_from((0, 1, 127, 128, 255)))
        elif kind == 2:
            del found[at : at + draw(st.integers(1, 16))]
        elif kind == 3:
            found[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == 4:
            found[at:at] = bytes([grammar[draw(st.integers(0, len(grammar) - 1))]])
        elif kind == 5:
            start = draw(st.integers(0, size)) if size else 0
            found[at:at] = found[start : start + draw(st.integers(1, 64))]
        else:
            del found[at:]
    return bytes(found)
