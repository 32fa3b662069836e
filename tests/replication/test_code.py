"""The hash of the code that a stage runs: what changes it, and what does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace.errors import InputError
from replication.base import code
from replication.base.code import ROOT, closure, code_hash, stage_hashes

WORLD = {
    "grace/__init__.py": '"""The library."""\nfrom grace.odd import version\n',
    "grace/odd.py": "version = 1\n",
    "grace/loss.py": "def loss(x):\n    return x[1:] * 2\n\n\nweight = 3\n",
    "grace/other.py": "def loss(x):\n    return x * 3\n",
    "replication/__init__.py": "",
    "replication/stages/__init__.py": '"""The stages."""\n',
    "replication/stages/_common.py": "x = 1\n",
    "replication/stages/train.py": (
        '"""Train."""\n\nfrom typing import TYPE_CHECKING\n\n'
        "from grace.loss import loss, weight\n\n"
        "if TYPE_CHECKING:\n    from grace.other import loss as unused\nelse:\n    y = 1\n\n\n"
        'def train(x):\n    """Train."""\n    return loss(x, weight)\n'
    ),
    "replication/stages/tables.py": (
        "from pathlib import Path\n\nFOLDER = Path(__file__).parent\n\n\n"
        "def table():\n    from replication.report import text\n\n    return text.show()\n"
    ),
    "replication/report/__init__.py": '"""The report."""\n',
    "replication/report/text.py": "def show():\n    return 'text'\n",
}
TRAIN, TABLES = "replication/stages/train.py", "replication/stages/tables.py"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def changed(tmp_path):
    """A function that changes files and gives the names of the stages whose hash has changed."""
    write(tmp_path, WORLD)

    def change(*edits: tuple[str, str, str]) -> set[str]:
        before = stage_hashes(tmp_path)
        for name, old, new in edits:
            text = (tmp_path / name).read_text()
            assert not old or old in text
            (tmp_path / name).write_text(text.replace(old, new) if old else text + new)
        after = stage_hashes(tmp_path)
        assert list(after) == ["tables", "train"]
        return {name for name in after if after[name] != before[name]}

    return change


def names(module: str, root: Path) -> set[str]:
    return {file.relative_to(root).as_posix() for file in closure(module, root)}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (TRAIN, "", "\n# A comment.\n"),
        (TRAIN, '"""Train."""', '"""Train a student."""'),
        (TRAIN, '    """Train."""\n', ""),
        (TRAIN, "loss(x, weight)", "loss(\n        (x), weight,\n    )"),
        (TRAIN, "import loss, weight", "import weight\nfrom grace.loss import loss"),
        (TRAIN, "from grace.other import loss as unused", "from grace.absent import other"),
        ("grace/__init__.py", "library", "package"),
        ("grace/__init__.py", "", '\n__version__ = "0.2.0"\n'),
        ("grace/odd.py", "1", "0x1  # one"),
        ("grace/odd.py", "", "pass\n"),
        ("replication/report/text.py", "'text'", 'u"""text"""'),
    ],
)
def test_what_has_no_meaning_changes_nothing(changed, file, old, new):
    assert changed((file, old, new)) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("grace/loss.py", "* 2", "* 4", {"train"}),
        ("grace/loss.py", "* 2", "* 2.0", {"train"}),
        ("grace/loss.py", "1:", ":1", {"train"}),
        ("grace/other.py", "x * 3", "x * 4", set()),
        ("grace/odd.py", "1", "2", {"train"}),  # run on the way to grace.loss
        ("replication/report/text.py", "'text'", "b'text'", {"tables"}),  # imported in a function
        ("replication/report/__init__.py", "", "x = 1\n", {"tables"}),
        ("replication/stages/__init__.py", "", "x = 1\n", {"tables", "train"}),
        ("replication/stages/_common.py", "1", "2", set()),
        (TRAIN, "import loss, weight", "import loss", {"train"}),
        (TRAIN, "import loss, weight", "import loss as weight, weight as loss", {"train"}),
        (TRAIN, "import loss, weight", "import loss, weight as wait", {"train"}),
        (TRAIN, "import TYPE_CHECKING", "import TYPE_CHECKING, Any", {"train"}),
        (TRAIN, "y = 1", "y = 2", {"train"}),
        (TRAIN, "if TYPE_CHECKING", "if not TYPE_CHECKING", {"train"}),
        (TABLES, "import text", "import __init__ as text", {"tables"}),
    ],
)
def test_code_changes_the_stages_that_reach_it(changed, file, old, new, stages):
    assert changed((file, old, new)) == stages


def test_rename_and_move_change_nothing(changed, tmp_path):
    """Sorted among the other imports by its new name, named by a string, in a new package."""
    write(tmp_path, {"replication/late.py": "x = 1\n", "replication/a/__init__.py": '"""A."""\n'})
    run = (
        "from grace.loss import weight\nfrom replication.late import x\nrun = 'replication.late'\n"
    )
    write(tmp_path, {TRAIN: run})
    before = stage_hashes(tmp_path)
    (tmp_path / "replication/late.py").rename(tmp_path / "replication/a/early.py")
    (tmp_path / "grace/loss.py").rename(tmp_path / "replication/loss.py")
    moved = run.replace("replication.late", "replication.a.early").splitlines(keepends=True)
    moved = [moved[1], moved[0].replace("grace", "replication"), moved[2]]
    write(tmp_path, {TRAIN: "".join(moved), "grace/__init__.py": ""})
    with_parent = stage_hashes(tmp_path)
    assert with_parent != before  # grace/__init__.py runs no more
    write(tmp_path, {"replication/__init__.py": WORLD["grace/__init__.py"]})
    assert stage_hashes(tmp_path)["train"] == before["train"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from grace.loss import loss", "from grace.other import loss"),
        ("from grace import loss", "from grace import other as loss"),
        ("import grace.loss as loss", "import grace.other as loss"),
        ("from grace.one import loss", "from grace.two import loss"),  # both nothing but imports
        ("x = 'grace.loss'", "x = 'grace.other'"),
        ("import grace.loss as x", "import grace.loss as y"),
        (
            "def f():\n    import grace.loss\n    f()\ndef g():\n    f()",
            "def f():\n    f()\ndef g():\n    import grace.loss\n    f()",
        ),
    ],
)
def test_another_import_of_the_same_name_is_noticed(tmp_path, old, new):
    """Even where both modules are reached anyway."""
    ways = {
        f"grace/{n}.py": f"from grace.{m} import loss"
        for n, m in (("one", "loss"), ("two", "other"))
    }
    rest = "\nimport grace.one as a\n\n1 + 1\nimport grace.two as b\n"
    write(tmp_path, {**WORLD, **ways, TRAIN: old + rest})
    before = code_hash("replication.stages.train", root=tmp_path)
    write(tmp_path, {TRAIN: new + rest})
    assert code_hash("replication.stages.train", root=tmp_path) != before


def test_closure_holds_parents_relative_imports_and_named_modules(tmp_path):
    write(tmp_path, WORLD)
    write(
        tmp_path,
        {
            "replication/report/__main__.py": "from . import text\nfrom ..more import y\n",
            "replication/more.py": "",
            TRAIN: "run = ['-m', 'replication.report', 'grace', 'grace.nothing']\n",
        },
    )
    parents = {"replication/__init__.py", "replication/stages/__init__.py", TRAIN}
    report = {f"replication/report/{name}.py" for name in ("__init__", "__main__", "text")}
    assert names("replication.stages.train", tmp_path) == parents | report | {"replication/more.py"}
    assert names("replication.report", tmp_path) == {
        "replication/__init__.py",
        "replication/report/__init__.py",
    }


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        ("FOLDER / 'a.yaml'", ["a.yaml"]),
        ("'page/b.css'", ["page/b.css"]),
        ("['b.css']", ["page/b.css"]),
        ("FOLDER / 'page'", ["page/b.css", "page/c.js"]),
        ("FOLDER.joinpath('page/')", ["page/b.css", "page/c.js"]),
        ("FOLDER / 'page' / f'{x}.js'", ["page/b.css", "page/c.js"]),
        ("FOLDER / f'a.{x}'", ["a.yaml"]),
        ("FOLDER / f'{x}' / '' / '.', FOLDER / f'{x}.css', FOLDER + 'page'", []),
        ("f'a.{x}', 'page', '', '.', 'x.yaml', 'ml'", []),
        ("Path('up.json')", []),
    ],
)
def test_named_data_files_count(tmp_path, expression, read):
    files = ["a.yaml", "page/b.css", "page/c.js", "page/__pycache__/d.js", "../up.json"]
    write(tmp_path, {**WORLD, **{f"replication/stages/{name}": name for name in files}})
    write(tmp_path, {TABLES: f"x = {expression}\n"})
    kept = names("replication.stages.tables", tmp_path)
    assert sorted(one for one in kept if not one.endswith(".py")) == [
        f"replication/stages/{name}" for name in read
    ]
    for name in files:
        before = stage_hashes(tmp_path)
        write(tmp_path, {f"replication/stages/{name}": "changed"})
        assert (stage_hashes(tmp_path) != before) == (name in read)


def test_data_files_do_not_stand_for_each_other(changed, tmp_path):
    one, two = "replication/stages/a.yaml", "replication/stages/b.yaml"
    write(tmp_path, {one: "1", two: "2", TABLES: "x = 'a.yaml', 'b.yaml'\n"})
    assert changed((one, "1", "2"), (two, "2", "1")) == {"tables"}


def test_what_is_outside_is_not_followed(changed, tmp_path):
    name = code._OUTSIDE[0]
    file = f"{name.replace('.', '/')}.py"
    write(tmp_path, {file: "from grace.other import loss\n"})
    assert changed((TRAIN, "", f"from {name} import loss as check\n")) == {"train"}
    assert changed((file, "", "x = 1\n"), ("grace/other.py", "3", "4")) == set()
    assert file not in names("replication.stages.train", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from grace.absent import x", r"train\.py:1: there is no module grace\.absent"),
        ("\nimport replication.absent", r"train\.py:2: there is no module replication\.absent"),
        ("from .... import x", r"train\.py:1: imports from above its package"),
        ("def", r"train\.py cannot be read as Python: invalid syntax"),
    ],
)
def test_bad_code_is_named(tmp_path, text, message):
    write(tmp_path, {**WORLD, TRAIN: text})
    with pytest.raises(InputError, match=message):
        stage_hashes(tmp_path)
    with pytest.raises(InputError, match=r"no module replication\.stages\.absent"):
        closure("replication.stages.absent", tmp_path)


@given(st.data())
@settings(max_examples=30)
def test_comments_and_blank_lines_change_nothing(tmp_path_factory, data):
    lines = ["import os", "from grace.loss import loss", "x = '''a\n# b'''", "y = f'{x}'", "z = 1"]
    between = st.lists(st.sampled_from(["", "# x", "    # grace.other", "\f"]), max_size=3)
    root = tmp_path_factory.mktemp("code")
    write(root, {**WORLD, TRAIN: "\n".join(lines)})
    before = stage_hashes(root)
    write(root, {TRAIN: "\n".join(part for line in lines for part in (*data.draw(between), line))})
    assert stage_hashes(root) == before


@pytest.mark.slow
@given(st.lists(st.sets(st.integers(0, 6)), min_size=7, max_size=7), st.integers(0, 6))
@settings(max_examples=40)
def test_exactly_the_modules_that_reach_a_change_notice_it(tmp_path_factory, imports, edited):
    """Modules that import each other at random, in circles too."""
    root = tmp_path_factory.mktemp("code")
    for number, targets in enumerate(imports):
        text = "".join(f"import grace.m{target} as t{target}\n" for target in targets)
        write(root, {f"grace/m{number}.py": f"{text}x = {number}\n"})
    before = [code_hash(f"grace.m{number}", root=root) for number in range(7)]
    write(root, {f"grace/m{edited}.py": (root / f"grace/m{edited}.py").read_text() + "y = 1\n"})
    after = [code_hash(f"grace.m{number}", root=root) for number in range(7)]
    reaching = {edited}
    for _ in imports:
        reaching |= {number for number in range(7) if imports[number] & reaching}
    assert {number for number in range(7) if before[number] != after[number]} == reaching


@pytest.mark.slow
def test_names_that_are_imported_late_are_in_the_closure():
    files = set(closure("replication.stages.train"))
    for name in ("training/trainer", "training/teacher", "data/dataset", "data/collator"):
        assert ROOT / "grace" / f"{name}.py" in files


@pytest.mark.slow
def test_every_module_that_a_stage_loads_is_in_its_closure():
    """What an interpreter has of this repository after a stage's import, but for ``_OUTSIDE``."""
    script = "import sys, replication.stages.train; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    files = closure("replication.stages.train")
    outside = [file for name in code._OUTSIDE for file in closure(name)]
    known = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files + outside}
    known |= {name.removesuffix(".__init__") for name in known}
    own = {name for name in loaded if name.partition(".")[0] in ("grace", "replication")}
    assert "replication.stages.train" in own
    assert own <= known
    assert list(stage_hashes()) == sorted(
        path.stem for path in (ROOT / "replication" / "stages").glob("*.py") if path.stem[0] != "_"
    )


def interpreter(version: str) -> str:
    """A Python of this version. Skips the test if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"{version}.*/bin/python"))]
    for path in filter(None, found):
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip(f"there is no Python {version}")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_versions_of_python_agree(tmp_path, version):
    """On this repository, and on what their parsers read differently."""
    path = interpreter(version)
    for name in ("grace/errors.py", "replication/base/code.py"):  # without what they install
        write(tmp_path, {name: (ROOT / name).read_text(encoding="utf-8")})
    odd = "y = f'{x:{w}}' f'{x!r:>{w}.3}{{}}' 'é\\U0001f6dc'\nz = 1e3, 1j, b'\\xff', ..., None\n"
    write(tmp_path, {"odd/grace/odd.py": odd})
    script = "from pathlib import Path\nfrom replication.base.code import code_hash, stage_hashes\n"
    script += f"print(stage_hashes(Path({str(ROOT)!r})), code_hash('grace.odd', root=Path('odd')))"
    said = subprocess.run(
        [path, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{stage_hashes(ROOT)} {code_hash('grace.odd', root=tmp_path / 'odd')}\n"
