"""docs/api.md: the public names of `grace`, from its docstrings.

    python -m replication.documentation

reads the sources without importing them (griffe); only the options of the `grace` command come from
its parser. A module's public names are those of `__all__`, or, where it has none, those that it
defines itself without a leading underscore.
"""

from __future__ import annotations

import re
import sys
from argparse import Action
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import griffe

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import write_text_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
MODULES = (
    "grace.models",
    "grace.data",
    "grace.quantization",
    "grace.distillation",
    "grace.training",
    "grace.int4",
    "grace.int4.backends",
    "grace.int4.layouts",
    "grace.export",
    "grace.decoding",
    "grace.decoding.attention",
    "grace.torchvision_compat",
    "grace.errors",
    "grace.files",
)
"""In the page's order. Modules below a package are documented through its `__all__`; two are listed
because a back end is written against them."""

HEAD = """\
# The package `grace`

Written by `make docs` from the docstrings. Shapes stand in parentheses: B sequences, S positions, N
tokens, V the vocabulary, d widths. What refuses its input raises `grace.errors.InputError`, a
`ValueError` that names the thing, its value and the mend. How it fits together:
[method.md](method.md); a whole run: [tutorial.py](tutorial.py).
"""
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")
_NAME = r'[`"]{0,2}[A-Za-z_]\w*[`"]{0,2}'
_NAMES = re.compile(rf"{_NAME}(?:, {_NAME})*: ")
_ROLE = re.compile(r":\w+:`([^`]*)`")
# What Markdown would take for its own: a tag, strikethrough, emphasis.
_MARKED = re.compile(r"(<(?=[A-Za-z/!])|~|(?<=\S)\*|\*(?=\S)|(?<!\w)_|_(?!\w))")
_LONGEST = 88  # of a signature on one line


def load(root: Path = ROOT) -> griffe.Module:
    """The package as griffe reads it. Raises InputError where there is none."""
    try:
        found = griffe.load("grace", search_paths=[root], allow_inspection=False)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{root}: holds no package grace that can be read ({error})") from error
    assert isinstance(found, griffe.Module)
    return found


def public(package: griffe.Module, module: str) -> dict[str, griffe.Object]:
    """The public names of a module and what they stand for, in the order of the sources.

    Names of another module that `__all__` gives again are followed to where they are defined.
    Raises InputError for a name in `__all__` that is not defined.
    """
    found = package[module.removeprefix("grace.")]
    names = [str(name) for name in found.exports or ()] or [
        name for name, member in found.members.items() if member.is_public and not member.is_module
    ]
    made = {}
    for name in names:
        try:
            member: Any = found.members[name]
            member = member.final_target if member.is_alias else member
            # a function may have the name of the module that it is taken from
            made[name] = member.members[name] if member.is_module else member
        except (KeyError, griffe.AliasResolutionError) as error:
            raise InputError(f"{module}: {name} is in __all__ and is not defined") from error
    order = {str(one.filepath): place for place, one in enumerate(_imported(package, found))}
    return dict(
        sorted(made.items(), key=lambda at: (order[str(at[1].filepath)], at[1].lineno or 0))
    )


def _imported(package: griffe.Module, module: Any) -> list[griffe.Module]:
    """A module and those that it takes names from, by name."""
    taken = {member.target_path.rpartition(".")[0] for member in module.members.values()
             if member.is_alias and member.target_path.startswith("grace.")}  # fmt: skip
    others = [package[path.removeprefix("grace.")] for path in sorted(taken) if path != "grace"]
    return [module, *(other for other in others if other.is_module)]


def methods(owner: griffe.Object) -> Iterator[griffe.Object]:
    """The public methods, properties and documented fields of a class, in the order of the source.

    A method without a docstring overrides a documented one, of the library's or of its own base.
    """
    for name, member in owner.members.items():
        if member.is_alias or member.docstring is None:
            continue
        if not name.startswith("_") or name == "__call__":
            yield member  # type: ignore[misc]


# --- one entry ------------------------------------------------------------------------------------


