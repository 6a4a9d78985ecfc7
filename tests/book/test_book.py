"""The book as a reader gets it: built with warnings fatal, every figure drawn, nothing fetched."""

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import nbformat
import pytest


ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
RESULTS = ROOT / "results" / "tabletop-base@tabletop"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
]


def make(*arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ZSR_", "PYTEST"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="session")
def book() -> Path:
    done = make("book")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return HTML


def chapters() -> list[Path]:
    return sorted(RESULTS.glob("*/*.ipynb"))


def pages(book: Path) -> list[Path]:
    return [*sorted(book.glob("book/*.html")), *sorted(book.glob("results/*/*/*.html"))]


def figures_made(path: Path) -> int:
    """Cells whose last line is a plotly figure of the package."""
    cells = nbformat.read(path, as_version=4).cells
    return sum(bool(re.search(r"^plots\.(?!gallery)\w+\(", c.source, re.M)) for c in cells if c.cell_type == "code")


def test_every_figure_is_stored_as_html(book):
    assert chapters()
    for path in chapters():
        stored = sum(
            "plotly-graph-div" in str(o.get("data", {}).get("text/html", ""))
            for c in nbformat.read(path, as_version=4).cells
            if c.cell_type == "code"
            for o in c.outputs
        )
        assert stored == figures_made(path) > 0


def test_a_second_build_runs_no_notebook(book):
    before = {p: p.stat().st_mtime_ns for p in chapters()}
    began = time.perf_counter()
    done = make("book")
    seconds = time.perf_counter() - began
    assert done.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in chapters()} == before
    print(f"second make book: {seconds:.1f} s")


def test_results_hold_rows_numbers_and_provenance(book):
    for path in chapters():
        names = {p.name for p in path.parent.iterdir()}
        assert {"samples.parquet", "metrics.json", "provenance.json"} <= names
        assert not [n for n in names if n.endswith(".tmp") or "running" in n]
        for metric in json.loads((path.parent / "metrics.json").read_text()):
            assert metric["low"] <= metric["high"] and metric["n"] > 0 and metric["interval"]


def test_no_page_names_an_outside_script_style_or_picture(book):
    for page in pages(book):
        text = re.sub(
            r"<script[^>]*>.*?</script>", lambda m: m.group()[:200].split(">")[0], page.read_text(), flags=re.S
        )
        outside = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+\"", text)
        outside = [o for o in outside if 'rel="canonical"' not in o]
        assert not outside, f"{page.name}: {outside[:3]}"


@contextlib.contextmanager
def served(folder: Path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


@contextlib.contextmanager
def browser(width: int, profile: Path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    # a window cannot be narrower than about 500 px; a phone's screen is emulated instead
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        yield driver
    finally:
        driver.quit()


DRAWN = """
// plotly ships arrays as they are, or as typed arrays packed into text ("bdata")
const size = v => v == null ? 0 : (v.length ?? (v.bdata ?? "").length);
return [...document.querySelectorAll('.plotly-graph-div')].map(d => ({
  points: (d.data || []).reduce((n, t) => n + size(t.z ?? t.x), 0),
  marks: d.querySelectorAll('.points path, .lines path, .heatmaplayer image, .hm image, .scatterlayer path').length
         + d.querySelectorAll('canvas').length,
  width: d.getBoundingClientRect().width, height: d.getBoundingClientRect().height,
}));
"""


@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed")
@pytest.mark.parametrize("width", [1400, 390])
def test_every_page_in_a_real_browser(book, width, tmp_path):
    expected = {path.stem: figures_made(path) for path in chapters()}
    with served(book) as address, browser(width, tmp_path) as driver:
        for page in pages(book):
            driver.get(f"{address}/{page.relative_to(book).as_posix()}")
            wanted = expected.get(page.stem, 0)
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline:
                figures = driver.execute_script(DRAWN)
                if len(figures) == wanted and all(f["marks"] for f in figures):
                    break
                time.sleep(0.3)
            assert len(figures) == wanted, page.name
            for figure in figures:
                assert figure["points"] > 0 and figure["marks"] > 0, f"{page.name}: an empty figure {figure}"
                assert figure["width"] > 200 and figure["height"] > 150
            broken = driver.execute_script(
                "return [...document.images].filter(i => !i.naturalWidth || !i.alt).map(i => i.src)"
            )
            assert not broken, f"{page.name}: pictures that do not show or have no alternative text {broken[:3]}"
            overflow = driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
            assert overflow <= 0, f"{page.name} scrolls sideways by {overflow} px at {width} px"
            errors = [e for e in driver.get_log("browser") if e["level"] == "SEVERE" and "favicon" not in e["message"]]
            assert not errors, f"{page.name}: {errors[:3]}"
        requests = [
            message["params"]["request"]["url"]
            for message in (json.loads(e["message"])["message"] for e in driver.get_log("performance"))
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert requests
        outside = [u for u in requests if not u.startswith((address, "data:", "blob:", "chrome:", "about:"))]
        assert not outside, f"requests that leave the machine: {outside[:3]}"
