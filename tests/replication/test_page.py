"""The page: every number is that of its file, it loads nothing, and works without JavaScript."""

import base64
import json
import re
from urllib.parse import unquote_to_bytes

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from page_world import (
    FIGURE,
    NOT_RUN,
    SVG,
    disagreement,
    edited,
    make_root,
    numbers,
    parse,
    png,
    without_scripts,
    words,
)
from repository import ROOT
from synthetic_results import GOOD, write_results

from grace.errors import InputError
from replication.base.files import write_json_atomic
from replication.judge.claims import verify
from replication.judge.record import document
from replication.paper import load_ledger, load_tables
from replication.report.page import build
from replication.report.page.bars import Axis, bar
from replication.report.page.figures import FIGURES
from replication.report.page.sources import Node, quoted
from replication.report.tables.files import build_tables, write
from replication.stages import report


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(root):
    return build(root, "small")


@pytest.fixture(scope="module")
def page(text):
    return parse(without_scripts(text))


def wrong(root, page) -> list[str]:
    files: dict = {}
    found = (disagreement(root, one, files) for one in page.iterfind(".//*[@data-source]"))
    return [one for one in found if one]


def shown(page, place):
    """The measured number of a place in table 4."""
    source = f"results/small/tables/table4.json#/{place}"
    query = f"//*[@data-source='{source}'][starts-with(@data-fields, 'measured')]"
    return page.xpath(query)[0]


# --- numbers --------------------------------------------------------------------------------------


def test_every_number_with_a_source_is_that_of_its_file(root, page):
    assert len(page.findall(".//*[@data-source]")) > 4000
    assert wrong(root, page) == []


@pytest.mark.parametrize("index", [0, 400, 1200, 2400])
def test_a_number_that_is_not_its_files_is_found(root, text, index):
    """The test above can fail: one printed digit is changed."""
    page = parse(without_scripts(text))
    fields = [one for one in page.iterfind(".//*[@data-fields]") if numbers(words(one))]
    element = fields[index]
    first = numbers(words(element))[0]
    digit = re.search(r"\d", first)[0]
    element.text = element.text.replace(digit, str((int(digit) + 5) % 10), 1)
    assert len(wrong(root, page)) == 1


def test_numbers_in_cells_have_a_source(text):
    """Outside of what names its source a cell of numbers holds no digit."""
    page, checked = parse(without_scripts(text)), 0
    for cell in page.iterfind(".//td"):
        if "num" not in (cell.get("class") or "").split():
            continue
        for part in cell.findall(".//*[@data-source]"):
            part.clear()
        assert not re.search(r"\d", words(cell)), words(cell)
        checked += 1
    assert checked > 2000


def test_every_measured_and_reported_number_of_every_table_is_printed(root, page):
    printed = {
        (one.get("data-source"), name)
        for one in page.iterfind(".//*[@data-fields]")
        for name in one.get("data-fields").split()
    }
    for name in load_tables().short_names():
        file = f"results/small/tables/{name}.json"
        data = json.loads((root / file).read_text())
        for index, row in enumerate(data["rows"]):
            for column, cell in row["cells"].items():
                place = column.replace("~", "~0").replace("/", "~1")
                for key in ("reported", "measured", "delta_measured", "low", "high"):
                    if cell.get(key) is not None:
                        source = f"{file}#/rows/{index}/cells/{place}"
                        assert (source, key) in printed, (source, key)


@pytest.mark.slow
def test_another_number_in_a_file_is_another_number_on_the_page(tmp_path):
    root = make_root(tmp_path)
    with edited(root, "tables/table4.json") as data:
        data["rows"][2]["cells"]["Avg"]["measured"] = 12.3456
    page = parse(build(root, "small"))
    assert words(shown(page, "rows/2/cells/Avg")).startswith("12.3")
    assert wrong(root, page) == []


# --- content --------------------------------------------------------------------------------------


