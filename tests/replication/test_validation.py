"""What a file holds against its type: one line for each kind of error, with its place."""

from typing import Annotated, Literal

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from grace.errors import InputError
from replication.base.validation import (
    TEXT_OR_MAPPING,
    Flag,
    MappingTag,
    Number,
    Positive,
    Text,
    TextTag,
    closed,
    record,
    validate,
)


@closed
class Circle(TypedDict):
    kind: Literal["circle"]
    radius: Number


@closed
class Square(TypedDict):
    kind: Literal["square"]
    side: Number


@record
class Named:
    name: Text


@record
class Drawing:
    shapes: list[Annotated[Circle | Square, Field(discriminator="kind")]]
    title: Annotated[Annotated[Text, TextTag] | Annotated[Named, MappingTag], TEXT_OR_MAPPING]
    sizes: dict[Text, Positive] = Field(alias="of", default_factory=dict)
    colour: Literal["red", "green"] = "red"
    visible: Flag = True

    def __post_init__(self) -> None:
        if len(self.shapes) > 2:
            raise InputError("more than two shapes")


CIRCLE = {"kind": "circle", "radius": 1}
GOOD = {"shapes": [CIRCLE], "title": "one"}


def test_what_fits_is_typed_and_frozen():
    drawing = validate(Drawing, {**GOOD, "of": {"a": 1}}, "x.yaml")
    assert (drawing.shapes[0]["radius"], drawing.sizes, drawing.title) == (1.0, {"a": 1}, "one")
    assert validate(Drawing, {**GOOD, "title": {"name": "x"}}, "x.yaml").title == Named("x")
    with pytest.raises(AttributeError):
        drawing.colour = "green"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "gren"}, "colour 'gren' is unknown; did you mean 'green'? (known: red, green)"),
        (
            {"colr": "red"},
            "key 'colr' is unknown; did you mean 'colour'? (known: shapes,",
        ),
        ({"visible": "yes"}, "visible is 'yes'; it must be true or false"),
        ({"shapes": 3}, "shapes is 3; it must be a list"),
        ({"shapes": [{}]}, "shapes[0] lacks the key 'kind'; add it"),
        ({"shapes": [{"kind": "circel"}]}, "shapes[0].kind 'circel' is unknown; did you mean"),
        ({"shapes": [{"kind": "square"}]}, "shapes[0] lacks the key 'side'; add it"),
        ({"shapes": [{**CIRCLE, "side": 1}]}, "shapes[0]: key 'side' is unknown (known: kind, rad"),
        ({"shapes": [{**CIRCLE, "radius": float("nan")}]}, "radius is nan; it must be a finite"),
        ({"shapes": [CIRCLE] * 3}, "more than two shapes"),
        ({"title": " "}, "title is ' '; it must be text that is not blank"),
        ({"title": {"nam": "x"}}, "title: key 'nam' is unknown; did you mean 'name'?"),
        ({"of": {"a": 0}}, "of.a is 0; it must be at least 1"),
        ({"of": {1: 1}}, "of: key 1 is not text; put it in quotes"),
        ({"of": {"a": "1e3"}}, "YAML reads a power of ten as text"),
    ],
)
def test_an_error_names_the_place_the_value_and_what_is_allowed(changes, message):
    with pytest.raises(InputError) as raised:
        validate(Drawing, {**GOOD, **changes}, "x.yaml")
    text = str(raised.value)
    assert text.startswith("x.yaml: ") and message in text and "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"), [([], "a mapping"), ({}, "lacks the key 'shapes'")]
)
def test_the_file_as_a_whole_is_named(content, message):
    with pytest.raises(InputError, match=f"x.yaml: the file .*{message}"):
        validate(Drawing, content, "x.yaml")