def signature(item: griffe.Object, name: str) -> str:
    """How a name is called, or its type and value, as Python."""
    if isinstance(item, griffe.Function):
        return _call(name, item.parameters, str(item.returns or ""))
    if isinstance(item, griffe.Class):
        bases = ", ".join(map(str, item.bases))
        shown = f"class {name}({bases})" if bases else f"class {name}"
        own = any(isinstance(one, griffe.Attribute) and one.annotation is not None
                  for one in item.members.values()) and "dataclass" in item.labels  # fmt: skip
        if own or isinstance(item.members.get("__init__"), griffe.Function):
            shown += f"\n\n{_call(name, item.parameters, '')}"
        return shown
    assert isinstance(item, griffe.Attribute)
    kind = f": {item.annotation}" if item.annotation else ""
    if "property" in item.labels:
        return name + kind
    value = str(item.value) if item.value is not None else ""
    shown = f" = {value}" if value and len(value) <= _LONGEST - len(name + kind) else ""
    return name + kind + shown


def _call(name: str, parameters: griffe.Parameters, returns: str) -> str:
    parts: list[str] = []
    starred = False
    for one in parameters:
        if one.name in ("self", "cls") or one.name.startswith("_"):
            continue
        kind = one.kind
        if kind is griffe.ParameterKind.keyword_only and not starred:
            parts.append("*")
            starred = True
        mark = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
        starred = starred or kind is griffe.ParameterKind.var_positional
        text = mark.get(kind, "") + one.name if kind else one.name
        text += f": {one.annotation}" if one.annotation is not None else ""
        if one.default is not None and not text.startswith("*"):
            text += f" = {one.default}" if one.annotation is not None else f"={one.default}"
        parts.append(text)
    after = f" -> {returns}" if returns else ""
    line = f"{name}({', '.join(parts)}){after}"
    if len(line) <= _LONGEST:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){after}"])


