"""`psd push` and "hub:OWNER/NAME", with the hub's own library, against a server that stands in for the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

import psd
from psd.training import config, hub
from psd.training.records import Record

huggingface_hub = pytest.importorskip("huggingface_hub", reason="no huggingface_hub; install it: pip install '.[hub]'")

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push and a download use; the server's `files` are those of the one repository."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def told(self, value: object) -> None:
        self.answer(json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = f"http://{self.headers['Host']}/me/net"
        if self.path.endswith("/repos/create"):
            self.told({"url": url, "name": "me/net", "id": "me/net"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.told({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.told({"commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})
        else:
            self.told({})

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        if "/resolve/" in self.path and name in self.server.files:
            content = self.server.files[name]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(content, ETag=etag, X_Repo_Commit=COMMIT)
        elif self.path.startswith("/api/models/me/net"):
            self.told({"id": "me/net", "sha": COMMIT, "siblings": [], "private": False})
        else:
            self.answer(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = config.recipe("shapes", budget={"image_passes": 512}, run={"output": str(folder), "progress": False})
    psd.train(run)
    return folder / run.name


def environment(port: int, home: Path) -> dict[str, str]:
    env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home)}
    env |= {"HF_TOKEN": "hf_of_nobody", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    env.pop("HF_HUB_OFFLINE", None)
    return env


def test_what_was_pushed_is_loaded_again(server, run, tmp_path):
    env = environment(server.server_port, tmp_path)
    push = [sys.executable, "-m", "psd", "push", str(run), "me/net"]
    done = subprocess.run(push, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/net")
    assert set(server.files) >= {"model.safetensors", "record.json", "README.md"}
    code = "import psd, torch; torch.save(psd.load_model('hub:me/net').state_dict(), 'again.pt')"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    for name, value in psd.load_model(run).state_dict().items():
        assert torch.equal(value, again[name])


def test_a_hub_that_cannot_be_reached_is_told_in_a_line(run, monkeypatch):
    class ConnectError(Exception):
        """As httpx's, which is no OSError."""

    def away(*_: object, **__: object) -> None:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", away)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", away)
    with pytest.raises(ValueError, match=r"^the hub did not take me/net: Name or service not known"):
        hub.push(run, "me/net")
    with pytest.raises(ValueError, match=r"^hub:me/net: Name or service not known"):
        psd.load_model("hub:me/net")


def test_the_card_holds_the_record_s_figures_and_settings(run):
    record = Record.read(run.with_name(f"{run.name}.json"))
    text = hub.card(hub.without_paths(record), "me/net")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "psd"
    assert f"| top-1 | {record.final['top1']:.2f} % |" in body
    assert yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])["method"]["name"] == "patch_swap"


def test_nothing_of_this_machine_s_folders_is_sent(run):
    record = Record.read(run.with_name(f"{run.name}.json"))
    record.config["data"] |= {"name": "folder:/home/me/photographs", "root": "/home/me/data"}
    record.config["model"]["weights"] = "/home/me/runs/shapes/net"
    told = hub.without_paths(record)
    assert told.config["data"]["name"] == "folder:photographs" and told.config["model"]["weights"] == "net"
    assert "/home/me" not in hub.card(told, "me/net") and str(run.parents[3]) not in hub.card(told, "me/net")


@pytest.mark.parametrize("name", ["net", "hub:me/net", "me/net/more", ""])
def test_a_repository_has_an_owner_and_a_name(run, name):
    with pytest.raises(ValueError, match="owner/name"):
        hub.push(run, name)


def test_a_folder_without_a_run_is_not_pushed(tmp_path):
    with pytest.raises(ValueError, match=r"neither a model\.safetensors nor"):
        hub.push(tmp_path, "me/net")
