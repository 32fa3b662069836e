"""One hash for the code that a module really runs: its imports within this repository, all the way.

    stage_hashes()          # {"baseline": "3f0c...", "claims": "91ab...", ...}

A stage of the pipeline follows from the code that it reaches and from no other, and nobody has to
list files for that.

What counts is the syntax tree: no comment, docstring, formatting or number of a release. In a
file's hash an import from the repository stands as the hash of the imported file, not as its name.
So a module can be renamed or moved at no cost, while another thing imported under the same name
is noticed. It costs a run more than needed only if the importing code has to change as well
(after ``import a.b``), or where a module moves into a package whose ``__init__.py`` has code.
"""

import ast
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from grace.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("grace", "replication")

_OUTSIDE = (
    "replication.base.warm",
    "replication.doctor",
    "replication.plan.checks",
    "replication.settings.checks",
)
"""Modules that are not followed, nor what lies below them: they may refuse to start a stage, start
it elsewhere or print something, but they never change a result."""

_DEPTH = 3
"""So many imports deep a file's hash looks. With one, two ``__init__.py`` that do nothing but
import would be the same to a file that imports a name from either."""

_NO_MEANING = {"ctx", "kind", "type_comment"}


class _Link(NamedTuple):
    """A file that another one names; ``target`` is None for one of ``_OUTSIDE``."""

    target: Path | None
    name: str = ""
    bound: str = ""


class _Source(NamedTuple):
    """A file's own content, and the files that it names."""

    content: str
    links: tuple[_Link, ...] = ()


def closure(module: str, root: Path = ROOT) -> list[Path]:
    """The files that a module's results may depend on.

    Args:
        module: dotted name. A package stands for its ``__init__.py``; what ``python -m package``
            runs is ``package.__main__``.
        root: the folder of the packages.

    Returns:
        The Python files, and the data files that they name, sorted.

    Raises:
        InputError: for a module that does not exist or has a syntax error.
    """
    return sorted(_Tree(root).closure([module]))


def code_hash(*modules: str, root: Path = ROOT) -> str:
    """SHA-256 of all the code that some modules run; arguments and errors as of `closure`."""
    assert modules, "the code of no module"
    return _Tree(root).code_hash(modules)


def stage_hashes(root: Path = ROOT) -> dict[str, str]:
    """The hash of every stage by the name of its file, sorted; errors as of `closure`."""
    tree = _Tree(root)
    names = sorted(path.stem for path in (root / "replication" / "stages").glob("[!_]*.py"))
    return {name: tree.code_hash([f"replication.stages.{name}"]) for name in names}


class _Tree:
    """The packages' files; each is read once, when it is first reached."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, Path] = {}
        self.data: list[Path] = []
        self._sources: dict[Path, _Source] = {}
        self._hashes: dict[tuple[Path, int], str] = {}
        for file in sorted(file for one in _PACKAGES for file in (root / one).rglob("*")):
            parts = file.relative_to(root).with_suffix("").parts
            if not file.is_file() or any(one[0] == "." or one == "__pycache__" for one in parts):
                continue
            if file.suffix != ".py":
                self.data.append(file)
            elif parts[-1] == "__init__":  # goes before a module of the same name
                self.modules[".".join(parts[:-1])] = file
            else:
                self.modules.setdefault(".".join(parts), file)

    def closure(self, modules: Iterable[str]) -> set[Path]:
        """All files that modules run or read, with the ``__init__.py`` of every parent."""
        found: set[Path] = set()
        waiting = [self._module(name) for name in modules]
        while waiting:
            file = waiting.pop()
            if file not in found:
                found.add(file)
                waiting += [link.target for link in self._source(file).links if link.target]
                if file.suffix == ".py":
                    parents = (".".join(one.parts) for one in file.relative_to(self.root).parents)
                    waiting += [self.modules[name] for name in parents if name in self.modules]
        return found

    def code_hash(self, modules: Iterable[str]) -> str:
        """The hash over a closure's files, but those without any code."""
        files = [file for file in self.closure(modules) if self._source(file).content]
        return _sha256(*sorted(self._hash(file, _DEPTH) for file in files))

    def target(self, module: str, where: str) -> Path | None:
        """The file of an imported module; None if it is not followed."""
        if any(f"{module}.".startswith(f"{name}.") for name in _OUTSIDE):
            return None
        return self._module(module, where)

    def _module(self, name: str, where: str = "") -> Path:
        if name not in self.modules:
            raise InputError(f"{where}there is no module {name} in {self.root}")
        return self.modules[name]

    def _source(self, file: Path) -> _Source:
        if file not in self._sources:
            content = file.read_bytes()
            if file.suffix != ".py":
                self._sources[file] = _Source(hashlib.sha256(content).hexdigest())
            else:
                try:
                    module = ast.parse(content, str(file))
                except (SyntaxError, ValueError) as error:
                    raise InputError(f"{file} cannot be read as Python: {error}") from error
                self._sources[file] = _Reader(self, file).read(module)
        return self._sources[file]

    def _hash(self, file: Path | None, depth: int) -> str:
        """The hash of a file and, so many imports deep, of those that it names."""
        if file is None:
            return "outside"
        if (file, depth) not in self._hashes:
            content, links = self._source(file)
            parts = [content]
            for link in links if depth else ():
                parts += [self._hash(link.target, depth - 1), link.name, link.bound]
            self._hashes[file, depth] = _sha256(*parts)
        return self._hashes[file, depth]


