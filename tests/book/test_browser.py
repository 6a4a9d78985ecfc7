"""The book in a real browser, below a path prefix, wide and narrow, light and dark, with and without JavaScript."""

import importlib.util
import json
import time
from pathlib import Path

import pytest

from zsr_utils.book import _chromium
from zsr_utils.plots._style import DARK, TEXT


pytestmark = pytest.mark.browser

COLUMN = "return [...document.querySelectorAll('.zsr-numbers tbody tr')].map(r => Number(r.cells[2].dataset.value))"
SHOWN = """return [...document.querySelectorAll('.zsr-numbers tbody tr')].filter(r => r.checkVisibility())
  .map(r => r.textContent)"""
LIMIT = 1.5e6  # bytes a chapter may weigh, without the scripts and styles that all pages share
DRAWN = """
// plotly ships arrays as they are, or as typed arrays packed into text ("bdata")
const size = v => v == null ? 0 : (v.length ?? (v.bdata ?? "").length);
return [...document.querySelectorAll('.zsr-figure .plotly-graph-div')].map(d => ({
  points: (d.data || []).reduce((n, t) => n + size(t.z ?? t.x), 0),
  marks: d.querySelectorAll('.points path, .lines path, .heatmaplayer image, .hm image, .scatterlayer path').length
         + d.querySelectorAll('canvas').length,
  width: d.getBoundingClientRect().width, height: d.getBoundingClientRect().height,
}));
"""
WEIGHT = """
return performance.getEntries().filter(e => e.transferSize && !e.name.includes('/_static/'))
  .reduce((n, e) => n + e.transferSize, 0);
"""
PICTURES = """
const done = arguments[0];
document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; });
Promise.allSettled([...document.images].map(i => i.decode())).then(() => done([...document.images].filter(
  i => !i.naturalWidth || !(i.alt || i.closest('a')?.textContent.trim())).map(i => i.src)));
"""
AXE = """
const done = arguments[0];
const rules = ['wcag2a', 'wcag2aa', 'best-practice'];
document.querySelectorAll('.zsr-numbers tbody tr:nth-child(n+20)').forEach(r => r.remove());  // they are all alike
// inside a drawing are thousands of marks; its text is dark grey on white, and the caption below says what it shows
axe.run({exclude: ['.main-svg']}, {runOnly: rules, preload: false}).then(result => done(result.violations.map(
  v => v.id + ': ' + v.nodes.length + ' times, ' + v.nodes[0].target.join(' ') +
    ' ' + (v.nodes[0].any[0]?.message ?? '')
)));
"""
AT_ONCE = "document.head.insertAdjacentHTML('beforeend', '<style>* {transition: none !important}</style>')"
THEME = "return document.documentElement.dataset.theme"
COLOUR = "return document.querySelector('.zsr-figure .plotly-graph-div')._fullLayout.font.color"
POINT = """
// the middle of a point that stands for a sample, and the picture that is shown for it
const figure = [...document.querySelectorAll('.plotly-graph-div')].find(d => d.layout.meta?.thumbnails);
figure.scrollIntoView({block: 'center'});
const box = figure.querySelector('.scatterlayer .trace .points path').getBoundingClientRect();
return [box.x + box.width / 2, box.y + box.height / 2];
"""
THUMBNAIL = """
const box = [...document.querySelectorAll('.zsr-thumbnail')].find(b => !b.hidden);
return box && [getComputedStyle(box).backgroundPosition, box.getBoundingClientRect().width];
"""
# pandas leaves the head of an index without text
LEFT = {"empty-table-header"}


def pages(book: Path) -> list[Path]:
    return [*sorted(book.glob("book/*.html")), *sorted(book.glob("book/_generated/*.html")), *chapters(book)]


def chapters(book: Path) -> list[Path]:
    return sorted(book.glob("results/*/*/*.html"))


def wait_for(driver, wanted: int) -> list[dict]:
    deadline = time.monotonic() + 60
    while True:
        figures = driver.execute_script(DRAWN)
        if (len(figures) == wanted and all(f["marks"] for f in figures)) or time.monotonic() > deadline:
            return figures
        time.sleep(0.3)