def markdown(text: str) -> str:
    """A docstring as Markdown: sections and hanging descriptions as lists, examples as code."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        if all(line.startswith("  ") for line in lines):  # set off: code
            found.append(indent(dedent(block), " " * 4))
            continue
        while lines:
            section = _SECTION.fullmatch(lines[0].rstrip())
            if section:
                body = []
                del lines[0]
                while lines and lines[0].startswith("    "):
                    body.append(lines.pop(0)[4:])
                found.append(f"**{section[1]}**")
                found.append("\n".join(_items(body)))
                continue
            ends = [i for i, line in enumerate(lines) if i and _SECTION.fullmatch(line.rstrip())]
            part, lines = lines[: ends[0]] if ends else lines, lines[ends[0] :] if ends else []
            found.append("\n".join(_items(part) if _hanging(part) else map(_inline, part)))
    return re.sub(r"(?m)[ ]?::$", ":", "\n\n".join(found))


def _hanging(lines: list[str]) -> bool:
    """Whether a paragraph is a list of names with what they mean, one a line or indented below."""
    starts = [line for line in lines if not line.startswith(" ")]
    indented = len(starts) < len(lines)
    named = [bool(_NAMES.match(line)) for line in starts]
    return all(named) and (indented or len(lines) > 1) and len(starts) > 0


def _items(lines: list[str]) -> list[str]:
    """A line that is not indented starts an item, unless it only goes on with the one before."""
    listed = any(_NAMES.match(line) for line in lines if not line.startswith(" "))
    made = []
    for line in lines:
        if listed and not line.startswith(" "):
            name, colon, rest = line.partition(": ")
            names = ", ".join(f"`{one.strip('`')}`" for one in name.split(", "))
            named = bool(_NAMES.match(line))
            made.append(f"- {names}{colon}{_inline(rest)}" if named else f"- {_inline(line)}")
        else:
            made.append(f"  {_inline(line.strip())}" if listed else _inline(line.strip()))
    return made


def _inline(line: str) -> str:
    """Outside of code, what Markdown would take for its own is escaped."""
    line = _ROLE.sub(r"`\1`", line)
    parts = re.split(r"(``.+?``|`[^`]+`)", line)
    for place in range(0, len(parts), 2):
        parts[place] = _MARKED.sub(r"\\\1", parts[place])
    return "".join(parts)


def _entry(item: griffe.Object, path: str, level: int, *, linked: bool) -> list[str]:
    name = path.rpartition(".")[2]
    owner = "" if level == 3 else path.rpartition(".")[0].rpartition(".")[2] + "."
    kinds = {"property", "classmethod", "staticmethod"} & item.labels
    source = f" · [source]({source_of(item)})" if linked else ""
    title = f"{'#' * level} `{path if level == 3 else owner + name}`"
    lines = [title, ""]
    if kinds or source:
        lines += [" ".join([*sorted(kinds)]) + source.removeprefix("" if kinds else " · "), ""]
    lines += ["```python", signature(item, name), "```", ""]
    if item.docstring is not None:
        lines += [markdown(item.docstring.value), ""]
    return lines


def source_of(item: griffe.Object) -> str:
    """The file that defines something, from docs/."""
    path = item.filepath
    assert isinstance(path, Path)
    place = path.parts[len(path.parts) - path.parts[::-1].index("grace") - 1 :]
    return "/".join(["..", *place])


# --- the page -------------------------------------------------------------------------------------


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _module(package: griffe.Module, module: str) -> list[str]:
    found: Any = package[module.removeprefix("grace.")]
    lines = [f"## `{module}`", "", f"[source]({source_of(found)})", ""]
    if found.docstring is not None:
        lines += [markdown(found.docstring.value), ""]
    for name, item in public(package, module).items():
        lines += _entry(item, f"{module}.{name}", 3, linked=item.filepath != found.filepath)
        if isinstance(item, griffe.Class):
            for member in methods(item):
                field = isinstance(member, griffe.Attribute) and "property" not in member.labels
                if not field:
                    lines += _entry(member, f"{module}.{name}.{member.name}", 4, linked=False)
            lines += _fields(item)
    return lines


def _fields(item: griffe.Class) -> list[str]:
    fields = [
        member
        for member in methods(item)
        if isinstance(member, griffe.Attribute) and "property" not in member.labels
    ]
    if not fields:
        return []
    rows = []
    for member in fields:
        assert member.docstring is not None
        told = " ".join(markdown(member.docstring.value).split())
        rows.append((f"`{signature(member, member.name)}`", told))
    return _table("field", rows)


def _options(actions: list[Action]) -> list[str]:
    rows = []
    for one in actions:
        if one.dest == "help":
            continue
        shown, told = ", ".join(one.option_strings) or one.dest, one.help or ""
        if one.option_strings and one.nargs != 0:
            value = "|".join(map(str, one.choices)) if one.choices else one.dest.upper()
            shown += f" {one.metavar or value}"
        if one.required and one.option_strings:
            told = f"{told} (required)".lstrip()
        rows.append((f"`{shown}`", _inline(told.replace("%(default)s", str(one.default)))))
    return _table("argument", rows)


def _table(what: str, rows: list[tuple[str, str]]) -> list[str]:
    """Two columns in Markdown, of which the second has no heading."""
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {what} | |", "|---|---|", *(f"| {row} |" for row in cells), ""]


def _commands() -> list[str]:
    """The `grace` command: what every subcommand says of itself."""
    from grace.cli import COMMANDS, parser

    made = parser()
    choices: dict[str, Any] = {}
    for action in made._actions:  # argparse has no public way to its arguments
        if isinstance(action.choices, dict):
            choices = dict(action.choices)
    lines = ["## The command `grace`", "", "[source](../grace/cli/__init__.py)", ""]
    lines += [f"{made.description} Exit code 2 for bad input.", ""]
    for name, module in COMMANDS.items():
        lines += [f"### `grace {name}`", "", f"[source](../grace/cli/{name}.py)", ""]
        lines += [markdown(module.DESCRIPTION), ""]
        lines += ["```", *(line.removeprefix("  ") for line in module.EXAMPLES.splitlines())]
        lines += ["```", "", *_options(choices[name]._actions)]
    return lines


def page(root: Path = ROOT) -> str:
    """The whole document. Raises InputError for a name in `__all__` that is not defined."""
    package = load(root)
    toc = []
    for module in MODULES:
        found: Any = package[module.removeprefix("grace.")]
        summary = found.docstring.value.splitlines()[0] if found.docstring else ""
        toc.append(f"- [`{module}`](#{anchor(module)}): {_inline(summary)}")
        names = public(package, module)
        toc.append("  " + ", ".join(f"[`{n}`](#{anchor(f'{module}.{n}')})" for n in sorted(names)))
    toc.append(f"- [The command `grace`](#{anchor('The command `grace`')})")
    lines = [HEAD, *toc, ""]
    for module in MODULES:
        lines += _module(package, module)
    lines += _commands()
    return "\n".join(lines).rstrip() + "\n"


@command
def main() -> None:
    write_text_atomic(PAGE, page())


if __name__ == "__main__":
    sys.exit(main())
