"""Downloads from a server on this machine that breaks off, forgets, changes its mind and lies."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsr_utils import fetch as command
from zsr_utils.datasets import DownloadError, Sample, download, fetch, load_dataset
from zsr_utils.datasets._catalogue import SOURCES, Source
from zsr_utils.datasets._download import extract


CONTENT = np.random.default_rng(0).bytes(700_000)
MD5, SHA256 = (hashlib.new(name, CONTENT).hexdigest() for name in ("md5", "sha256"))


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` holds, for each coming answer, after how many bytes the line goes dead."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.statuses, self.asked = {"/file.bin": CONTENT}, [], [], []
        self.ranges, self.etag, self.lies = True, '"first"', False

    def url(self, path: str = "/file.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append({k.lower(): v for k, v in self.headers.items()})
        status = server.statuses.pop(0) if server.statuses else 200
        if status != 200 or self.path not in server.files:
            return self.send_error(status if status != 200 else 404)
        content = server.files[self.path]
        wanted, fits = self.headers.get("Range"), self.headers.get("If-Range") in (None, server.etag)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges and fits else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            start -= server.lies
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.cut.pop(0) if server.cut else None])
        return None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("zsr_utils.datasets._download.WAITS", (0, 0, 0))
    monkeypatch.setattr("zsr_utils.datasets._download.CHUNK", 10_000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


def left(folder: Path) -> set[str]:
    """Files in a folder, less locks."""
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}


def ranges(server: Server) -> list[str | None]:
    return [asked.get("range") for asked in server.asked]


def test_a_file_arrives_whole_and_is_fetched_once(server, tmp_path):
    for _ in range(2):
        path = fetch(server.url(), tmp_path / "new" / "a.bin", sha256=SHA256, md5=MD5.upper(), size=len(CONTENT))
        assert path.read_bytes() == CONTENT and left(path.parent) == {"a.bin"}
    assert ranges(server) == [None]


def test_a_broken_line_is_resumed_where_it_broke(server, tmp_path):
    server.cut = [300_000, 150_000]
    path = fetch(server.url(), tmp_path / "a.bin", sha256=SHA256)
    assert path.read_bytes() == CONTENT and left(tmp_path) == {"a.bin"}
    first, second, third = ranges(server)
    assert first is None
    positions = [int(r.removeprefix("bytes=").removesuffix("-")) for r in (second, third)]
    # what was in flight in a piece not yet complete may be lost, not more
    assert 290_000 <= positions[0] <= 300_000 and 440_000 <= positions[1] <= 450_000
    assert server.asked[1]["if-range"] == '"first"'


def test_what_arrived_is_kept_for_the_next_call(server, tmp_path):
    server.cut = [200_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"file.bin cannot be fetched \(.*\); what arrived is kept"):
        fetch(server.url(), tmp_path / "a.bin", md5=MD5)
    assert left(tmp_path) == {"a.bin.part", "a.bin.part.json"} and len(server.asked) == 4
    have = (tmp_path / "a.bin.part").stat().st_size
    assert have >= 190_000 and CONTENT.startswith((tmp_path / "a.bin.part").read_bytes())
    assert fetch(server.url(), tmp_path / "a.bin", md5=MD5).read_bytes() == CONTENT
    assert ranges(server)[-1] == f"bytes={have}-"


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges, server.cut = False, [300_000]
    assert fetch(server.url(), tmp_path / "a.bin", md5=MD5).read_bytes() == CONTENT
    assert len(server.asked) == 2 and ranges(server)[1]


def test_a_server_that_sends_another_part_is_asked_again_for_all(server, tmp_path):
    server.lies, server.cut = True, [300_000]
    assert fetch(server.url(), tmp_path / "a.bin", md5=MD5).read_bytes() == CONTENT
    first, second, third = ranges(server)
    assert first is None and second and third is None


@pytest.mark.parametrize("weak", [False, True])
def test_a_file_that_changed_on_the_server_is_fetched_anew(server, tmp_path, weak):
    server.etag, server.cut = ('W/"1"' if weak else '"1"'), [300_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server.url(), tmp_path / "a.bin")
    other = CONTENT[::-1]
    server.files["/file.bin"], server.etag = other, ('W/"2"' if weak else '"2"')
    assert fetch(server.url(), tmp_path / "a.bin").read_bytes() == other


def test_without_a_way_to_see_changes_nothing_is_resumed(server, tmp_path):
    server.etag, server.cut = None, [300_000]
    assert fetch(server.url(), tmp_path / "a.bin", md5=MD5).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


@pytest.mark.parametrize("note", ["", '{"url": "http', None])
def test_a_part_without_a_whole_note_is_not_continued(server, tmp_path, note):
    (tmp_path / "a.bin.part").write_bytes(b"of something else")
    if note is not None:
        (tmp_path / "a.bin.part.json").write_text(note)
    assert fetch(server.url(), tmp_path / "a.bin").read_bytes() == CONTENT and ranges(server) == [None]


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    server.cut = [300_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server.url(), tmp_path / "a.bin")
    server.files["/other.bin"] = CONTENT[::-1]
    assert fetch(server.url("/other.bin"), tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_as_long_as_the_file_or_longer_ends_well(server, tmp_path, extra):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"x" * extra)
    note = {"url": server.url(), "etag": '"first"', "modified": None}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(note))
    assert fetch(server.url(), tmp_path / "a.bin", md5=MD5).read_bytes() == CONTENT
    assert left(tmp_path) == {"a.bin"} and len(server.asked) == (2 if extra else 1)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"md5": "0" * 32}, f"md5 {MD5}, expected {'0' * 32}"),
        ({"sha256": "1" * 64}, f"sha256 {SHA256}, expected {'1' * 64}"),
        ({"size": 5}, "700,000 bytes, expected 5"),
    ],
)
def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path, expected, message):
    with pytest.raises(DownloadError, match=rf"file.bin has {message}: what arrived was removed\.$"):
        fetch(server.url(), tmp_path / "a.bin", **expected)
    assert left(tmp_path) == set()


def test_a_file_with_a_wrong_checksum_is_replaced(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"<html>quota exceeded</html>")
    assert fetch(server.url(), tmp_path / "a.bin", md5=MD5).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, tmp_path):
    server.statuses = [503, 429]
    assert fetch(server.url(), tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(server.asked) == 3
    with pytest.raises(DownloadError, match=r"none.bin cannot be fetched: the server answers 404 Not Found\.$"):
        fetch(server.url("/none.bin"), tmp_path / "b.bin")
    assert len(server.asked) == 4


def test_no_server_is_a_sentence(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"cannot be fetched \(ConnectionError\); what arrived is kept"):
        fetch(server.url(), tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "the folder may not be written to"),
        (errno.EROFS, "read-only"),
    ],
)
def test_a_disk_that_takes_no_more_is_a_sentence(server, tmp_path, monkeypatch, number, words):
    opened = Path.open

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", lambda p, mode="r", *a, **k: Full() if "a" in mode else opened(p, mode, *a, **k))
    with pytest.raises(DownloadError, match=rf"{tmp_path.name}': .*{words}; choose another data folder"):
        fetch(server.url(), tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists() and len(server.asked) == 1


def test_a_killed_process_leaves_only_the_part(server, tmp_path):
    """The transfer runs in another process, which is killed while the server waits in the middle of the file."""
    gate, write = threading.Event(), Handler.do_GET

    class Slow(Handler):
        def do_GET(self):
            if self.headers.get("Range"):
                return write(self)
            self.send_response(200)
            self.send_header("ETag", '"first"')
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:400_000])
            self.wfile.flush()
            gate.wait(60)
            return None

    server.RequestHandlerClass = Slow
    # the module alone, without the package that loads torch
    code = (
        "import sys, types; root = sys.argv[3]\n"
        "for n in ('zsr_utils', 'zsr_utils.datasets'):\n"
        "    sys.modules[n] = m = types.ModuleType(n); m.__path__ = [root + '/' + n.replace('.', '/')]\n"
        "from zsr_utils.datasets._download import fetch\n"
        "fetch(sys.argv[1], sys.argv[2])\n"
    )
    root = Path(__file__).resolve().parents[2]
    arguments = [sys.executable, "-c", code, server.url(), str(tmp_path / "a.bin"), str(root)]
    process = subprocess.Popen(arguments, env={**os.environ, "ZSR_PROGRESS": "0"})
    try:
        part, tick = tmp_path / "a.bin.part", threading.Event()
        for _ in range(600):
            if part.is_file() and part.stat().st_size > 100_000:
                break
            assert process.poll() is None
            tick.wait(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        gate.set()
    assert left(tmp_path) == {"a.bin.part", "a.bin.part.json"}
    have = part.stat().st_size
    assert 100_000 < have <= 400_000
    assert fetch(server.url(), tmp_path / "a.bin", md5=MD5).read_bytes() == CONTENT


def archive(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(("top", "mode"), [("set/", "w:gz"), ("", "w")])
def test_a_single_folder_at_the_top_becomes_the_folder_itself(tmp_path, top, mode):
    (tmp_path / "x.tar").write_bytes(archive({f"{top}a/1.txt": b"1", f"{top}b/2.txt": b"2"}, mode))
    folder = extract(tmp_path / "x.tar", tmp_path / "new" / "things")
    assert (folder / "a" / "1.txt").read_bytes() == b"1" and (folder / "b" / "2.txt").read_bytes() == b"2"
    assert left(folder.parent) == {"things"} and left(folder) == {"a", "b"}
    assert folder.stat().st_mode == (tmp_path / "new").stat().st_mode  # temporary folders are closed to others


@pytest.mark.parametrize("name", ["../escaped.txt", "a/../../../escaped.txt"])
def test_an_archive_that_writes_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "x.tar").write_bytes(archive({"fine.txt": b"1", name: b"2"}))
    with pytest.raises(DownloadError, match=r"x.tar' was not unpacked: .*escaped.txt"):
        extract(tmp_path / "x.tar", tmp_path / "inner" / "things")
    assert left(tmp_path) == {"x.tar", "inner"} and left(tmp_path / "inner") == set()


def test_a_link_out_of_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(DownloadError, match=r"was not unpacked: .*'out'"):
        extract(tmp_path / "x.tar", tmp_path / "things")
    assert left(tmp_path) == {"x.tar"}


@pytest.mark.parametrize("broken", ["html", "cut", "changed"])
def test_a_broken_archive_is_refused_and_removed(tmp_path, broken):
    whole = archive({f"set/{k}": np.random.default_rng(k).bytes(9000) for k in range(20)})
    middle = len(whole) // 2
    content = {
        "html": b"<html>quota exceeded</html>",
        "cut": whole[:middle],
        "changed": whole[:-8] + bytes(4) + whole[-4:],
    }[broken]
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DownloadError, match=r"x.tar' is no whole tar archive and was removed"):
        extract(tmp_path / "x.tar", tmp_path / "things")
    assert left(tmp_path) == set()


@pytest.fixture
def imagenette(server, tmp_path, monkeypatch):
    """Imagenette's archive with two pictures, at torchvision's address as far as the code can tell."""
    from torchvision.datasets import Imagenette

    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 30, 60)).save(buffer, "JPEG")
    members = {f"imagenette2-160/val/{w}/1.JPEG": buffer.getvalue() for w in ("n03888257", "n01440764")}
    content = archive(members)
    server.files["/imagenette2-160.tgz"] = content
    address = server.url("/imagenette2-160.tgz"), hashlib.md5(content).hexdigest()
    monkeypatch.setattr(Imagenette, "_ARCHIVES", {**Imagenette._ARCHIVES, "160px": address})
    monkeypatch.setenv("ZSR_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_command_fetches_what_the_loader_then_reads(server, imagenette, capsys):
    with pytest.raises(FileNotFoundError, match=r"`python -m zsr_utils.fetch imagenette-160`"):
        load_dataset("imagenette-160")
    server.cut = [100]
    assert command.main(["imagenette-160"]) == 0
    assert capsys.readouterr().out == f"imagenette-160 is in '{imagenette / 'imagenette2-160'}'.\n"
    assert [s.label for s in load_dataset("imagenette-160").samples] == [0, 9]
    assert left(imagenette) == {"imagenette2-160"} and len(server.asked) == 2
    assert command.main(["imagenette-160"]) == 0 and len(server.asked) == 2


def test_an_interrupted_command_says_that_it_goes_on(imagenette, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "download", interrupted)
    assert command.main(["imagenette-160"]) == 130
    assert "imagenette-160 was interrupted, the same command goes on from there." in capsys.readouterr().err


def test_the_command_takes_a_folder_and_says_how_to_use_it(imagenette, tmp_path, capsys):
    assert command.main(["imagenette-160", "--to", str(tmp_path / "there")]) == 0
    assert f"Set ZSR_DATA to '{tmp_path / 'there'}' to use it." in capsys.readouterr().out
    assert (tmp_path / "there" / "imagenette2-160" / "val").is_dir() and not imagenette.exists()


def test_a_changed_archive_is_a_sentence_and_no_data_set(server, imagenette, capsys):
    server.files["/imagenette2-160.tgz"] += b"x"
    assert command.main(["imagenette-160"]) == 1
    error = capsys.readouterr().err
    assert "expected" in error and error.count("\n") == 1 and left(imagenette) == set()


def test_an_archive_without_a_checksum_is_checked_by_unpacking(server, tmp_path, monkeypatch):
    """What a host sends in place of a file must not pass for it at the next call."""
    server.files["/v2.tar.gz"] = b"<html>not today</html>"
    monkeypatch.setitem(SOURCES, "imagenet-v2", Source("imagenet-v2", url=server.url("/v2.tar.gz")))
    with pytest.raises(DownloadError, match=r"no whole tar archive"):
        download("imagenet-v2", tmp_path)
    assert left(tmp_path) == set()
    server.files["/v2.tar.gz"] = archive({"imagenetv2-matched-frequency-format-val/7/a.jpeg": b"picture"})
    assert left(download("imagenet-v2", tmp_path)) == {"7"}


@pytest.mark.parametrize("name", ["imagenet", "imagenet-c", "imagenet-sketch", "objectnet", "stylized-imagenet"])
def test_what_is_not_to_be_fetched_says_where_it_is_to_be_had(name, tmp_path, capsys):
    assert command.main([name, "--to", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "https://" in error and f"'{tmp_path / name}'" in error and error.count("\n") == 1 and "{" not in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenete", "Unknown data set 'imagenete': nearest known names are imagenet"),
        ("wds:only-a-name", "Of the Hugging Face hub it is 'wds:org/name'"),
        ("wds:../up", "Of the Hugging Face hub it is 'wds:org/name'"),
        ("tabletop", "tabletop is part of the project"),
    ],
)
def test_an_unknown_name_is_a_sentence(name, message, capsys):
    assert command.main([name]) == 1
    assert message in capsys.readouterr().err


def test_the_list_says_what_is_here(imagenette, capsys):
    assert command.main(["imagenette-160"]) == 0 and command.main(["--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert str(imagenette / "imagenette2-160") in lines["imagenette-160"]
    assert lines["imagenette"].split() == ["imagenette", "1.5", "GB", "fetch"]
    assert "get it by hand" in lines["imagenet"] and "part of the project" in lines["tabletop"]
    with pytest.raises(SystemExit):
        command.main([])


def test_a_webdataset_comes_from_the_hub_into_its_own_folder(tmp_path, monkeypatch):
    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options))
        (options["local_dir"] / "test").mkdir(parents=True)
        (options["local_dir"] / "classnames.txt").write_text("cat\n")
        (options["local_dir"] / "test" / "0.tar").write_bytes(archive({"s0.webp": b"picture", "s0.cls": b"0"}, "w"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    folder = download("wds:clip-benchmark/wds_cats")
    assert folder == tmp_path / "wds" / "clip-benchmark" / "wds_cats"
    assert asked == [("clip-benchmark/wds_cats", {"repo_type": "dataset", "local_dir": folder})]
    (sample,) = load_dataset("wds:clip-benchmark/wds_cats").samples
    assert isinstance(sample, Sample) and sample.sample_id == "0/s0"


def test_a_hub_that_does_not_answer_is_a_sentence(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(*_, **__):
        raise LocalEntryNotFoundError("Connection refused.\nPlease check your internet connection.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(DownloadError, match=r"^a/b cannot be fetched from the Hugging Face hub: Connection refused\.$"):
        download("wds:a/b", tmp_path)


def test_cifar_is_fetched_from_torchvisions_address_and_unpacked(server, tmp_path, monkeypatch):
    import pickle

    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(1).integers(0, 256, (2, 3072), dtype=np.uint8)
    files = {
        "test": pickle.dumps({"data": pixels, "labels": [1, 0]}),
        "train": pickle.dumps({"data": pixels, "labels": [0, 1]}),
        "names": pickle.dumps({"label_names": ["cat", "dog"]}),
    }
    content = archive({f"{CIFAR10.base_folder}/{name}": c for name, c in files.items()})
    server.files["/cifar-10-python.tar.gz"], server.cut = content, [500]
    digest = {name: hashlib.md5(c).hexdigest() for name, c in files.items()}
    monkeypatch.setattr(CIFAR10, "url", server.url("/cifar-10-python.tar.gz"))
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(CIFAR10, "test_list", [["test", digest["test"]]])
    monkeypatch.setattr(CIFAR10, "train_list", [["train", digest["train"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "names", "key": "label_names", "md5": digest["names"]})
    monkeypatch.setenv("ZSR_DATA", str(tmp_path))
    for _ in range(2):
        assert download("cifar10") == tmp_path / CIFAR10.base_folder
        assert [s.label for s in load_dataset("cifar10").samples] == [1, 0] and len(server.asked) == 2
    assert left(tmp_path) == {CIFAR10.base_folder}