def test_every_claim_and_part_is_there_with_its_status(root, page):
    claims = json.loads((root / "results/small/claims.json").read_text())["claims"]
    shown = page.xpath("//li[@data-status]")
    assert [one.get("id") for one in shown] == [claim.id for claim in load_ledger().claims]
    for claim, element in zip(claims, shown, strict=True):
        slug = claim["status"].lower().replace(" ", "-")
        assert element.get("data-status") == slug
        badge = element.xpath("./details/summary/span[contains(@class, 'badge')]")[0]
        assert words(badge) == claim["status"]
        assert badge.xpath(".//use/@href") == [f"#shape-{slug}"]
        assert claim["reported"] in words(element)
        assert "python -m replication.scale small repro" in words(element)
        for part in claim["parts"]:
            assert part["id"] in words(element)
            assert " ".join(part["note"].split()) in words(element)
            if part["band"]:
                assert " ".join(part["band"]["reason"].split()) in words(element)


def test_commands_name_the_stages_that_measure(page):
    def command(id_):
        return words(page.xpath(f"//*[@id='{id_}']//p[@class='command'][last()]/code")[-1])

    assert command("C03").split()[5:] == [
        *("evaluate@llava", "evaluate@llava_runs", "evaluate@qwen2_vl", "evaluate@qwen2_vl_pair2"),
        *("evaluate@qwen2_vl_pair2_runs", "evaluate@qwen2_vl_runs"),
        *("evaluate@qwen3_vl", "evaluate@qwen3_vl_runs", "claims"),
    ]
    assert command("C09").split()[5:] == ["deploy@llava-1.5-7b", "claims"]
    assert command("C12").split()[5:] == [
        *("gate_covariance@llava", "gate_covariance@qwen2_vl", "gate_covariance@qwen3_vl"),
        "claims",
    ]
    assert command("C13").split()[5:] == ["train@controller", "train@qwen2_vl_runs", "claims"]
    assert command("C16").split()[5:] == ["claims"]
    assert command("table-table4").endswith("repro tables")


def test_commands_can_be_run(page):
    """Modules, targets of make, and stages of the pipeline that there are."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    commands = {words(one) for one in page.xpath("//p[@class='command']/code | //dt/code")}
    for command in commands:
        what, *arguments = command.split()
        if what == "make":
            assert arguments[0] in targets, command
        else:
            assert (what, arguments[0]) == ("python", "-m"), command
            module = ROOT / arguments[1].replace(".", "/")
            assert module.with_suffix(".py").is_file(), command
        if arguments[1] == "replication.scale" and arguments[3] == "repro":
            for stage in arguments[4:]:
                name, _, item = stage.partition("@")
                assert bool(item) == ("foreach" in pipeline[name]), command
    assert len(commands) > 30


def test_every_explanation_stands_once(page):
    """No long sentence of the claims and of the page itself is printed twice."""
    texts = [
        words(one)
        for one in page.xpath("//main//p | //li[not(.//li)]")
        if not one.xpath("ancestor::details[starts-with(@id, 'table-')]")
        and "command" not in (one.get("class") or "")
        and not one.xpath("ancestor::li[@data-status] | self::li[@data-status]")
    ]
    long = [text for text in texts if len(text) > 80]
    assert len(long) == len(set(long)) > 10


def test_the_first_section_concludes_from_the_files(root, page):
    claims = json.loads((root / "results/small/claims.json").read_text())
    regimes = json.loads((root / "results/small/tables/regimes.json").read_text())
    (lead,) = page.xpath("//p[@class='lead']")
    outcomes = [row["outcome"] for row in regimes["rows"]]
    counts = [count for count in claims["summary"]["paper"].values() if count]
    expected = [outcomes.count("beats KD"), len(outcomes), sum(counts)]
    found = [int(one) for one in numbers(words(lead))]
    assert found[:3] == expected
    assert sorted(found[3:]) == sorted(counts)
    cells = page.xpath("//table[@class='regimes']//td")
    assert [words(one.find(".//strong")) for one in cells] == outcomes
    sizes = words(page.xpath("//p[contains(@class, 'models')]")[-1])
    for name in ("table2", "table4", "qwen3vl"):
        models = json.loads((root / f"results/small/tables/{name}.json").read_text())["models"]
        for role in ("teacher", "baseline"):
            assert f"{models[role]['parameters'] / 1e6:.1f} M" in sizes
    cards = page.xpath("//article[contains(@class, 'card')]")
    assert [one.xpath(".//a/@href")[0] for one in cards] == ["#C03", "#C09", "#C10"]


def test_what_was_measured_stands_first(page):
    """The first column behind a row's name is measured: a difference, where the table has one."""
    for table in page.xpath("//details[starts-with(@id, 'table-')]//table"):
        cell = table.xpath(".//tbody/tr/td[1]//*[@data-fields]")
        known = [fields for one in cell if (fields := one.get("data-fields"))]
        assert not any(fields.startswith("reported") for fields in known)
        deltas = table.xpath(".//thead//th[starts-with(normalize-space(), 'Δ')]")
        if deltas:
            assert words(deltas[0]).startswith("Δ measured")
            assert all(fields.startswith("delta_measured") for fields in known)


