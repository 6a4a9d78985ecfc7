"""Files of a result: whole or none, and checked when read."""

import hashlib
import json
import math
import os
from collections import Counter
from numbers import Real
from pathlib import Path

import pandas as pd

from zsr_utils._cache import write_whole


FORMAT = 1  # of a results folder; a folder without a number is older than the numbers
FACTS = {  # of a provenance that readers rely on
    "model": str, "dataset": str, "notebook": str | None, "pretrained": str | None, "parameters": dict | None,
    "files": dict | None, "format": int | None,
}  # fmt: skip
NUMBER = {"name": str, "value": Real, "low": Real, "high": Real, "interval": str, "n": Real, "unit": str}
EARLIER = "earlier"  # folder beside a result, for those that were in its place
AGAIN = "run its notebook again"


def write_json(path: Path, content) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def results_root() -> Path:
    """Where results go: `ZSR_RESULTS`, or `results` at the top of the project."""
    return Path(os.environ.get("ZSR_RESULTS") or Path(__file__).resolve().parents[2] / "results").absolute()


def safe_name(name: str) -> str:
    """A folder's name for a model or data-set address, with a digest where it does not say all of it."""
    name = name.rstrip("/") or name
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    kept = kept.encode()[-60:].decode(errors="ignore").strip("-.") or "unnamed"  # a path's end tells more
    return kept if kept == name else f"{kept}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def result_folder(model: str, dataset: str, notebook: str, pretrained: str | None = None) -> Path:
    """`results/<model>@<data set>/<notebook>`, with a tag `results/<model>@<tag>@<data set>/<notebook>`."""
    parts = [model, *([pretrained] if pretrained else []), dataset]
    return results_root() / "@".join(map(safe_name, parts)) / notebook


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(folder: Path, to: Path | None = None) -> Path:
    """Move the files of a result, its provenance last: a stop in between is made up for. Gives where they are now."""
    known = folder / "provenance.json"
    if to and (to / known.name).is_file():
        set_aside(to)
    to = to or folder / EARLIER / file_digest(known)[:8]
    to.mkdir(parents=True, exist_ok=True)
    files = [p for p in folder.glob("[!.]*") if p.is_file()]  # a notebook that is running has a hidden name
    for file in sorted(files, key=lambda p: p == known):
        file.replace(to / file.name)
    return to


def read_provenance(folder: Path, *files: str) -> dict:
    """The provenance of one result folder; ValueError where it is damaged, or `files` are not those it tells of."""
    known = _read_json(path := folder / "provenance.json")
    facts = known if isinstance(known, dict) else {}
    if type(number := facts.get("format", 0)) is int and number > FORMAT:
        found = f"{str(folder)!r} has results of format {number}, allowed is up to {FORMAT}"
        raise ValueError(f"{found}: a newer version of this package wrote it, so update.")
    wrong = [f"{name} is {facts.get(name)!r}" for name, kind in FACTS.items() if not isinstance(facts.get(name), kind)]
    if wrong:
        raise ValueError(f"{str(path)!r} is damaged ({wrong[0]}): {AGAIN}.")
    for file in (folder / name for name in files):
        digest = (facts.get("files") or {}).get(file.name)
        if digest and not (file.is_file() and file_digest(file) == digest):
            raise ValueError(f"{str(file)!r} is not of the run that its provenance.json tells of: {AGAIN}.")
    return facts


def read_numbers(folder: Path) -> list[dict]:
    """The numbers of one result folder; ValueError where one is damaged, there twice, or of another run."""
    read_provenance(folder, "metrics.json")
    numbers = _read_json(path := folder / "metrics.json")
    reasons = [wrong_number(n) for n in numbers] if isinstance(numbers, list) else ["it holds no list"]
    if not any(reasons):
        reasons = [f"{name} is there twice" for name, n in Counter(n["name"] for n in numbers).items() if n > 1]
    if reason := next(filter(None, reasons), ""):
        raise ValueError(f"{str(path)!r} is damaged ({reason}): {AGAIN}.")
    return numbers


def wrong_number(number) -> str:
    """Why this is no number with an interval; empty where it is."""
    if not isinstance(number, dict) or number.keys() < NUMBER.keys():
        return f"{str(number)[:60]!r} is no number with its interval"
    for key, kind in NUMBER.items():
        value = number[key]
        if value is None and key in ("low", "high"):  # one sample has no interval
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is Real and not math.isfinite(value)):
            return f"{key} of {number['name']} is {value!r}"
    low, high = number["low"], number["high"]
    beyond = None not in (low, high) and low - high > 1e-9 * max(1, abs(high))  # and not by rounding alone
    return f"low of {number['name']} is {low!r}, above high, {high!r}" if beyond else ""


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({getattr(error, 'strerror', None) or error}): {AGAIN}.") from error


def concat(frames) -> pd.DataFrame:
    """Frames one after the other."""
    return pd.concat(frames, ignore_index=True)
