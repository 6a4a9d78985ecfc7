"""Downloads that resume, are checked, and never leave half a data set under its name."""

import errno
import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock
from tqdm.auto import tqdm

from zsr_utils._text import unknown
from zsr_utils.datasets._catalogue import HUB, NAMES, data_folder, how_to_get, source


WAITS = (1, 4, 16)  # seconds before each further try
CHUNK = 1 << 18
AGAIN = (408, 429, 500, 502, 503, 504)
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "the folder may not be written to",
    errno.EPERM: "the folder may not be written to",
}


class DownloadError(RuntimeError):
    """Something could not be fetched; what was received in full or in part is kept unless it is wrong."""


class _Interrupted(Exception):
    """The server stopped early, or is busy: worth another try."""


def download(name: str, folder: str | Path | None = None) -> Path:
    """Fetch a data set by name, so that `load_dataset` finds it.

    Imagenette and ImageNet-V2, -A and -R are archives, CIFAR comes through torchvision, and `wds:org/name` through
    huggingface_hub. All continue where they were interrupted.

    Args:
        name: As for `load_dataset`.
        folder: Data folder; None is `ZSR_DATA` or its default.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: If the name is unknown, or the data set is not to be fetched by a program; the message says
            where it is to be had.
        DownloadError: If it cannot be fetched, checked or written.
    """
    root = Path(folder) if folder else data_folder()
    if name == "tabletop":
        raise ValueError("tabletop is part of the project, there is nothing to fetch.")
    if name not in NAMES and not HUB.fullmatch(name):
        raise ValueError(f"{unknown('data set', name, NAMES)} Of the Hugging Face hub it is 'wds:org/name'.")
    found = source(name)
    target = root / found.folder
    if found.by_hand:
        raise ValueError(how_to_get(name, root))
    with _in_words(root):
        root.mkdir(parents=True, exist_ok=True)
    if name.startswith("wds:"):
        _from_hub(name.removeprefix("wds:"), target)
    elif name.startswith("cifar"):
        _from_torchvision(name, root)
    elif not target.is_dir():
        archive = fetch(found.url, root / found.url.rsplit("/", 1)[1], md5=found.md5)
        extract(archive, target)
        archive.unlink()
    return target


