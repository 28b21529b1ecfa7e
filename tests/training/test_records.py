"""Records: what is written is what is read, whole or not at all, and a bad file is named."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

from psd.files import write_atomically
from psd.training import records
from psd.training.records import Record

EPOCH = {"epoch": 1, "steps": 3, "lr": 0.1, "loss": 1.5, "train_top1": 40.0}
TEST = {"top1": 50.0, "top5": None, "nll": 1.1, "ece": 0.05, "n_test": 12}


def record(**changes: Any) -> Record:
    """A record none of whose values is its default."""
    values: dict[str, Any] = {
        "name": "shapes/resnet8/2ep/patch_swap-T2-s3",
        "data": "shapes",
        "model": "resnet8",
        "method": "patch_swap",
        "seed": 3,
        "budget": "2ep",
        "config": {"data": {"name": "shapes", "root": None}, "method": {"name": "patch_swap", "p": 1 / 3}},
        "epochs": [EPOCH, {**EPOCH, "epoch": 2, "loss": 0.1 + 0.2, "test": TEST}],
        "final": TEST,
        "image_passes": 96,
        "seconds": 1.25,
        "images_per_second": 76.8,
        "peak_memory": 123_456,
        "device": "cpu, 2 threads",
        "versions": {"torch": "2.6"},
        "revision": "0123abc+",
    }
    return Record(**{**values, **changes})


# --- files


def test_what_is_written_is_what_is_read(tmp_path):
    record().write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == record()


def test_a_record_without_epochs_makes_the_round_trip(tmp_path):
    record(epochs=[]).write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == record(epochs=[])


def test_a_path_may_be_a_string(tmp_path):
    record().write(str(tmp_path / "a.json"))
    assert Record.read(str(tmp_path / "a.json")) == record()


def test_folders_are_made_where_they_are_missing(tmp_path):
    record().write(tmp_path / "data" / "model" / "a.json")
    assert Record.read(tmp_path / "data" / "model" / "a.json") == record()


def test_each_epoch_is_one_line(tmp_path):
    epochs = [{**EPOCH, "epoch": number, "test": TEST} for number in range(1, 8)]
    record(epochs=epochs).write(tmp_path / "a.json")
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if '"loss"' in line] == epochs


def test_the_file_is_plain_ascii_json_that_ends_with_a_line(tmp_path):
    record(data="Bäume").write(tmp_path / "a.json")
    written = (tmp_path / "a.json").read_bytes()
    assert written.isascii() and written.endswith(b"}\n")
    assert json.loads(written) == vars(record(data="Bäume"))


def test_writing_leaves_nothing_but_the_file(tmp_path):
    record().write(tmp_path / "a.json")
    record(seed=4).write(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert Record.read(tmp_path / "a.json").seed == 4


def failing_halfway(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def write_text(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text[: len(text) // 2].encode())
        raise error

    monkeypatch.setattr(Path, "write_text", write_text)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_record_that_cannot_be_written_leaves_the_older_one_whole(error, tmp_path, monkeypatch):
    record().write(tmp_path / "a.json")
    failing_halfway(monkeypatch, error)
    with pytest.raises(error):
        record(seed=4).write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == record()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_first_record_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    failing_halfway(monkeypatch, OSError)
    with pytest.raises(OSError):
        record().write(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_replaced_at_once(tmp_path, monkeypatch):
    seen = []
    replace = Path.replace

    def watched(path: Path, target: Path) -> Path:
        seen.append((path.parent, path.read_text(), target.read_text()))
        return replace(path, target)

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(Path, "replace", watched)
    write_atomically(tmp_path / "a.txt", "new")
    assert seen == [(tmp_path, "new", "old")]  # whole before it takes the old one's place, on the same disk
    assert (tmp_path / "a.txt").read_text() == "new"


# --- refusals


def changed(path: Path, **changes: Any) -> Path:
    """A record's file with some keys changed; None takes the key away."""
    record().write(path)
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return path


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_a_record_of_another_schema_is_refused(schema, tmp_path):
    path = changed(tmp_path / "a.json", schema=schema)
    with pytest.raises(ValueError, match=r"a\.json: not a record of schema 1$"):
        Record.read(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '"schema"'])
def test_json_that_is_no_record_is_refused(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: not a record of schema 1$"):
        Record.read(tmp_path / "a.json")


def test_missing_keys_are_named(tmp_path):
    path = changed(tmp_path / "a.json", seed=None, final=None)
    with pytest.raises(ValueError, match=r"a\.json: the record lacks final, seed$"):
        Record.read(path)


def test_a_key_of_a_later_version_is_passed_over(tmp_path):
    assert Record.read(changed(tmp_path / "a.json", energy=3.5)) == record()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"not JSON"])
