"""What only a browser can do: pictures of figures, and pages as PDF. Without Chromium there are none.

Chromium is called as a command; the book needs neither Selenium nor Kaleido.
"""

import base64
import html
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from zsr_utils.book._chapters import Figure
from zsr_utils.book._pages import rendered
from zsr_utils.records import write_whole
from zsr_utils.records.chapters import ROOT


PICTURES = ROOT / "book" / "_generated" / "pictures"
WIDTH = 760  # CSS pixels: the text column of a page
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip


def chromium() -> str | None:
    """The browser's command, if one is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pictures() -> dict[str, Path]:
    """The pictures that have been drawn, by the digest of their figure."""
    return {p.stem: p for p in PICTURES.glob("*.webp")}


def draw(figures: Iterable[Figure], script: Path) -> None:
    """Draw the figures of a book that have no picture yet, on white, by plotly.js; pictures of others are removed."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    wanted, known = {f.digest: f for f in figures}, pictures()
    for digest in known.keys() - wanted.keys():
        known[digest].unlink()
    missing = [f for digest, f in wanted.items() if digest not in known]
    for first in range(0, len(missing) if chromium() else 0, 50):
        for digest, picture in drawn(missing[first : first + 50], script).items():
            (PICTURES / f"{digest}.webp").write_bytes(picture)
    if left := [f.label for f in missing if f.digest not in pictures()]:
        reason = "Chromium could not draw them" if chromium() else "Chromium is not installed"
        print(f"Figures {', '.join(left)} get no picture for print: {reason}.", file=sys.stderr)


def drawn(figures: Iterable[Figure], script: Path) -> dict[str, bytes]:
    specs = [f.spec | {"digest": f.digest, "width": WIDTH, "height": f.height} for f in figures]
    with tempfile.TemporaryDirectory(prefix="zsr-draw-") as folder:
        page = Path(folder) / "draw.html"
        page.write_text(rendered("draw.html", script=script.resolve().as_uri(), specs=specs), encoding="utf-8")
        dump = browse("--virtual-time-budget=120000", "--dump-dom", page.as_uri(), profile=Path(folder) / "profile")
    found = re.findall(r"<li>(\w+) data:image/webp;base64,([\w+/=]+)</li>", dump)
    return {digest: base64.b64decode(picture) for digest, picture in found}


def browse(*arguments: str, profile: Path, limit: int = 300) -> str:
    """Run Chromium once, with an empty profile; returns what it printed."""
    command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit).stdout


def print_book(built: Path, target: Path) -> Path:
    """Print the pages of a built book, in its order, to one PDF with an outline."""
    from pypdf import PdfWriter

    if not chromium():
        raise RuntimeError("A PDF is printed by Chromium, which is not installed.")
    writer = PdfWriter()
    with tempfile.TemporaryDirectory(prefix="zsr-print-") as folder:
        for number, page in enumerate(pages(built)):
            file = Path(folder) / f"{number}.pdf"
            browse(
                "--no-pdf-header-footer", "--virtual-time-budget=30000", "--run-all-compositor-stages-before-draw",
                f"--print-to-pdf={file}", page.as_uri(),
                profile=Path(folder) / f"profile-{number}",  # one that another browser is still leaving would be locked
            )  # fmt: skip
            if not file.is_file():
                raise RuntimeError(f"Chromium printed no PDF of {page.name}.")
            title = re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8"), re.S)[1]
            writer.append(file, outline_item=html.unescape(title).split(" — ")[0].strip())
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / "book.pdf", writer.write)
    return target / "book.pdf"


def pages(built: Path) -> list[Path]:
    """The pages of a built book in the order of its table of contents."""
    contents = yaml.safe_load((built.parent / "_toc.yml").read_text())
    names = [contents["root"], *(page["file"] for part in contents["parts"] for page in part["chapters"])]
    return [built / f"{name}.html" for name in names]