@pytest.mark.parametrize("width", [1400, 390])
def test_every_page_is_whole_and_accessible(book, site, browser, width):
    """Wide pages are checked for accessibility, too, in the light and in the dark."""
    axe, found = axe_script() if width > 500 else "", {}
    with browser(width) as driver:
        driver.set_script_timeout(240)
        for page in pages(book):
            wanted = page.read_text().count('<figure class="zsr-figure"')
            driver.get(f"{site}/{page.relative_to(book).as_posix()}")
            figures = wait_for(driver, wanted)
            assert len(figures) == wanted, page.name
            for figure in figures:
                assert figure["points"] > 0 and figure["marks"] > 0, f"{page.name}: an empty figure {figure}"
                assert figure["width"] > 200 and figure["height"] > 150
            if page in chapters(book):
                assert wanted, page.name
                weight = driver.execute_script(WEIGHT)
                print(f"{page.stem}, {width} px wide: {weight / 1e6:.2f} MB")
                assert 1e4 < weight <= LIMIT, f"{page.name} weighs {weight / 1e6:.2f} MB"
            overflow = driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
            assert overflow <= 0, f"{page.name} scrolls sideways by {overflow} px at {width} px"
            broken = driver.execute_async_script(PICTURES)
            assert not broken, f"{page.name}: pictures that do not show or have no alternative text {broken[:3]}"
            errors = [e for e in driver.get_log("browser") if e["level"] == "SEVERE" and "favicon" not in e["message"]]
            assert not errors, f"{page.name}: {errors[:3]}"
            if axe and (violations := violated(driver, axe)):
                found[page.stem] = violations
        requests = [
            message["params"]["request"]["url"]
            for message in (json.loads(e["message"])["message"] for e in driver.get_log("performance"))
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert requests
        known = (site, "data:", "blob:", "chrome:", "about:")
        outside = [u for u in requests if not u.startswith(known) and not u.endswith("/favicon.ico")]
        assert not outside, f"requests that leave the book: {outside[:3]}"
    assert not found, json.dumps(found, indent=1)


def axe_script() -> str:
    package = importlib.util.find_spec("axe_playwright_python")  # found, not imported: only its script is used
    if package is None:
        pytest.skip("axe-playwright-python is not installed")
    return (Path(package.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


def violated(driver, axe: str) -> list[str]:
    """What the page that is open violates, light and dark."""
    driver.execute_script(axe)
    driver.execute_script(AT_ONCE)
    violations = []
    for theme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        deadline = time.monotonic() + 30
        while (shown := driver.execute_script(THEME)) != theme and time.monotonic() < deadline:
            time.sleep(0.05)
        assert shown == theme
        violations += [f"{theme}: {v}" for v in driver.execute_async_script(AXE) if v.split(":")[0] not in LEFT]
    features = [{"name": "prefers-color-scheme", "value": "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    return violations


def test_without_javascript_pictures_stand_for_the_figures(book, site, browser):
    page = chapters(book)[0]
    wanted = page.read_text().count('<figure class="zsr-figure"')
    with browser(1400, "light", "--blink-settings=scriptEnabled=false") as driver:
        driver.get(f"{site}/{page.relative_to(book).as_posix()}")
        stills = driver.find_elements("css selector", ".zsr-figure > .zsr-still")
        assert len(stills) == wanted and all(s.is_displayed() for s in stills)
        assert not any(d.is_displayed() for d in driver.find_elements("css selector", ".zsr-figure > div"))


def test_figures_follow_the_theme(book, site, browser):
    page = chapters(book)[0]
    with browser(1400, "dark") as driver:
        driver.get(f"{site}/{page.relative_to(book).as_posix()}")
        wait_for(driver, page.read_text().count('<figure class="zsr-figure"'))
        dark = driver.execute_script(COLOUR)
        driver.execute_script("document.documentElement.dataset.theme = 'light'")
        deadline = time.monotonic() + 30
        while driver.execute_script(COLOUR) == dark and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (dark, driver.execute_script(COLOUR)) == (DARK[TEXT], TEXT)


def test_hovering_over_a_sample_shows_it(book, site, browser):
    from selenium.webdriver import ActionChains

    page = next(p for p in chapters(book) if "thumbnails" in p.read_text())
    with browser(1400) as driver:
        driver.get(f"{site}/{page.relative_to(book).as_posix()}")
        wait_for(driver, page.read_text().count('<figure class="zsr-figure"'))
        assert driver.execute_script(THUMBNAIL) is None
        x, y = driver.execute_script(POINT)
        mouse = ActionChains(driver)
        for step in (3, 1, 0):
            mouse.w3c_actions.pointer_action.move_to_location(round(x) + step, round(y))
        mouse.perform()
        deadline = time.monotonic() + 30
        while not (found := driver.execute_script(THUMBNAIL)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert found and found[1] == 80


def test_numbers_can_be_searched_and_sorted(site, browser):
    with browser(1400) as driver:
        driver.get(f"{site}/book/_generated/every-number.html")
        driver.find_element("css selector", ".zsr-search input").send_keys("zero_shot 1,200")
        shown = driver.execute_script(SHOWN)
        assert shown and all("zero_shot" in row and "1,200" in row for row in shown)
        assert driver.find_element("css selector", ".zsr-search output").text.startswith(f"{len(shown)} of ")
        head = driver.find_elements("css selector", ".zsr-numbers th button")[2]
        for order in (1, -1):
            head.click()
            column = driver.execute_script(COLUMN)
            assert column == sorted(column, reverse=order < 0) and len(set(column)) > 10


def test_the_pages_to_print_are_those_of_the_book_in_its_order(book):
    found = _chromium.pages(book)
    assert all(page.is_file() for page in found)
    assert set(found) == {page.resolve() for page in pages(book)} and found[0].stem == "preface"
    printed = [page for page in found if page in {p.resolve() for p in chapters(book)}]
    assert printed == sorted(printed) and len(printed) == len(chapters(book))


def test_a_printed_chapter_shows_its_figures(book, tmp_path, monkeypatch):
    pypdf = pytest.importorskip("pypdf")
    page = chapters(book)[0]
    monkeypatch.setattr(_chromium, "pages", lambda _: [page])
    path = _chromium.print_book(book, tmp_path / "pdf")
    printed = pypdf.PdfReader(path)
    pictures = sum(len(p.images) for p in printed.pages)
    text = " ".join(p.extract_text() for p in printed.pages)
    wanted = page.read_text().count('<figure class="zsr-figure"')
    assert pictures >= wanted and f"Figure 1.{wanted}" in text and len(printed.outline) == 1