def test_every_table_is_there_once_with_its_notes_and_origin(root, page):
    names = load_tables().short_names()
    articles = {one.get("id"): one for one in page.xpath("//details[@class='block table']")}
    assert sorted(articles) == sorted(f"table-{name}" for name in names)
    for name in names:
        data = json.loads((root / f"results/small/tables/{name}.json").read_text())
        article = articles[f"table-{name}"]
        for note in data["footnotes"]:
            assert " ".join(note.split()) in words(article)
        origins = article.xpath(".//dl[@class='origin']")
        cells = [cell for row in data["rows"] for cell in row["cells"].values()]
        ran = any(cell["measured"] is not None for cell in cells)
        assert origins or name == "cost" or not ran, name
        for origin in origins:
            assert len(origin.findall("div")) == 6  # files and seeds, commit, parameters, ...
        if any(column["standin"] for column in data["columns"]):
            assert article.xpath(".//thead//abbr[text()='*']"), name


def test_figures_are_shown_or_say_why_not(root, page):
    shown = [one.get("id") for one in page.xpath("//details[@class='block figure']")]
    assert shown == [f"figure-{name}" for name in FIGURES]
    for name, content, head, decode in (
        ("pareto", SVG.encode(), "data:image/svg+xml", unquote_to_bytes),
        ("bits", png((0, 90, 180), (40, 20)), "data:image/png;base64", base64.b64decode),
    ):
        (image,) = page.xpath(f"//details[@id='figure-{name}']//img")
        kind, _, data = image.get("src").partition(",")
        assert kind == head and decode(data) == content
        assert not set(data) & set("\"'<>#&")
        assert image.get("alt") == FIGURE["alt"]
        said = words(page.xpath(f"//details[@id='figure-{name}']")[0])
        for part in (FIGURE["caption"], "6,000", "GiB", FIGURE["sources"][0], FIGURE["command"]):
            assert part in said
    assert NOT_RUN in words(page.xpath("//details[@id='figure-attention']")[0])
    absent = page.xpath("//details[@id='figure-effects']")[0]
    assert "there is no results/small/figures/effects.json" in words(absent)
    assert not absent.xpath(".//img")


def test_the_gallery_shows_question_image_and_both_answers(page):
    (item,) = page.xpath("//ul[@class='gallery']/li")
    said = words(item)
    for part in ("Right, then wrong", "MMBench*", "attribute", "What colour? A. red B. <blue>"):
        assert part in said
    answers = [(words(pair[0]), words(pair[1])) for pair in item.findall(".//dl/div")]
    assert answers == [("True", "A"), ("baseline", "A"), ("grace_int4", "B")]
    (image,) = item.xpath(".//img")
    assert base64.b64decode(image.get("src").partition(",")[2]) == png((250, 10, 10))
    assert (image.get("width"), image.get("height")) == ("8", "6")


# --- form -----------------------------------------------------------------------------------------


def test_nothing_is_loaded_and_no_anchor_is_missing(text):
    page = parse(text)
    ids = page.xpath("//@id")
    assert len(ids) == len(set(ids))
    for link in page.xpath("//@href"):
        if link[0] == "#":
            assert link[1:] in ids, link
        elif link != "https://arxiv.org/abs/2601.22709":  # from the page's place
            assert (ROOT / "results/small" / link).is_file(), link
    assert page.xpath("//@src") == page.xpath("//img/@src")
    assert all(source.startswith("data:image/") for source in page.xpath("//img/@src"))
    assert not page.xpath("//link | //iframe | //object | //embed | //base | //script[@src]")
    assert not page.xpath("//@*[starts-with(name(), 'on')]")
    (style,) = page.xpath("//style/text()")
    assert "url(" not in style and "@import" not in style
    (script,) = page.xpath("//script/text()")
    assert not re.search(r"fetch|XMLHttpRequest|import\(|https?:|eval", script)
    (policy,) = page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy.startswith("default-src 'none'")


