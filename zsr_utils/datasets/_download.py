"""Downloads that go on where they were interrupted, are checked, and never leave half a data set under its name."""

import gzip
import hashlib
import os
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import requests
from filelock import FileLock
from huggingface_hub import snapshot_download
from urllib3.exceptions import HTTPError

from zsr_utils._progress import progress
from zsr_utils._text import unknown
from zsr_utils.datasets._catalogue import HUB, NAMES, Source, data_folder, how_to_get, source


SLOWEST, PATIENCE = 20_000, 60  # bytes a second on average, after this many seconds: so the whole time is limited too
TRIES = 5  # without a byte between


class DownloadError(RuntimeError):
    """A data set could not be fetched; what has arrived is kept unless it is wrong."""


def download(name: str, folder: str | Path | None = None) -> Path:
    """Fetch a data set of `load_dataset` into a data folder (None is `ZSR_DATA`), and return its own folder."""
    root = Path(folder) if folder else data_folder()
    if name == "tabletop":
        raise ValueError("tabletop is part of the project, there is nothing to fetch.")
    hub = HUB.fullmatch(name)
    if name not in NAMES and not hub:
        raise ValueError(f"{unknown('data set', name, NAMES)} Of the Hugging Face hub it is 'wds:org/name'.")
    known = source(name)
    if known.by_hand:
        raise ValueError(how_to_get(name, root))
    target = root / known.folder
    try:
        if hub:
            snapshot_download(hub[1], repo_type="dataset", local_dir=target)
        elif not target.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{known.folder}.lock"):
                if not target.is_dir():  # another process had the lock
                    _unpack(_fetched(known, root / known.url.rsplit("/", 1)[1]), target)
    except Exception as error:  # network, disk and archive have errors of their own, too many to list
        what = known.url or f"https://huggingface.co/datasets/{hub[1]}"
        size = f" ({known.size})" if known.size else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        said = f"{name} could not be fetched ({reason}): it is {what}{size} and belongs, unpacked, in {str(target)!r}"
        again = "Another try goes on from what is here; --to or ZSR_DATA choose another folder"
        raise DownloadError(f"{said}. {again}.") from error
    return target


def _fetched(known: Source, path: Path) -> Path:
    """One file, under its name only when it is whole and its checksum right; until then it is `<path>.part`."""
    if path.is_file():
        return path
    part, began, arrived, failed = path.with_name(f"{path.name}.part"), time.monotonic(), 0, 0
    number, unit = known.size.split()
    size = float(number) * {"MB": 1e6, "GB": 1e9}[unit]
    with part.open("ab") as file, progress(round(size), path.name, unit="B", initial=file.tell()) as bar:
        while True:
            try:
                for chunk in _sent(known.url, file):
                    file.write(chunk)
                    bar.update(len(chunk))
                    arrived, failed, seconds = arrived + len(chunk), 0, time.monotonic() - began
                    if file.tell() > 1.1 * size:  # stated sizes are rounded, and some mean MiB
                        part.unlink()
                        raise ValueError(f"more has arrived than its {known.size}, so it was removed")
                    if arrived < SLOWEST * (seconds - PATIENCE):
                        raise ValueError(f"{arrived:,} bytes in {seconds:.0f} s are too slow")
                break
            except (requests.ConnectionError, requests.Timeout, HTTPError):  # the line broke: go on from here
                failed += 1
                if failed > TRIES:
                    raise
                time.sleep(1)
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest() if known.md5 else ""
    if digest != known.md5:
        part.unlink()
        raise ValueError(f"its md5 is {digest}, expected {known.md5}, so it was removed")
    part.replace(path)
    return path


def _sent(url: str, file: BinaryIO) -> Iterator[bytes]:
    """What a server has beyond a file's end, as it arrives; from the beginning, if it cannot send a part."""
    # positions in a compressed answer are others
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={file.tell()}-"} if file.tell() else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == 416:  # nothing is missing: the checksum decides
            return
        if not response.ok:
            raise ValueError(f"the server answers {response.status_code} {response.reason}")
        if response.status_code != 206:
            file.seek(0)
            file.truncate()
        while chunk := response.raw.read1(1 << 20):
            yield chunk


def _unpack(archive: Path, folder: Path) -> None:
    """Turn a tar archive, or the single folder at its top, into a folder that appears only when it is whole."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        inner = Path(temporary) / "archive"  # with everybody's rights, which the temporary folder has not
        inner.mkdir()
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(inner, filter="data")
                while tar.fileobj.read(1 << 18):  # to the end, where gzip compares its checksum
                    pass
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
            archive.unlink()  # or the next try would take it for downloaded
            raise
        top = list(inner.iterdir())
        os.replace(top[0] if len(top) == 1 and top[0].is_dir() else inner, folder)
    archive.unlink()
