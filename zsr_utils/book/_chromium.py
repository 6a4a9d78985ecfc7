"""What only a browser can do: pictures of figures, and pages as PDF. Without Chromium there are none.

Chromium is called as a command; the book needs neither Selenium nor Kaleido.
"""

import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from zsr_utils.book._chapters import Figure


ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "book" / "_generated" / "pictures"
WIDTH = 760  # CSS pixels: the text column of a page
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip
DRAW = """<!doctype html><meta charset="utf-8"><script src="{script}"></script>
<script type="application/json" id="figures">{figures}</script><ol id="drawn"></ol><script>
(async () => {{
  for (const {{digest, data, layout, width, height}} of JSON.parse(document.getElementById("figures").textContent)) {{
    const size = {{width, height, autosize: false, paper_bgcolor: "#fff", plot_bgcolor: "#fff"}};
    const figure = {{data, layout: {{...layout, ...size}}}};
    const picture = await Plotly.toImage(figure, {{format: "webp", width, height, scale: 2}});
    document.getElementById("drawn").insertAdjacentHTML("beforeend", `<li>${{digest}} ${{picture}}</li>`);
  }}
}})();
</script>"""


def chromium() -> str | None:
    """The browser's command, if one is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pictures() -> dict[str, Path]:
    """The pictures that have been drawn, by the digest of their figure."""
    return {p.stem: p for p in PICTURES.glob("*.webp")}


def draw(figures: Sequence[Figure], script: Path) -> None:
    """Draw the figures that have no picture yet, on white; figures that cannot be drawn are said and stay without.

    Args:
        figures: Figures of the book; pictures of others are removed.
        script: plotly.js.
    """
    PICTURES.mkdir(parents=True, exist_ok=True)
    wanted = {f.digest: f for f in figures}
    known = pictures()
    for digest in known.keys() - wanted.keys():
        known[digest].unlink()
    missing = [f for digest, f in wanted.items() if digest not in known]
    if not missing:
        return
    if not chromium():
        print(f"{len(missing)} figures get no picture for print: Chromium is not installed.", file=sys.stderr)
        return
    for batch in (missing[i : i + 50] for i in range(0, len(missing), 50)):
        for digest, picture in drawn(batch, script).items():
            (PICTURES / f"{digest}.webp").write_bytes(picture)
    left = [f.label for f in missing if f.digest not in pictures()]
    if left:
        print(f"No picture for print could be drawn of figures {', '.join(left)}.", file=sys.stderr)


def drawn(figures: Sequence[Figure], script: Path) -> dict[str, bytes]:
    specs = [f.spec | {"digest": f.digest, "width": WIDTH, "height": f.height} for f in figures]
    text = json.dumps(specs).replace("<", "\\u003c")  # a name in it must not end the script
    with tempfile.TemporaryDirectory(prefix="zsr-draw-") as folder:
        page = Path(folder) / "draw.html"
        page.write_text(DRAW.format(script=script.resolve().as_uri(), figures=text), encoding="utf-8")
        dump = browse("--virtual-time-budget=120000", "--dump-dom", page.as_uri(), profile=Path(folder) / "profile")
    found = re.findall(r"<li>(\w+) data:image/webp;base64,([\w+/=]+)</li>", dump)
    return {digest: base64.b64decode(picture) for digest, picture in found}


def browse(*arguments: str, profile: Path, limit: int = 300) -> str:
    """Run Chromium once, with an empty profile; returns what it printed."""
    command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit).stdout


def print_book(built: Path, target: Path) -> list[Path]:
    """Print the pages of a built book, in its order, to one PDF, or to one a page where pypdf is not installed.

    Raises:
        RuntimeError: If Chromium is not installed, or a page could not be printed.
    """
    if not chromium():
        raise RuntimeError("A PDF is printed by Chromium, which is not installed.")
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.pdf"):
        old.unlink()
    files = []
    with tempfile.TemporaryDirectory(prefix="zsr-print-") as folder:
        for number, page in enumerate(pages(built)):
            file = target / f"{number:02d}-{page.stem}.pdf"
            browse(
                "--no-pdf-header-footer", "--virtual-time-budget=30000", "--run-all-compositor-stages-before-draw",
                f"--print-to-pdf={file}", page.as_uri(),
                profile=Path(folder) / file.stem,  # one that another browser is still leaving would be locked
            )  # fmt: skip
            if not file.is_file():
                raise RuntimeError(f"Chromium printed no PDF of {page.name}.")
            files.append(file)
    try:
        from pypdf import PdfWriter
    except ImportError:
        return files
    writer = PdfWriter()
    for file, page in zip(files, pages(built)):
        writer.append(file, outline_item=heading(page))
    whole = target / "book.pdf"
    writer.write(whole)
    for file in files:
        file.unlink()
    return [whole]


def pages(built: Path) -> list[Path]:
    """The pages of a built book in the order of its table of contents."""
    first = built / "book" / "preface.html"
    text = first.read_text(encoding="utf-8")
    menu = text[text.index("bd-links") :]
    links = re.findall(r'class="reference internal" href="([^"#]+\.html)"', menu[: menu.index("</nav>")])
    return list(dict.fromkeys([first, *((first.parent / unquote(link)).resolve() for link in links)]))


def heading(page: Path) -> str:
    import html

    match = re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8"), re.S)
    return html.unescape(match[1]).split(" — ")[0].strip() if match else page.stem