def test_a_file_that_is_no_json_is_named(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: not readable as a record: "):
        Record.read(tmp_path / "a.json")


def test_a_record_cut_short_is_named(tmp_path):
    record().write(tmp_path / "a.json")
    whole = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.json: not readable as a record: "):
        Record.read(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(ValueError, match="not readable as a record: ") as caught:
        Record.read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


# --- variant


@pytest.mark.parametrize(
    ("name", "seed", "variant"),
    [
        ("shapes/resnet8/2ep/patch_swap-s3", 3, "patch_swap"),
        ("shapes/resnet8/2ep/patch_swap-T2-s3", 3, "patch_swap-T2"),
        ("shapes/resnet8/2ep/patch_swap-s3-s12", 12, "patch_swap-s3"),
        ("patch_swap-s0", 0, "patch_swap"),
    ],
)
def test_the_variant_is_the_name_without_folder_and_seed(name, seed, variant):
    assert record(name=name, seed=seed).variant == variant


# --- where a record comes from


def test_versions_are_those_of_what_decides_a_result():
    assert records.versions() == {
        "python": platform.python_version(),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "pillow": version("pillow"),
        "simplejpeg": version("simplejpeg"),
        "patch-swap-distillation": version("patch-swap-distillation"),
    }


def test_a_package_that_is_not_installed_says_so(monkeypatch):
    def without_torchvision(name: str) -> str:
        if name == "torchvision":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(records, "version", without_torchvision)
    assert records.versions()["torchvision"] == "not installed" and records.versions()["torch"] == "1.0"


def test_a_cpu_is_named_with_its_threads():
    assert records.device_name(torch.device("cpu")) == f"cpu, {torch.get_num_threads()} threads"


def test_a_gpu_is_named_as_its_maker_does(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU {device.index}")
    assert records.device_name(torch.device("cuda", 1)) == "Some GPU 1"


def test_another_device_is_named_by_its_kind():
    assert records.device_name(torch.device("mps")) == "mps"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit, from which psd seems to be imported."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # set where the tests are run by a hook
    (tmp_path / "psd").mkdir()
    (tmp_path / "psd" / "records.py").write_text("code")
    (tmp_path / "README.md").write_text("text")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--no-gpg-sign", "--no-verify", "-m", "first")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "psd" / "training" / "records.py"))
    return tmp_path


def test_the_revision_is_the_commit(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert len(commit) == 40 and records.revision() == commit


@pytest.mark.parametrize("name", ["records.py", "new.py"])
def test_the_revision_of_code_that_differs_from_its_commit_is_marked(name, checkout):
    (checkout / "psd" / name).write_text("other code")
    assert records.revision() == git(checkout, "rev-parse", "HEAD") + "+"


def test_a_change_outside_the_package_does_not_mark_the_revision(checkout):
    (checkout / "README.md").write_text("other text")
    assert records.revision() == git(checkout, "rev-parse", "HEAD")


def test_the_revision_does_not_depend_on_the_current_folder(checkout, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert records.revision() == git(checkout, "rev-parse", "HEAD")


def test_there_is_no_revision_outside_a_checkout(checkout, monkeypatch):
    # As for a package in .venv/lib/python3/site-packages: the checkout around it is not its own.
    package = checkout / ".venv" / "psd"
    package.mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(package / "training" / "records.py"))
    assert records.revision() is None


def test_there_is_no_revision_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert records.revision() is None


def test_there_is_no_revision_of_a_checkout_without_a_commit(checkout):
    git(checkout, "update-ref", "-d", "HEAD")
    assert records.revision() is None


def test_a_record_older_than_its_peak_of_memory_is_read(tmp_path):
    record().write(tmp_path / "new.json")
    values = json.loads((tmp_path / "new.json").read_text())
    del values["peak_memory"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert Record.read(tmp_path / "old.json").peak_memory is None


PEAKS = """
import mmap, torch
from psd.training import records

cpu = torch.device("cpu")

def use(size):  # a mapping, for a process may have memory to spare that an array would take
    with mmap.mmap(-1, size) as held:
        for page in range(0, size, 4096):
            held[page] = 1

use(200_000_000)
before = records.peak_memory(cpu)
records.forget_peak_memory(cpu)
low = records.peak_memory(cpu)
use(100_000_000)
print(before, low, records.peak_memory(cpu))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no Linux")
def test_the_peak_of_memory_is_that_since_it_was_forgotten():
    # A process of its own: what other tests left behind (threads, memory to spare) would move the figures.
    printed = subprocess.run([sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True).stdout
    before, low, after = map(int, printed.split())
    assert 180e6 < before - low < 250e6
    assert 90e6 < after - low < 150e6