def test_images_have_words_and_the_page_is_small(text, page):
    for image in page.iterfind(".//img"):
        assert image.get("alt").strip()
    for drawing in page.iterfind(".//svg"):
        assert drawing.get("aria-hidden") == "true"
    assert len(text.encode()) < 5e6


def test_without_javascript_everything_but_the_filters_is_shown(page):
    assert [one.get("id") for one in page.xpath("//*[@hidden]")] == ["filters"]
    assert not page.xpath("//*[contains(@style, 'display')]")
    assert not page.xpath("//noscript")


def test_no_cell_is_empty(page):
    for cell in page.iterfind(".//td"):
        assert words(cell) or cell.find(".//svg") is not None, cell.getparent()


def test_columns_of_a_table_are_as_many_in_every_row(page):
    for table in page.iterfind(".//table"):
        widths, open_ = set(), []
        for row in table.iterfind(".//tr"):
            width = sum(int(cell.get("colspan", 1)) for cell in row) + len(open_)
            widths.add(width)
            open_ = [rows - 1 for rows in open_ if rows > 1]
            open_ += [n - 1 for cell in row if (n := int(cell.get("rowspan", 1))) > 1]
        assert len(widths) == 1, words(table.find("caption"))


def test_what_files_say_is_text_not_markup(tmp_path):
    root = make_root(tmp_path)
    with edited(root, "claims.json") as data:
        data["claims"][0]["text"] = "<script>alert(1)</script> & <b>"
    page = build(root, "small")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;" in page


# --- other results --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_what_was_not_run_is_said(tmp_path, scale):
    """A scale with a few runs of one family: every table and claim is there, nothing is blank."""
    runs = {name: GOOD[name] for name in ("teacher", "baseline", "qat_int4", "grace_int4")}
    results = write_results(tmp_path / "results", runs, seed=1, n=60, scale=scale)
    known = json.loads((ROOT / "results/small/scores/qwen2_vl/baseline.json").read_text())
    for path in (results / scale / "scores").glob("*/*.json"):
        record = {**json.loads(path.read_text()), "provenance": known["provenance"]}
        path.write_text(json.dumps(record))
    for table in build_tables(results, scale):
        write(table, results / scale / "tables")
    ledger = load_ledger()
    verdicts = document(verify(results, scale, ledger), [], scale, ledger)
    write_json_atomic(results / scale / "claims.json", verdicts)
    write_json_atomic(results / scale / "scores.json", {f"qwen2_vl-{name}": {} for name in runs})
    page = parse(without_scripts(build(tmp_path, scale)))
    assert wrong(tmp_path, page) == []
    assert page.xpath("//li[@data-status='not-run']")
    assert "not run" in words(page.xpath("//details[@id='table-table2']")[0])
    test_no_cell_is_empty(page)


@pytest.mark.slow
def test_recordings_stand_beside_what_was_measured(tmp_path):
    root = make_root(tmp_path)
    with edited(root, "tables/table4.json") as data:
        data["recordings"] = [{"id": "gpu", "device": "A GPU", "standin": True, "seeds": [1, 3]}]
        for row in data["rows"]:
            for cell in row["cells"].values():
                other = {key: cell[key] for key in cell if "reported" not in key}
                if cell["measured"] is not None:
                    other["measured"] -= 7.0
                cell["recorded"] = {"gpu": other}
    page = parse(without_scripts(build(root, "small")))
    assert wrong(root, page) == []
    for column in ("Avg", "MMBench"):
        measured = data["rows"][2]["cells"][column]["measured"] - 7.0
        text = words(shown(page, f"rows/2/cells/{column}/recorded/gpu"))
        assert text.startswith(f"{measured:.1f}")
    assert "recorded, A GPU" in words(page.xpath("//details[@id='table-table4']")[0])


# --- bad input ------------------------------------------------------------------------------------


