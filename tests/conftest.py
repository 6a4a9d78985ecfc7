"""Settings that every test shares; the built book, served as project pages serve it, and a browser to read it with."""

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest


# Small tensors on few cores: threads that wait for each other double the time of two processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ZSR_PROGRESS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]
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


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in item.keywords and not (CHROMIUM and DRIVER):
            item.add_marker(pytest.mark.skip(reason="Chromium and its driver are not installed"))


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory):
    """A cache folder of their own for the tests of one module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make():
    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k == "ZSR_CACHE" or not k.startswith(("ZSR_", "PYTEST"))}
        return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)

    return run


@pytest.fixture(scope="session")
def book(make) -> Path:
    """`_build/html`, made anew; with `ZSR_BOOK_BUILT=1` as it stands, to check pages while they are written."""
    if os.environ.get("ZSR_BOOK_BUILT") != "1":
        done = make("book")
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def site(book, tmp_path_factory):
    """The address of the book below a path prefix, as project pages have one."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path_factory.mktemp("pages")
    (folder / "prefix").symlink_to(book)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/prefix"
    server.shutdown()


@pytest.fixture
def browser(tmp_path):
    """A function that opens a browser: `with browser(width, theme) as driver`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    @contextlib.contextmanager
    def opened(width: int, theme: str = "light", *flags: str):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        # a window cannot be narrower than about 500 px; a phone's screen is emulated instead
        screen = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        try:
            yield driver
        finally:
            driver.quit()

    return opened
