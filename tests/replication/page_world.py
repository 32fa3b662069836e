"""Results for the page's tests: the repository's own, with figures and examples made here; and a
reader of the page that knows nothing of how it is made."""

import base64
import io
import json
import re
from contextlib import contextmanager
from pathlib import Path

from lxml import html
from PIL import Image
from repository import ROOT

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="400" height="200" viewBox="0 0 400 200">'
    '<rect width="400" height="200" fill="white"/><circle cx="90" cy="80" r="9" fill="#0072b2"/>'
    "</svg>"
)
FIGURE = {
    "caption": "A caption with <angle brackets> & an ampersand.",
    "alt": "One blue point.",
    "n": {"questions": 6000},
    "units": {"x": "GiB", "y": "%"},
    "sources": ["results/small/tables/table4.json"],
    "command": "python -m replication.scale small repro figures",
    "paper": "Figure 1",
    "claims": ["C03"],
    "data": {},
}
NOT_RUN = "measurements/internals-llava.json does not exist"


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def make_root(folder: Path) -> Path:
    """A root with links to the repository's results, two figures, one that was not run, and a
    gallery."""
    small = folder / "results" / "small"
    small.mkdir(parents=True)
    for path in (ROOT / "results" / "small").iterdir():
        if path.name not in ("figures", "examples", "report.html"):
            (small / path.name).symlink_to(path)
    for name in ("performance", "real_cell", "scaling"):
        (folder / "results" / name).symlink_to(ROOT / "results" / name)
    figures, examples = small / "figures", small / "examples"
    figures.mkdir()
    examples.mkdir()
    for name, more in (("pareto", {}), ("bits", {}), ("attention", {"not_run": NOT_RUN})):
        data = {**FIGURE, "name": name, "title": f"Title of {name}", **more}
        (figures / f"{name}.json").write_text(json.dumps(data))
    (figures / "pareto.svg").write_text(SVG)
    (figures / "bits.png").write_bytes(png((0, 90, 180), (40, 20)))
    shown = [
        {
            "benchmark": "MMBench",
            "skill": "attribute",
            "question": "What colour?\nA. red\nB. <blue>",
            "image": base64.b64encode(png((250, 10, 10))).decode(),
            "width": 8,
            "height": 6,
            "target": "A",
            "first": "A",
            "second": "B",
            "lost": True,
        }
    ]
    gallery = {"family": "qwen2_vl", "pair": ["baseline", "grace_int4"], "examples": shown}
    (examples / "qwen2_vl.json").write_text(json.dumps(gallery))
    return folder


@contextmanager
def edited(root: Path, name: str):
    """The content of a result file under ``root``, which is written as it is left."""
    path = root / "results" / "small" / name
    for part in reversed(path.relative_to(root).parents):
        folder = root / part
        if folder.is_symlink():
            target = folder.resolve()
            folder.unlink()
            folder.mkdir()
            for entry in target.iterdir():
                (folder / entry.name).symlink_to(entry)
    content = json.loads(path.read_text())
    yield content
    path.unlink()
    path.write_text(json.dumps(content))


# --- reading --------------------------------------------------------------------------------------

NUMBER = re.compile(r"[−+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def parse(page: str):
    return html.document_fromstring(page)


def without_scripts(page: str) -> str:
    return re.sub(r"<script\b.*?</script>", "", page, flags=re.S)


def words(element) -> str:
    return " ".join("".join(element.itertext()).split())


def resolve(root: Path, reference: str, files: dict):
    """The value that ``path#pointer`` names (RFC 6901)."""
    name, _, pointer = reference.partition("#")
    if name not in files:
        files[name] = json.loads((root / name).read_text(encoding="utf-8"))
    value = files[name]
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def agrees(printed: str, value: float) -> bool:
    """Whether a printed number is this value, rounded to the digits that are printed."""
    plain = printed.replace("−", "-").replace(",", "").lstrip("+")
    mantissa, _, exponent = plain.partition("e")
    places = len(mantissa.partition(".")[2])
    step = 10.0 ** (int(exponent or 0) - places)
    return abs(float(plain) - value) <= 0.5 * step * (1 + 1e-9) + 1e-12


SAID = {"the same": 1.0, "another": 0.0}
"""Verdicts in two worlds, which the ledger has as numbers and the page as words."""


def disagreement(root: Path, element, files: dict) -> str | None:
    """What is wrong with an element that names its source; None if nothing is."""
    reference, text = element.get("data-source"), words(element)
    try:
        value = resolve(root, reference, files)
    except (KeyError, IndexError, TypeError, OSError) as error:
        return f"{reference}: {error!r}"
    printed = numbers(text)
    if element.get("data-short") is not None:
        return None if text and str(value).startswith(text) else f"{reference}: {text!r}"
    if (which := element.get("data-count")) is not None:
        wanted = dict(pair.split("=") for pair in which.split(",") if pair)
        some = [one for one in value if all(one[key] == wanted[key] for key in wanted)]
        expected = [len(some)] if printed else []
    elif fields := element.get("data-fields"):
        expected = [value[name] for name in fields.split()]
    elif isinstance(value, str):
        same = text == " ".join(value.split())
        return None if same else f"{reference}: {text!r} is not {value!r}"
    else:
        expected = value if isinstance(value, list) else [value]
    if not printed and text in SAID:
        return None if expected == [SAID[text]] else f"{reference}: {text!r} is not {expected}"
    scale = float(element.get("data-scale", 1.0))
    if len(printed) != len(expected):
        return f"{reference}: {text!r} holds {len(printed)} numbers for {expected}"
    for number, source in zip(printed, expected, strict=True):
        if source is None or not agrees(number, source * scale):
            return f"{reference}: {number} is not {source} × {scale}"
    return None
