"""Downloads from a server on this machine that breaks off and changes its mind: what is kept, and what is said."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsr_utils import fetch as command
from zsr_utils.datasets import DownloadError, Sample, download, load_dataset
from zsr_utils.datasets._catalogue import SOURCES, Source


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` holds, for each coming answer, after how many bytes the line goes dead.

    `length` is said in place of a file's, and `drip` sends it in pieces of so many bytes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.asked, self.length, self.drip, self.parts = {}, [], [], None, 0, True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        if self.path not in self.server.files:
            return self.send_error(404)
        content = self.server.files[self.path]
        start = int(self.server.asked[-1].removeprefix("bytes=").removesuffix("-")) if self.server.asked[-1] else 0
        start *= self.server.parts
        self.send_response(416 if start >= len(content) else 206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", self.server.length or str(max(0, len(content) - start)))
        self.end_headers()
        sent = content[start:][: self.server.cut.pop(0) if self.server.cut else None]
        for first in range(0, len(sent), self.server.drip or len(sent) or 1):
            self.wfile.write(sent[first:][: self.server.drip or None])
        return None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between two tries
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def left(folder: Path) -> set[str]:
    """Files in a folder, less locks."""
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}


def archive(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def offered(server, tmp_path, monkeypatch):
    """Puts an archive on the server as the one of a data set, by default Imagenette with two pictures and noise."""
    monkeypatch.setenv("ZSR_DATA", str(tmp_path / "data"))
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 30, 60)).save(buffer, "JPEG")
    whole = {f"imagenette2-160/val/{w}/1.JPEG": buffer.getvalue() for w in ("n03888257", "n01440764")}
    whole["imagenette2-160/noise"] = np.random.default_rng(0).bytes(700_000)

    def offer(content: bytes = archive(whole), name="imagenette-160", folder="imagenette2-160", file="x.tgz", md5=None):
        server.files[f"/{file}"] = content
        md5 = hashlib.md5(content).hexdigest() if md5 is None else md5
        monkeypatch.setitem(SOURCES, name, Source(folder, "99 MB", server.url(f"/{file}"), md5))
        return content

    offer()
    return offer


def test_the_command_fetches_what_the_loader_then_reads(server, offered, tmp_path, capsys):
    data = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match=r"`python -m zsr_utils.fetch imagenette-160` \(99 MB\)"):
        load_dataset("imagenette-160")
    for _ in range(2):
        assert command.main(["imagenette-160"]) == 0
        assert capsys.readouterr().out == f"imagenette-160 is in '{data / 'imagenette2-160'}'.\n"
    assert [s.label for s in load_dataset("imagenette-160").samples] == [0, 9]
    assert left(data) == {"imagenette2-160"} and server.asked == [None]


def test_a_broken_line_is_resumed_where_it_broke(server, offered, tmp_path):
    server.cut = [300_000, 150_000]
    assert left(download("imagenette-160")) == {"val", "noise"}
    assert server.asked == [None, "bytes=300000-", "bytes=450000-"]


def test_what_arrived_is_kept_for_the_next_call_and_has_no_name_until_it_is_whole(server, offered, tmp_path):
    server.cut = [300_000, *[0] * 9]
    with pytest.raises(DownloadError) as error:
        download("imagenette-160")
    text, data = str(error.value), tmp_path / "data"
    assert text.startswith("imagenette-160 could not be fetched (") and "\n" not in text
    assert f"{server.url('/x.tgz')} (99 MB)" in text and f"in '{data / 'imagenette2-160'}'. Another try" in text
    assert left(data) == {"x.tgz.part"} and (data / "x.tgz.part").stat().st_size == 300_000
    server.cut = []
    assert left(download("imagenette-160")) == {"val", "noise"} and server.asked[-1] == "bytes=300000-"
    assert left(data) == {"imagenette2-160"}


def test_a_run_that_was_killed_before_it_could_check_is_checked_by_the_next(server, offered, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.tgz.part").write_bytes(offered())
    assert left(download("imagenette-160")) == {"val", "noise"} and len(server.asked) == 1


def test_a_server_that_drips_is_left_after_a_while_and_what_came_is_kept(server, offered, tmp_path, monkeypatch):
    monkeypatch.setattr("zsr_utils.datasets._download.PATIENCE", -100)  # as if they had gone by
    server.drip = 100
    with pytest.raises(DownloadError, match=r"could not be fetched \([\d,]+ bytes in 0 s are too slow\): "):
        download("imagenette-160")
    assert (tmp_path / "data" / "x.tgz.part").stat().st_size < 700_000


def test_a_length_that_is_no_number_is_none(server, offered):
    server.length = "many"
    assert left(download("imagenette-160")) == {"val", "noise"}


def test_more_than_the_known_size_is_not_taken(server, offered, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "imagenette-160", Source("imagenette2-160", "0.5 MB", server.url("/x.tgz"), "0" * 32))
    with pytest.raises(DownloadError, match=r"\(more has arrived than its 0.5 MB, so it was removed\): "):
        download("imagenette-160")
    assert left(tmp_path / "data") == set()


def test_a_server_that_sends_no_part_is_asked_for_the_whole(server, offered, monkeypatch):
    server.cut, server.parts = [300_000], False
    assert left(download("imagenette-160")) == {"val", "noise"} and len(server.asked) == 2


@pytest.mark.parametrize("place", ["file", "file/inner", "/dev/null/x", "/proc/x"])
def test_a_place_that_cannot_be_is_a_sentence(offered, tmp_path, place, capsys):
    (tmp_path / "file").touch()
    assert command.main(["imagenette-160", "--to", str(tmp_path / place)]) == 1
    assert command.main(["wds:a/b", "--to", str(tmp_path / place)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(" could not be fetched (" in line and line.endswith(".") for line in lines)


@pytest.mark.parametrize("changed", ["on the server", "between two tries"])
def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, offered, tmp_path, changed, capsys):
    data = tmp_path / "data"
    data.mkdir()
    if changed == "on the server":
        offered(b"<html>quota exceeded</html>", md5="0" * 32)
    else:
        (data / "x.tgz.part").write_bytes(b"of something else")
    assert command.main(["imagenette-160"]) == 1
    error = capsys.readouterr().err
    assert "(its md5 is " in error and ", so it was removed)" in error and error.count("\n") == 1
    assert left(data) == set()


def test_an_archive_without_a_checksum_is_checked_by_unpacking(server, offered, tmp_path):
    """What a host sends in place of a file must not pass for it at the next call."""
    whole = archive({f"set/7/{k}.jpeg": np.random.default_rng(k).bytes(9000) for k in range(20)})
    broken = (b"<html>not today</html>", whole[: len(whole) // 2], whole[:-8] + bytes(4) + whole[-4:])
    for content in (*broken, archive({"fine.txt": b"1", "../escaped.txt": b"2"})):
        offered(content, "imagenet-v2", "imagenet-v2", "v2.tar.gz", md5="")
        with pytest.raises(DownloadError, match=r"^imagenet-v2 could not be fetched \(.+\): it is http"):
            download("imagenet-v2")
        assert left(tmp_path / "data") == set() and not list(tmp_path.rglob("escaped.txt"))
    offered(whole, "imagenet-v2", "imagenet-v2", "v2.tar.gz", md5="")
    folder = download("imagenet-v2")
    assert left(folder) == {"7"} and folder.stat().st_mode == folder.parent.stat().st_mode


def test_a_link_out_of_an_archive_is_refused(server, offered, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    offered(buffer.getvalue())
    with pytest.raises(DownloadError, match=r"'out'"):
        download("imagenette-160")
    assert left(tmp_path / "data") == set()


def test_an_archive_without_a_folder_at_its_top_is_the_folder(server, offered):
    offered(archive({"a/1.txt": b"1", "b/2.txt": b"2"}, "w"))
    assert left(download("imagenette-160")) == {"a", "b"}


@pytest.mark.parametrize("wrong", ["refused", "no server", "no folder"])
def test_what_cannot_be_fetched_or_kept_is_a_sentence(server, offered, tmp_path, wrong):
    if wrong == "refused":
        server.files.clear()
    elif wrong == "no server":
        server.shutdown()
        server.server_close()
    else:
        (tmp_path / "data").touch()
    words = {"refused": "404 Not Found", "no server": "refused", "no folder": "File exists"}[wrong]
    with pytest.raises(DownloadError, match=rf"^imagenette-160 could not be fetched \(.*{words}.*\(99 MB\)") as error:
        download("imagenette-160")
    assert "--to or ZSR_DATA choose another folder." in str(error.value) and "\n" not in str(error.value)


def test_an_interrupted_command_says_that_it_goes_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "download", interrupted)
    assert command.main(["imagenette-160"]) == 130
    assert "imagenette-160 was interrupted, the same command goes on from there." in capsys.readouterr().err


def test_the_command_takes_a_folder_and_says_how_to_use_it(offered, tmp_path, capsys):
    assert command.main(["imagenette-160", "--to", str(tmp_path / "there")]) == 0
    assert f"Set ZSR_DATA to '{tmp_path / 'there'}' to use it." in capsys.readouterr().out
    assert (tmp_path / "there" / "imagenette2-160" / "val").is_dir() and not (tmp_path / "data").exists()


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


def test_the_list_says_what_is_here(offered, tmp_path, capsys):
    assert command.main(["imagenette-160"]) == 0 and command.main(["--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert str(tmp_path / "data" / "imagenette2-160") in lines["imagenette-160"]
    assert lines["imagenette"].split() == ["imagenette", "fetch", "(1.56", "GB)"]
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

    monkeypatch.setattr("zsr_utils.datasets._download.snapshot_download", snapshot)
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

    monkeypatch.setattr("zsr_utils.datasets._download.snapshot_download", snapshot)
    words = (
        r"^wds:a/b could not be fetched \(Connection refused\): it is https://huggingface.co/datasets/a/b and belongs"
    )
    with pytest.raises(DownloadError, match=words):
        download("wds:a/b", tmp_path)
