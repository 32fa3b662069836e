"""The page in a browser: nothing is asked of a network, nothing overflows, filters work, and
axe-core finds no barrier in either colour scheme. Chromium is `GRACE_CHROMIUM`, or found."""

import io
import os
import shutil

import pytest
from page_world import make_root
from PIL import Image, ImageColor

from replication.report.figures import style
from replication.report.page import build

pytestmark = pytest.mark.slow

CHROMIUM = os.environ.get("GRACE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
SCHEMES = ("light", "dark")
WIDTHS = (1280, 360)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: install it, or set GRACE_CHROMIUM to its path")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = make_root(tmp_path_factory.mktemp("page"))
    drawn = folder / "results/small/figures/pareto.svg"
    style.save(style.canvas(2.0, 1.0), drawn, "svg", "pareto")
    path = folder / "report.html"
    path.write_text(build(folder, "small"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, address):
    """A function that opens the page; what it asked of a network, or complained of, fails."""
    contexts, said = [], []

    def open_page(width=1280, scheme="light", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)

        def route(request):
            url = request.request.url
            if url == address or url.startswith("data:"):
                request.continue_()
            else:
                said.append(f"asked for {url}")
                request.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda one: said.append(str(one)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_overflows(visit, width, scheme):
    page = visit(width, scheme)
    assert overflow(page) <= 0
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert overflow(page) <= 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_barrier(visit, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(1280, scheme)
    opened = "#C03 details, #C16 details, #table-table4, #table-flips, #figure-bits, #reading"
    page.locator(opened).evaluate_all("(all) => { for (const one of all) one.open = true; }")
    found = Axe().run(page, options={"runOnly": RULES}).response["violations"]
    assert [(one["id"], one["nodes"][0]["target"]) for one in found] == []


def test_the_closed_page_is_short(visit):
    height = visit(1280).evaluate("document.documentElement.scrollHeight")
    assert height <= 15 * 900


def test_the_first_screen_has_the_conclusion_sizes_promises_and_map(visit):
    page = visit(1280)
    shown = page.locator("h1, .lead, .models, .card, table.regimes")
    assert shown.count() == 1 + 1 + 2 + 3 + 1
    for box in (one.bounding_box() for one in shown.all()):
        assert box["y"] >= 0 and box["y"] + box["height"] <= 900
        assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
    assert page.locator(".samples img").first.bounding_box()["y"] < 2 * 900


def hints(page) -> int:
    """How many of the tables in view say that they scroll."""
    said = "(one) => getComputedStyle(one, '::before').content.includes('Scroll sideways')"
    return sum(one.evaluate(said) for one in page.locator(".scroll:visible").all())


def test_a_narrow_table_shows_the_difference_and_says_that_it_scrolls(visit):
    page = visit(390)
    assert hints(page) == 0  # the map of the first screen fits
    page.locator("#table-table4 > summary").click()
    page.locator("#table-table4 .overflows").wait_for()
    assert hints(page) == 1
    cell = page.locator("#table-table4 tbody tr").last.locator("td").first
    assert cell.locator("[data-fields^=delta_measured]").count() == 1
    box = cell.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    wide = visit(1600)
    wide.locator("#table-table4 > summary").click()
    assert hints(wide) == 0


def test_a_link_opens_what_it_points_to(visit):
    page = visit()
    for id_, table in (("table-regimes", "#table-regimes table"), ("C10", "#C10 table")):
        assert page.locator(f"{table}:visible").count() == 0
        page.locator(f"#summary a[href='#{id_}']").click()
        page.locator(table).first.wait_for()
        assert page.locator(f"#{id_}").bounding_box()["y"] < 900
    page.uncheck("input[value=reproduced]")
    assert not page.locator("#C10").is_visible()
    page.locator("#summary a[href='#C10']").click()  # the address is the same
    assert page.locator("#C10").is_visible()


def test_filters_hide_and_show_claims(visit):
    page = visit()
    claims = page.locator(".claim")
    every = claims.count()
    assert page.locator(".claim:visible").count() == every
    contradicted = page.locator(".claim[data-status=contradicted]").count()
    page.uncheck("input[value=contradicted]")
    assert page.locator(".claim:visible").count() == every - contradicted
    assert page.locator("#shown").inner_text() == f"{every - contradicted} of {every} claims shown."
    page.check("input[value=contradicted]")
    page.select_option("select[name=family]", "llava")
    of_family = page.locator(".claim[data-families~=llava]").count()
    assert 0 < of_family < every
    assert page.locator(".claim:visible").count() == of_family
    page.select_option("select[name=family]", "")
    assert page.locator(".claim:visible").count() == every


def test_the_switch_changes_the_colours(visit):
    page = visit(scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.click("button.theme")
    dark = page.evaluate(colour)
    assert dark != light
    page.click("button.theme")
    assert page.evaluate(colour) == light
    assert visit(scheme="dark").evaluate(colour) == dark


def test_figures_follow_the_colours(visit):
    def ground(page):
        picture = page.locator("#figure-pareto img")
        with Image.open(io.BytesIO(picture.screenshot())) as opened:
            return opened.convert("RGB").getpixel((opened.width // 2, opened.height // 2))

    dark = ImageColor.getrgb(style.DARK["#ffffff"])
    page = visit(scheme="light")
    page.locator("#figure-pareto > summary").click()
    assert ground(page) == (255, 255, 255)
    page.click("button.theme")
    assert ground(page) == dark
    page = visit(scheme="dark")
    page.locator("#figure-pareto > summary").click()
    assert ground(page) == dark


def test_without_javascript_all_is_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator(".claim:visible").count() == page.locator(".claim").count() > 20
    assert page.locator("#filters:visible").count() == 0
    page.locator("#C03 > details > summary").click()
    assert page.locator("#C03 details table:visible").count() == 1


def test_print_opens_everything(visit):
    page = visit(width=718)  # A4 with the margins that browsers take
    page.emulate_media(media="print")
    assert page.locator("nav:visible, #filters:visible").count() == 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert overflow(page) <= 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