def test_a_missing_file_names_the_stage(tmp_path):
    root = make_root(tmp_path)
    (root / "results/small/claims.json").unlink()
    with pytest.raises(InputError, match="run the stage claims first"):
        build(root, "small")
    with pytest.raises(InputError, match="scale"):
        build(root, "large")


@pytest.mark.slow
def test_what_is_measured_by_itself_may_be_missing(tmp_path):
    root = make_root(tmp_path)
    (root / "results/small/calibration").unlink()
    (root / "results/scaling").unlink()
    (root / "results/performance").unlink()
    (root / "results/real_cell").unlink()
    page = build(root, "small")
    assert "The calibration was not run at this scale" in page
    assert "How a training step grows" not in page
    assert "Speed and memory of the method itself" not in page


@pytest.mark.slow
def test_a_model_that_was_built_in_part_has_no_size(tmp_path):
    root = make_root(tmp_path)
    with edited(root, "deploy/llava-1.5-7b/deploy.json") as report:
        report["models"]["llava-1.5-7b"]["parameters"] = None
    sizes = words(parse(build(root, "small")).xpath("//p[contains(@class, 'models')]")[-1])
    assert "qwen2-vl-2b" in sizes and "llava-1.5-7b" not in sizes


@pytest.mark.slow
def test_a_way_that_does_not_fit_is_said_to_be_not_run(tmp_path):
    root = make_root(tmp_path)
    name = "results/performance/performance.json"
    report = json.loads((root / name).read_text())
    row = report["parts"]["gated_distillation"]["rows"][-1]
    row["ways"]["straightforward"] = {"not_run": "needs 9 GiB"}
    row["time"], row["memory"] = {}, {}
    (root / "results/performance").unlink()
    write_json_atomic(root / name, report)
    page = parse(without_scripts(build(root, "small")))
    (line,) = [one for one in page.iterfind(".//tr") if "not run: needs 9 GiB" in words(one)]
    assert row["case"] in words(line)
    assert f"{1000 * row['ways']['grace']['seconds']['median']:,.1f}" in words(line)
    assert wrong(root, page) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("figures/pareto.svg", None, "run the stage figures again"),
        ("figures/pareto.json", {**FIGURE, "title": "t", "alt": " "}, "alt is empty"),
        ("figures/pareto.json", "{", "cannot be read as JSON"),
    ],
)
def test_figures_that_are_wrong_are_named(tmp_path, name, content, message):
    root = make_root(tmp_path)
    path = root / "results/small" / name
    path.unlink()
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        build(root, "small")


def test_a_part_that_the_ledger_lacks_is_named(tmp_path):
    root = make_root(tmp_path)
    with edited(root, "claims.json") as data:
        data["claims"][0]["parts"][0]["id"] = "C01.other"
    with pytest.raises(InputError, match=r"C01\.other"):
        build(root, "small")


@pytest.mark.slow
def test_the_stage_writes_the_page(text, tmp_path, monkeypatch):
    root = make_root(tmp_path)
    (root / "params.yaml").symlink_to(ROOT / "params.yaml")
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    assert (root / "results/small/report.html").read_text(encoding="utf-8") == text


# --- parts ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_bars_keep_order_and_stay_inside(values):
    axis = Axis.over(values)
    ordered = sorted([*values, 0.0])
    places = [float(axis.place(value)) for value in ordered]
    assert places == sorted(places)
    assert min(places) >= 0
    assert max(places) <= 120
    drawn = bar(axis, ordered[0], ordered[0], ordered[-1], ordered[-1])
    assert drawn.count("<circle") == drawn.count("<path") == 1
    assert drawn.count("<line") == 2


@pytest.mark.slow
@given(st.text(max_size=8), st.text(max_size=8))
def test_pointers_lead_back(first, second):
    """RFC 6901: ~ and / in names are escaped."""
    node = Node("f.json", {first: {second: 1}})[first][second]
    tokens = [t.replace("~1", "/").replace("~0", "~") for t in node.pointer.split("/")[1:]]
    assert (tokens, node.value) == ([first, second], 1)


def test_quoted_text_is_escaped():
    shown = quoted(Node("f.json", "<b>", '/a"b'), "<b>")
    assert str(shown) == '<span data-source="f.json#/a&#34;b">&lt;b&gt;</span>'
