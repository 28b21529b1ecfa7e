from __future__ import annotations

import hashlib
import http.server
import random
import shutil
import sys
import threading
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR100

from psd.data import download

CONTENT = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Host:
    """A web server of one file: it may know no ranges, and break connections after so many bytes."""

    def __init__(self) -> None:
        self.content, self.ranges, self.status = CONTENT, True, 200
        self.breaks: list[int] = []  # bytes after which the next connections break
        self.asked: list[str | None] = []  # the Range header of each request
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.asked.append(asked)
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if self.status != 200 or begin >= len(self.content):
            request.send_error(self.status if self.status != 200 else 416)
            return
        body = self.content[begin:]
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


def test_a_file_arrives_whole_and_leaves_no_part(host, tmp_path):
    download.fetch(host.url, tmp_path / "new" / "file", MD5)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_broken_connection_is_taken_up_where_it_broke(host, tmp_path):
    host.breaks = [100_000, 50_000]
    download.fetch(host.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert host.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_part_of_an_earlier_call_is_continued(host, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:1234])
    download.fetch(host.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT and host.asked == ["bytes=1234-"]


def test_a_complete_part_needs_only_its_name(host, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    download.fetch(host.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_host_without_ranges_begins_again(host, tmp_path):
    host.ranges = False
    host.breaks = [100_000]
    download.fetch(host.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT and len(host.asked) == 2


def test_wrong_content_is_refused_and_removed(host, tmp_path):
    host.content = CONTENT[::-1]
    with pytest.raises(ValueError, match=f"instead of {MD5}") as error:
        download.fetch(host.url, tmp_path / "file", MD5)
    assert host.url in str(error.value) and not list(tmp_path.iterdir())


def test_a_host_that_brings_nothing_new_is_given_up_and_the_part_is_kept(host, tmp_path, capsys):
    host.breaks = [1000] + [0] * 100
    with pytest.raises(ValueError, match=r"could not be downloaded.*broke after 1,000 of 300,000 bytes"):
        download.fetch(host.url, tmp_path / "file", MD5)
    assert len(host.asked) == 1 + download.ATTEMPTS
    tries = [line.partition("trying again in ")[2] for line in capsys.readouterr().out.splitlines()]
    assert tries == ["1 s", "2 s", "4 s", "8 s"]  # nobody waits in silence
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1000] and not (tmp_path / "file").exists()


def test_a_refusal_is_not_asked_again(host, tmp_path):
    host.status = 404
    with pytest.raises(ValueError, match="404"):
        download.fetch(host.url, tmp_path / "file", MD5)
    assert len(host.asked) == 1


def test_a_host_that_does_not_answer_is_named(host, tmp_path):
    host.server.server_close()
    with pytest.raises(ValueError, match="could not be downloaded") as error:
        download.fetch(host.url, tmp_path / "file", MD5)
    assert host.url in str(error.value)


def test_cifar100_comes_from_the_mirror(tiny, tmp_path, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    tiny.write("parquet", tmp_path / "mirror")
    asked = []

    def fake(repo_id: str, filename: str, *, repo_type: str, local_dir: Path) -> None:
        asked.append((repo_type, repo_id, filename))
        (local_dir / filename).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "mirror" / filename, local_dir / filename)

    monkeypatch.setattr(hub, "hf_hub_download", fake)
    download.get("cifar100", tmp_path / "root")
    files = [f"cifar100/{split}-00000-of-00001.parquet" for split in ("train", "test")]
    assert asked == [("dataset", "uoft-cs/cifar100", file) for file in files]
    assert "train: 24 images, content verified" in capsys.readouterr().out


def unreachable(root: Path) -> None:
    raise ConnectionError("the hub is away")


def test_the_original_host_is_asked_when_the_mirror_fails(trusted, host, tmp_path, monkeypatch, capsys):
    host.content = trusted.write("archive", tmp_path / "away").read_bytes()
    monkeypatch.setattr(CIFAR100, "url", host.url)
    monkeypatch.setattr(download, "_from_hub", unreachable)
    download.get("cifar100", tmp_path / "root")
    out = capsys.readouterr().out
    assert "the hub is away" in out and "test: 9 images, content verified" in out


def test_the_original_host_is_asked_when_the_extra_is_not_installed(trusted, host, tmp_path, monkeypatch, capsys):
    host.content = trusted.write("archive", tmp_path / "away").read_bytes()
    monkeypatch.setattr(CIFAR100, "url", host.url)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    download.get("cifar100", tmp_path / "root")
    assert 'pip install ".[hub]"' in capsys.readouterr().out


def test_both_hosts_failing_is_an_error(host, tmp_path, monkeypatch):
    host.status = 503
    monkeypatch.setattr(CIFAR100, "url", host.url)
    monkeypatch.setattr(download, "_from_hub", unreachable)
    with pytest.raises(ValueError, match="503"):
        download.get("cifar100", tmp_path)


def test_what_is_there_is_checked_and_not_fetched_again(tiny, tmp_path, monkeypatch, capsys):
    tiny.write("folder", tmp_path)
    monkeypatch.setattr(download, "_from_hub", lambda root: pytest.fail("fetched again"))
    download.get("cifar100", tmp_path)
    assert "there already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["shapes", "folder:images"])
def test_what_needs_no_download_is_said(name, tmp_path, capsys):
    download.get(name, tmp_path)
    assert "nothing to download" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_where_imagenet_belongs_is_said(tmp_path, capsys):
    download.get("imagenet", tmp_path)
    assert str(tmp_path / "imagenet") in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="'cifar-100' is unknown; did you mean 'cifar100'"):
        download.get("cifar-100", tmp_path)


def states(root: Path) -> dict[str, download.Row]:
    return {row.data: row for row in download.check(root)}


def test_check_says_what_is_missing(tmp_path):
    rows = states(tmp_path / "nowhere")
    assert rows["shapes"].state.startswith("ok")
    assert "psd data get cifar100" in rows["cifar100 train"].state
    assert rows["imagenet val"].state.startswith("missing")


def test_check_says_what_is_there_and_right(tiny, tmp_path):
    path = tiny.write("folder", tmp_path)
    row = states(tmp_path)["cifar100 train"]
    assert (row.layout, row.path, row.state) == ("folder", str(path), "ok (24 images, content verified)")


def test_check_says_what_is_damaged_and_goes_on(tiny, tmp_path):
    tiny.pixels["train"] ^= 1
    tiny.write("folder", tmp_path)
    rows = states(tmp_path)
    assert rows["cifar100 train"].state.startswith("problem: ")
    assert rows["cifar100 test"].state.startswith("ok")


def test_check_counts_the_classes_of_imagenet(tmp_path):
    (tmp_path / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    assert "1 class folders" in states(tmp_path)["imagenet train"].state
