"""The documents say what is there: links, paths, commands, names, settings, equations."""

import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from grace.cli import parser
from grace.training.arguments import options_parser
from replication.base.code import closure
from replication.paper.bands import load_facts

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    ROOT / "replication/README.md",
    ROOT / "recorded/README.md",
]
DOCUMENTS = [path for path in DOCUMENTS if path.is_file()]
names = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

# ------------------------------------------------------------------------------ what is in the text


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```", "", text)


def inline(path: Path) -> list[str]:
    """What stands between backticks, line breaks as spaces."""
    plain = re.sub(r"(?m)^    .*$", "", without_code(text_of(path)))
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", plain)]


def blocks(path: Path) -> list[str]:
    """The lines of code blocks."""
    text = text_of(path).replace("\\\n", " ")
    lines = re.findall(r"(?m)^ {4,}(.*)$", text)
    for block in re.findall(r"(?ms)^```(?:bash|sh)?\n(.*?)^```", text):
        lines += block.splitlines()
    return [line.strip() for line in lines]


def commands(path: Path) -> list[str]:
    """Command lines: of code blocks, and inline."""
    return [*blocks(path), *inline(path)]


@cache
def tracked() -> frozenset[str]:
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    return frozenset(listed.stdout.splitlines())


@names
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(path))):
        if re.match(r"https?://", target):
            continue
        file, _, place = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), target
        if place:
            headings = re.findall(r"(?m)^#+ (.+)$", without_code(text_of(other)))
            assert place in {anchor(heading) for heading in headings}, target


def anchor(heading: str) -> str:
    """The name of a heading's place in a page."""
    plain = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def test_the_documents_have_at_most_20_000_words():
    """As `wc -w` counts them, marks of tables included."""
    pages = (ROOT / "docs").glob("**/*.md")
    assert sum(len(text_of(page).split()) for page in pages) <= 20_000


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "api" / "quantization" / "index.html").read_text()
    assert "fake_quant_layers" in page


_TOP = ("grace", "replication", "tests", "docs", "recorded", "requirements", "results/small")


@names
def test_paths_exist(path):
    for found in inline(path):
        token = re.sub(r"<scale>", "small", found).rstrip("/")
        if re.fullmatch(r"[\w./<>{},*@-]+", token) and token.startswith(
            tuple(f"{t}/" for t in _TOP)
        ):
            file = re.sub(r"<[^>]*>", "*", token.partition("::")[0])
            braces = re.split(r"\{([^}]*)\}", file)
            choices = [
                part.split(",") if place % 2 else [part] for place, part in enumerate(braces)
            ]
            for one in itertools.product(*choices):
                pattern = "".join(one)
                if pattern.startswith("recorded/"):
                    continue  # made by an import
                assert list(ROOT.glob(pattern)), f"{found}: there is no {pattern}"
        elif re.fullmatch(r"[\w-]+\.(?:py|sh|yaml)", token):
            assert any(Path(name).name == token for name in tracked()), found


@names
def test_tests_that_are_named_exist(path):
    for found in inline(path):
        named = re.fullmatch(r"[\w/]*?(test_\w+\.py)?(?:::(test_\w+))?", found)
        if named and named[1]:
            assert any(Path(name).name == named[1] for name in tracked()), found
        if named and named[2]:
            assert f"def {named[2]}(" in sources_of_tests(), found


@cache
def sources_of_tests() -> str:
    return "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/test_*.py"))


def resolves(dotted: str) -> bool:
    """Whether a dotted name can be imported."""
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.slow
@names
def test_dotted_names_are_defined(path):
    for found in inline(path):
        named = re.fullmatch(r"((?:grace|replication)(?:\.\w+)+)(?:\(.*\))?", found)
        if named:
            assert resolves(named[1]), found


@cache
def module_text(module: str) -> str:
    """The source of all that `python -m` runs, the method's own code excepted."""
    files = closure(f"{module}.__main__" if ROOT.joinpath(*module.split(".")).is_dir() else module)
    return "".join(file.read_text() for file in files if file.suffix == ".py")


def check_flags(module: str, words: list[str]) -> None:
    text = module_text(module)
    for word in words:
        if re.match(r"--[a-z]", word):
            flag = word.partition("=")[0]
            assert f'"{flag}"' in text, f"python -m {module} has no {flag}"


@names
def test_modules_and_their_flags_exist(path):
    for line in commands(path):
        asked = re.match(r"(?:\.venv/bin/)?python -m (\S+)(.*)", line)
        if asked and asked[1].partition(".")[0] in ("grace", "replication"):
            check_flags(asked[1], shlex.split(asked[2], comments=True))


@names
def test_make_targets_and_variables_exist(path):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z][\w-]*):", makefile))
    variables = set(re.findall(r"(?m)^(?:export )?(\w+) \??:?=", makefile)) | {
        "HF_HUB_OFFLINE",
        "TABLE",
    }
    for line in commands(path):
        if not re.match(r"(?:[A-Z_]+=\S+ )*make( |$)", line):
            continue
        words = shlex.split(line.partition("make")[2].split("|")[0], comments=True)
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                assert name in targets, line
                continue
            assert name in variables, line
            if "--" in value:
                (module,) = re.findall(rf"-m (\S+)[^\n]*\$\({name}\)", makefile)
                check_flags(module, value.split())


@names
def test_grace_commands_are_taken_by_the_parser(path):
    for line in blocks(path):
        if re.match(r"grace (?!.*(\.\.\.|--help))", line):
            given = parser().parse_args(shlex.split(line, comments=True)[1:])
            if given.command == "train":  # its options are known only when it runs
                _, unknown = options_parser().parse_known_args(given.words)
                assert unknown == [], line


@cache
def settings() -> list[dict]:
    files = ["params.yaml", "replication/settings/values/paper.yaml"]
    files += [
        str(file.relative_to(ROOT)) for file in ROOT.glob("replication/settings/values/presets/*")
    ]
    return [yaml.safe_load((ROOT / file).read_text()) for file in files]


@names
def test_settings_exist(path):
    """What looks like a parameter, such as `train.launch.config`, is one at some scale."""

    def there(content, keys):
        for key in keys:
            if not isinstance(content, dict) or key not in content:
                return False
            content = content[key]
        return True

    sections = {key for content in settings() for key in content}
    for found in inline(path):
        keys = found.partition(":")[0].split(".")
        if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+(: .*)?", found) and keys[0] in sections:
            if keys[-1] in ("py", "md", "json", "yaml", "parquet"):
                continue
            assert any(there(content, keys) for content in settings()), found


# -------------------------------------------------------------------------------------- equations


@pytest.mark.slow
def test_every_equation_has_a_function_and_a_test():
    text = text_of(ROOT / "docs" / "method.md")
    rows = re.findall(r"(?m)^\| ([\d–, ]+) \|[^|]*\| ([^|]*) \| ([^|]*) \|$", text)
    numbers = set()
    for equations, functions, tests in rows:
        for part in equations.split(", "):
            first, _, last = part.partition("–")
            numbers |= set(range(int(first), int(last or first) + 1))
        assert re.findall(r"`([\w.]+)`", functions)
        assert all(map(resolves, re.findall(r"`([\w.]+)`", functions)))
        references = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert references
        for file, name in references:
            assert re.search(rf"(?m)^def {name}\(", (ROOT / file).read_text()), name
    assert numbers == {*range(1, 7), *range(8, 22)}  # there is no method in Eq. 7


def test_the_wide_bands_readings_are_those_of_the_facts():
    text = text_of(ROOT / "docs" / "deviations.md")
    part = text.partition("## Behind the wide bands")[2].partition("\n## ")[0]
    facts, seen = load_facts(), set()
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if cells[0] in facts.benchmarks:
            widest = max(facts.benchmark(cells[0]).harness, key=lambda one: one.apart)
            assert cells[2] == "{:g} and {:g}".format(*widest.values)
            seen.add(cells[0])
    assert {"SEED-Bench", "TextVQA", "HallusionBench", "POPE"} <= seen