class _Reader:
    """Writes a syntax tree as text that every version of Python writes alike.

    An import from the packages, or a string that names a module of theirs, leaves a gap in it.
    """

    def __init__(self, tree: _Tree, file: Path) -> None:
        self._tree = tree
        self._file = file
        self._package = file.parent.relative_to(tree.root).parts
        self._near = [f.relative_to(file.parent) for f in tree.data if file.parent in f.parents]
        self._text: list[str] = []
        self._links: list[_Link] = []
        self._data: set[Path] = set()

    def read(self, module: ast.Module) -> _Source:
        """The file's content, which is empty for one without code, and its links."""
        self._write_list(_run(module.body))
        data = (_Link(self._file.parent / path, path.as_posix()) for path in sorted(self._data))
        return _Source(",".join(self._text), (*self._links, *data))

    def _write(self, value: Any) -> None:
        if isinstance(value, list):
            self._text.append("[")
            self._write_list(value)
            self._text.append("]")
        elif not isinstance(value, ast.AST):
            self._text.append(ascii(value))
        elif (name := _string(value)) and "." in name and name in self._tree.modules:
            self._link(name)
            if f"{name}.__main__" in self._tree.modules:
                self._link(f"{name}.__main__")
        else:
            self._data.update(path for path in self._near if _names(value, path))
            self._text.append(type(value).__name__)
            for field in value._fields:
                part = getattr(value, field, None)
                if isinstance(value, ast.JoinedStr):  # Python 3.12 adds an empty string to some
                    part = [one for one in value.values if getattr(one, "value", None) != ""]
                part = _run(part) if isinstance(part, list) else part
                if field not in _NO_MEANING and part is not None and part != []:
                    self._text.append(f"{field}=")
                    self._write(part)
            self._text.append(";")

    def _write_list(self, values: list[Any]) -> None:
        for imports, group in itertools.groupby(values, _is_import):
            if imports:
                self._write_imports(group)
            else:
                for value in group:
                    self._write(value)

    def _write_imports(self, statements: Iterable[Any]) -> None:
        """Imports in a row, by the names that they bind: a rename may sort them otherwise."""
        found = [one for statement in statements for one in self._imported(statement)]
        for module, name, bound, line in sorted(found, key=lambda one: one[2]):
            if module.partition(".")[0] not in _PACKAGES:
                self._text.append(ascii((module, name, bound)))
            elif name and f"{module}.{name}" in self._tree.modules:
                self._link(f"{module}.{name}", "", bound, line)
            else:
                self._link(module, name, bound, line)

    def _imported(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str, str, int]]:
        """Module, name in it, name that it is bound to, and line, of what a statement imports."""
        for alias in node.names:
            if isinstance(node, ast.Import):
                bound = alias.asname or alias.name.partition(".")[0]
                yield alias.name, "", bound, node.lineno
            else:
                above = self._package[: len(self._package) + 1 - node.level] if node.level else ()
                module = ".".join([*above, *filter(None, [node.module])])
                if node.level > len(self._package):
                    raise InputError(f"{self._file}:{node.lineno}: imports from above its package")
                yield module, alias.name, alias.asname or alias.name, node.lineno

    def _link(self, module: str, name: str = "", bound: str = "", line: int = 0) -> None:
        target = self._tree.target(module, f"{self._file}:{line}: ")
        self._links.append(_Link(target, name, bound))
        self._text.append("gap")


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _string(node: object) -> str:
    """The value of a string constant; empty for anything else."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) else ""


def _is_import(node: object) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _run(nodes: list[Any]) -> list[Any]:
    """Statements without docstrings, ``pass``, the number of the release and what only a type
    checker reads."""
    kept = []
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in _called(node.test):
            kept += _run(node.orelse)
        elif not (
            isinstance(node, ast.Pass)
            or _is_version(node)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        ):
            kept.append(node)
    return kept


def _is_version(node: object) -> bool:
    names = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(name, ast.Name) and name.id == "__version__" for name in names)


def _called(node: ast.expr) -> tuple[str | None, str | None]:
    return getattr(node, "id", None), getattr(node, "attr", None)


def _names(node: ast.AST, path: Path) -> bool:
    """Whether a node names a file: as a string, or as a part of a path its folder or an f-string.

    Args:
        node: any node of a syntax tree.
        path: the file, from the folder of the module.
    """
    text = path.as_posix()
    if name := _string(node):
        return f"/{text}".endswith(f"/{name}")
    parts: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        parts = [node.left, node.right]
    elif isinstance(node, ast.Call) and {"Path", "joinpath"}.intersection(_called(node.func)):
        parts = node.args
    for part in parts:
        if (folder := _string(part).rstrip("/")) and text.startswith(f"{folder}/"):
            return True
        if isinstance(part, ast.JoinedStr):
            pattern = "".join(_string(one) or "*" for one in part.values)
            depth = pattern.count("/") + 1
            if pattern.strip("*/") and len(path.parts) == depth and fnmatch(text, pattern):
                return True
    return False
