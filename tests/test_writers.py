"""Every place that writes a file is under a temporary name, or is listed here with its reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

WHOLE = {"atomic_path", "atomic_directory", "TemporaryDirectory"}
"""What a write may stand in: its file gets its name when it is complete, or is thrown away."""

WRITERS = {
    *("write_text", "write_bytes", "save_pretrained", "to_parquet", "save_file", "copytree"),
    *("copyfile", "copy", "copy2", "write_table", "ParquetWriter", "open_memmap", "savefig"),
    *("OSFile", "fdopen", "tofile", "dump", "save"),
}

BY_ITS_CALLER = "into a directory or file that the caller renames"
RENAMED = "under another name, which is renamed in the end"
JUDGED = {
    "grace/cli/export.py:run": "calls save_awq or save_compressed_tensors",
    "grace/export/checkpoint.py:write_checkpoint": BY_ITS_CALLER,
    "grace/files.py:write_json": BY_ITS_CALLER,
    "grace/quantization/codes.py:write_codes": BY_ITS_CALLER,
    "grace/training/cached_teacher.py:write_teacher_outputs": BY_ITS_CALLER,
    "grace/data/shards.py:write_shard": BY_ITS_CALLER,
    "grace/data/token_counts.py:_locked": "a lock file, of no content",
    "replication/train/fit.py:_forget_peak_memory": "a switch of the kernel, no file",
    "replication/measure/inside/record.py:_png": "into memory",
    "replication/data/mirror.py:add_repository": BY_ITS_CALLER,
    "replication/data/mirror.py:shards": BY_ITS_CALLER,
    "replication/train/start.py:_download": RENAMED,
    "replication/data/conversations/images.py:_writer": "a log to which lines are "
    "added; torn ones are read over",
    "replication/data/miniature.py:_write_checkpoint": BY_ITS_CALLER,
    "replication/data/miniature.py:_write_training": BY_ITS_CALLER,
    "replication/report/examples.py:_embedded": "into memory",
    "replication/report/figures/style.py:save": BY_ITS_CALLER,
    "replication/settings/workspace.py:alone": "a lock file, with the number of a process",
    "replication/settings/workspace.py:publish": "each file by atomic_path",
    "replication/train/tower.py:write_features": RENAMED,
    "replication/train/tower.py:train_tower": "of a stage whose outputs DVC removes before "
    "it runs, and believes when it has ended",
    "replication/data/world/benchmarks.py:png": "into memory",
    "replication/benchmarks/__init__.py:write_task_file": "in a folder that is thrown away",
    "replication/benchmarks/published.py:_view": RENAMED,
}


def writes(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "open":
        modes = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        texts = [one.value for one in modes if isinstance(one, ast.Constant)]
        return any(isinstance(t, str) and len(t) < 4 and set(t) & set("wax+") for t in texts)
    return name in WRITERS and bool(call.args)


def bare_writers(text: str) -> set[str]:
    """Functions that write outside of a block of WHOLE."""
    found = set()

    def visit(node: ast.AST, function: str, whole: bool) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            names = {
                getattr(one.func, "attr", getattr(one.func, "id", ""))
                for one in (item.context_expr for item in node.items)
                if isinstance(one, ast.Call)
            }
            whole = whole or bool(names & WHOLE)
        if isinstance(node, ast.Call) and writes(node) and not whole:
            found.add(function)
        for child in ast.iter_child_nodes(node):
            visit(child, function, whole)

    visit(ast.parse(text), "", False)
    return found


def test_every_writer_is_whole_or_judged():
    found = set()
    for path in [*(ROOT / "grace").rglob("*.py"), *(ROOT / "replication").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        found |= {f"{name}:{one}" for one in bare_writers(path.read_text(encoding="utf-8"))}
    unknown, gone = sorted(found - set(JUDGED)), sorted(set(JUDGED) - found)
    assert not unknown, "these write under a final name; use grace.files.atomic_path"
    assert not gone, "these write no more; strike them off the list"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("def f(p):\n    p.write_text('a')", {"f"}),
        ("def f(p):\n    with atomic_path(p) as t:\n        t.write_text('a')", set()),
        ("def f(p):\n    with open(p, 'w') as t:\n        pass", {"f"}),
        ("def f(p):\n    with p.open('ab') as t:\n        pass", {"f"}),
        ("def f(p):\n    with open(p) as t:\n        pass", set()),
        ("def f(m, p):\n    m.save_pretrained(p)", {"f"}),
        ("def f(t, p):\n    torch.save(t, p)", {"f"}),
    ],
)
def test_the_scan_sees(text, bare):
    assert bare_writers(text) == bare
