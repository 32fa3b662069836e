"""What every command shares: the exit path, the reader of YAML, what is printed."""

import errno
import io
import re
import subprocess

import pytest
import yaml
from rich.text import Text

from grace import files as base_yaml
from grace.errors import InputError
from grace.files import parse_yaml, read_yaml
from replication.base import terminal
from replication.base.command import command
from replication.base.messages import no_space, short, unknown
from replication.base.workers import cores, run_all

# --- command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("a 'b'\n  c"), 2, "error: a 'b' c\n"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (subprocess.CalledProcessError(7, ["dvc", "a b"]), 7, "error: dvc 'a b' failed"),
        (subprocess.CalledProcessError(-9, "dvc repro"), 1, "error: dvc repro failed"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "no space is left at 'x'"),
        (OSError(errno.EDQUOT, "Quota exceeded"), 2, "no space is left (Quota exceeded)"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, text, capsys):
    @command
    def main(value, *, name):
        """The body."""
        raise error

    assert main(1, name="x") == code
    written = capsys.readouterr()
    assert text in written.err and written.err.count("\n") == 1 and not written.out
    assert main.__doc__ == "The body."


@pytest.mark.parametrize("error", [ValueError("a fault"), PermissionError(errno.EACCES, "no")])
def test_a_fault_of_the_code_is_not_hidden(error):
    @command
    def main():
        raise error

    with pytest.raises(type(error)):
        main()


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_returns_its_code(value, code):
    assert command(lambda: value)() == code


def test_no_space_is_told_from_other_errors():
    assert no_space(OSError(errno.EACCES, "no")) is None


# --- messages -------------------------------------------------------------------------------------


def test_an_unknown_name_comes_with_the_nearest():
    assert unknown("scale 'smal'", "smal", ("small", "paper")) == (
        "scale 'smal' is unknown; did you mean 'small'? (known: small, paper)"
    )
    assert "did you mean" not in unknown("scale 5", 5, ("small",))


def test_a_large_value_has_a_short_text():
    for value in ("x" * 10_000, list(range(10_000)), 10**10_000, [[[[[[]]]]]]):
        assert len(short(value)) < 200


# --- yaml -----------------------------------------------------------------------------------------


def test_a_merged_key_may_be_replaced():
    text = "a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\n"
    assert parse_yaml(text, "x") == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' appears twice"),
        ("a:\n  b: {c: 1, c: 2}\n", "line 2: the key 'c' appears twice"),
        ("a: 1\nb: [1\n", "line 3: not valid YAML"),
        ("a: 1\n? [b]\n: 2\n", "line 2: the key"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: not valid YAML"),
        ("- " * 20_000 + "1", "line 1: not valid YAML (exceeded maximum nesting"),
        ("a: 2000-99-99\n", "not valid YAML"),
        ("a: *b\n", "line 1: not valid YAML"),
        ("- 1\n", "not a mapping"),
        ("", "not a mapping"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(tmp_path, text, message):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert message in str(caught.value) and "some.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml' cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(InputError, match=r"latin\.yaml' cannot be read"):
        read_yaml(tmp_path / "latin.yaml")


def test_what_is_read_is_what_the_library_reads():
    text = "a: &x {b: [1, 2.5, null, true]}\nc: *x\nd: 1.0e-5\ne: |\n  two\n  lines\n1: 2\n"
    content = parse_yaml(text, "text")
    assert content == yaml.safe_load(text)
    assert content["a"] is content["c"]  # so that writing it again keeps the anchors


def test_the_loader_is_a_safe_one():
    safe = (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert issubclass(base_yaml._UniqueKeys, safe)


# --- terminal -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_table_is_plain_text_where_there_is_no_terminal(capsys):
    rows = [["[a]", Text("1.5", style="red")], ["b" * 300, "10.25"]]
    terminal.write(terminal.table(["name", "score"], rows, right={1}, indent=2))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  name" + " " * 298 + "score"
    assert lines[1] == "  [a]" + " " * 301 + "1.5"
    assert lines[2] == "  " + "b" * 300 + "  10.25"


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_no_line_is_wider_than_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    rows = [["word " * 30, "q" * 100]]
    terminal.write("text " * 50, terminal.table(["name", "value"], rows), stream=stream)
    lines = re.sub(r"\x1b\[\d*m", "", stream.getvalue()).splitlines()
    assert max(map(len, lines)) <= columns
    assert "".join(lines).count("q") == 100  # folded, not cut


@pytest.mark.parametrize("no_colour", [False, True])
def test_colour_on_a_terminal_alone(no_colour, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    terminal.write(Text("holds", style="green"), stream=stream)
    assert ("\x1b[32m" in stream.getvalue()) is not no_colour
    assert terminal.as_text(Text("holds", style="green")) == "holds\n"


# --- workers --------------------------------------------------------------------------------------


def test_cores_are_those_of_this_process(monkeypatch):
    assert cores() >= 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cores() == 3
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cores() == 1


def test_jobs_keep_their_order(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert run_all(pow, [(2, 3), (3, 2), (5, 1)]) == [8, 9, 5]