def fetch(
    url: str, path: str | Path, *, sha256: str | None = None, md5: str | None = None, size: int | None = None
) -> Path:
    """Download one file; it has its name only when it is whole and its checksum right.

    What has arrived is in `<path>.part`, and a next call asks for the rest. If the server ignores that, or the
    file there has changed since (its ETag or date, kept in `<path>.part.json`), it starts again.

    Args:
        url: Address.
        path: File to write. One that is there already, and has the right size and checksum, is left as it is.
        sha256, md5: Checksum in hex.
        size: Bytes.

    Raises:
        DownloadError: If the server refuses or keeps breaking off, the size or checksum is wrong (what was
            received is then removed), or the file cannot be written.
    """
    path = Path(path)
    with _in_words(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file() or _wrong(path, sha256, md5, size):
                _received(url, path, sha256, md5, size)
    return path


def extract(archive: Path, folder: Path) -> Path:
    """Unpack a tar archive to a folder that appears only when it is whole.

    A single folder at the top of the archive becomes the folder itself.

    Raises:
        DownloadError: If the archive is damaged (it is then removed), would write outside of its folder, or cannot
            be written.
    """
    with _in_words(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            inner = temporary / "archive"
            inner.mkdir()
            with tarfile.open(archive) as tar:
                tar.extractall(inner, filter="data")
                while tar.fileobj.read(CHUNK):  # to the end, where gzip compares its checksum
                    pass
            top = list(inner.iterdir())
            os.replace(top[0] if len(top) == 1 and top[0].is_dir() else inner, folder)
        except tarfile.FilterError as error:
            raise DownloadError(f"{str(archive)!r} was not unpacked: {error}.") from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            archive.unlink()  # or the next call would take it for downloaded
            raise DownloadError(f"{str(archive)!r} is no whole tar archive and was removed: {error}.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _received(url: str, path: Path, sha256: str | None, md5: str | None, size: int | None) -> None:
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    for wait in (*WAITS, None):
        try:
            _stream(url, part, note)
            break
        except (
            _Interrupted,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as e:
            if wait is None:
                why = str(e) if isinstance(e, _Interrupted) else type(e).__name__
                raise DownloadError(
                    f"{url} cannot be fetched ({why}); what arrived is kept, and another try goes on from there."
                ) from e
            time.sleep(wait)
        except requests.RequestException as error:
            raise DownloadError(f"{url} cannot be fetched: {error}.") from error
    if wrong := _wrong(part, sha256, md5, size):
        part.unlink()
        note.unlink()
        raise DownloadError(f"{url} has {wrong}: what arrived was removed.")
    part.replace(path)
    note.unlink()


def _stream(url: str, part: Path, note: Path) -> None:
    """Receive what is missing of a file. Ends only when it is whole."""
    seen = _noted(note)
    validator = seen.get("etag") or seen.get("modified")
    have = part.stat().st_size if part.is_file() and seen.get("url") == url and validator else 0
    headers = {"Accept-Encoding": "identity"}  # a compressed answer has other positions
    if have:
        headers |= {"Range": f"bytes={have}-"}
        if not validator.startswith("W/"):  # a weak one is not allowed here, and is compared below
            headers["If-Range"] = validator
    with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as answer:
        of = answer.headers
        if answer.status_code == 416 and have:
            if of.get("Content-Range") == f"bytes */{have}" and _same(seen, of):
                return
            note.unlink()
            raise _Interrupted("the part that is here does not fit the file of the server")
        if answer.status_code in AGAIN:
            raise _Interrupted(f"the server answers {answer.status_code}")
        if not answer.ok:
            raise DownloadError(f"{url} cannot be fetched: the server answers {answer.status_code} {answer.reason}.")
        if answer.status_code == 206:
            if not have or not of.get("Content-Range", "").startswith(f"bytes {have}-") or not _same(seen, of):
                note.unlink(missing_ok=True)  # not what was asked for: the next try starts again
                raise _Interrupted("the server sent another part than was asked for")
        else:
            have = 0
            part.unlink(missing_ok=True)
            note.write_text(json.dumps({"url": url, "etag": of.get("ETag"), "modified": of.get("Last-Modified")}))
        length = int(of["Content-Length"]) if "Content-Length" in of else None
        total = None if length is None else have + length
        with (
            part.open("ab") as file,
            tqdm(
                total=total, initial=have, desc=part.stem, unit="B", unit_scale=True,
                disable=os.environ.get("ZSR_PROGRESS") == "0" or None,
            ) as progress,
        ):  # fmt: skip
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise _Interrupted(f"{part.stat().st_size:,} of {total:,} bytes arrived")


def _noted(note: Path) -> dict:
    """What was noted of a part; nothing if that was cut short."""
    try:
        return json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _same(seen: dict, headers) -> bool:
    """Whether the file of the server is still the one that a part is of."""
    return all(
        seen.get(key) == headers[name]
        for key, name in (("etag", "ETag"), ("modified", "Last-Modified"))
        if seen.get(key) and name in headers
    )


def _wrong(path: Path, sha256: str | None, md5: str | None, size: int | None) -> str:
    """What is not as expected, or nothing."""
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size:,} bytes, expected {size:,}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, name).hexdigest()
            if digest != expected.lower():
                return f"{name} {digest}, expected {expected.lower()}"
    return ""


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """Says in a sentence that a folder cannot be written to."""
    try:
        yield
    except requests.RequestException:  # an OSError too, and not of the disk
        raise
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise DownloadError(
            f"{str(folder)!r}: {DISK[error.errno]}; choose another data folder with --to or ZSR_DATA."
        ) from error


def _from_torchvision(name: str, root: Path) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    with _in_words(root):
        try:
            kind(root)
            return
        except RuntimeError:  # not there, or damaged
            # our download resumes, and torchvision takes an archive with the right checksum for its own
            archive = fetch(kind.url, root / kind.filename, md5=kind.tgz_md5)
            kind(root, download=True)
            archive.unlink()


def _from_hub(repository: str, target: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    with _in_words(target):
        try:
            snapshot_download(repository, repo_type="dataset", local_dir=target)
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            why = str(error).strip().splitlines()[0].rstrip(".")
            raise DownloadError(f"{repository} cannot be fetched from the Hugging Face hub: {why}.") from error
