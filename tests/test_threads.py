"""Cores that are ours to use, and what OpenMP finds in the environment when torch is loaded."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from psd import threads
from psd.training import jobs

ROOT = Path(threads.__file__).parent.parent
SETTLED = (*threads.COUNT, *threads.WAITING, "PSD_THREADS")

Process = Callable[..., Path]


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.fixture
def process(tmp_path) -> Process:
    """A function that writes what a kernel tells of a process's cgroups, and returns the process's folder."""

    def write(cgroup: str, mounts: dict[str, str], quotas: dict[str, str]) -> Path:
        """`mounts`: the place below tmp_path, and "ROOT KIND OPTIONS"; `quotas`: a file there, and its text."""
        folder = tmp_path / "proc"
        folder.mkdir()
        (folder / "cgroup").write_text(cgroup)
        lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
        for place, text in mounts.items():
            root, kind, options = text.split()
            lines.append(f"30 22 0:26 {root} {tmp_path / place} rw,nosuid shared:4 - {kind} cgroup {options}")
        (folder / "mountinfo").write_text("\n".join(lines) + "\n")
        for name, text in quotas.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return folder

    return write


V2 = {"fs": "/ cgroup2 rw,nsdelegate"}
V1 = {"cpu": "/ cgroup rw,cpu,cpuacct"}


# --- available


def test_without_a_quota_the_cores_are_those_of_the_affinity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert threads.available(tmp_path / "no /proc") == 3


@pytest.mark.parametrize(("count", "cores"), [(6, 6), (None, 1)])
def test_where_there_is_no_affinity_the_cores_are_the_machine_s(count, cores, monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert threads.available(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [(10_000, 1), (99_999, 1), (100_000, 1), (100_001, 2), (150_000, 2), (200_000, 2), (800_000, 8), (900_000, 8)],
)
@pytest.mark.usefixtures("eight_cores")
def test_a_quota_counts_in_whole_cores_rounded_up_and_no_more_than_the_affinity(quota, cores, process):
    assert threads.available(process("0::/a\n", V2, {"fs/a/cpu.max": f"{quota} 100000\n"})) == cores


@pytest.mark.usefixtures("eight_cores")
def test_a_quota_is_a_share_of_its_period(process):
    assert threads.available(process("0::/a\n", V2, {"fs/a/cpu.max": "75000 25000\n"})) == 3


@pytest.mark.parametrize("tight", ["fs", "fs/a", "fs/a/b"])
@pytest.mark.usefixtures("eight_cores")
def test_the_tightest_quota_from_the_own_cgroup_up_to_the_mount_counts(tight, process):
    quotas = {f"{folder}/cpu.max": "500000 100000\n" for folder in ("fs", "fs/a", "fs/a/b")}
    assert threads.available(process("0::/a/b\n", V2, {**quotas, f"{tight}/cpu.max": "200000 100000\n"})) == 2


@pytest.mark.usefixtures("eight_cores")
def test_quotas_of_other_cgroups_and_outside_the_mount_do_not_count(process):
    ones = {f"{folder}/cpu.max": "100000 100000\n" for folder in (".", "fs/b", "fs/a/b", "a")}
    assert threads.available(process("0::/a\n", V2, {**ones, "fs/a/cpu.max": "300000 100000\n"})) == 3


@pytest.mark.usefixtures("eight_cores")
def test_max_is_no_quota_and_hides_none_above_it(process):
    quotas = {"fs/a/cpu.max": "400000 100000\n", "fs/a/b/cpu.max": "max 100000\n"}
    assert threads.available(process("0::/a/b\n", V2, quotas)) == 4


@pytest.mark.usefixtures("eight_cores")
def test_quotas_of_version_1_are_read_where_its_cpu_controller_is_mounted(process):
    cgroup = "9:cpuset:/c\n5:cpu,cpuacct:/a/b\n4:name=systemd:/s\n0::/s\n"
    mounts = {"set": "/ cgroup rw,cpuset", **V1, "fs": "/ cgroup2 rw"}
    quotas = {"cpu/a/b/cpu.cfs_quota_us": "250000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}
    assert threads.available(process(cgroup, mounts, quotas)) == 3


@pytest.mark.usefixtures("eight_cores")
def test_minus_one_is_no_quota_in_version_1(process):
    quotas = {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}
    quotas |= {"cpu/cpu.cfs_quota_us": "600000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert threads.available(process("4:cpu:/a\n", V1, quotas)) == 6


@pytest.mark.usefixtures("eight_cores")
def test_where_both_versions_are_mounted_the_tighter_quota_counts(process):
    quotas = {"cpu/cpu.cfs_quota_us": "500000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    quotas["fs/a/cpu.max"] = "200000 100000\n"
    assert threads.available(process("4:cpu:/\n0::/a\n", {**V1, **V2}, quotas)) == 2


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/docker/ab", "/docker/ab"),  # told the path outside, and that the mount shows only what is below it
        ("/docker/ab", "/elsewhere"),
        ("/../ab", "/"),  # outside what the process may see
        ("/", "/"),
    ],
)
@pytest.mark.usefixtures("eight_cores")
def test_a_container_s_own_quota_stands_where_its_cgroups_are_mounted(path, root, process):
    mounts = {"x/fs": f"{root} cgroup2 rw"}
    quotas = {"x/fs/cpu.max": "200000 100000\n", "x/ab/cpu.max": "100000 100000\n"}
    assert threads.available(process(f"0::{path}\n", mounts, quotas)) == 2


@pytest.mark.usefixtures("eight_cores")
def test_below_a_container_s_mount_the_path_goes_on_from_the_mount_s_root(process):
    mounts = {"fs": "/docker/ab cgroup2 rw"}
    assert threads.available(process("0::/docker/ab/job\n", mounts, {"fs/job/cpu.max": "300000 100000\n"})) == 3


@pytest.mark.parametrize("text", ["", "\n", "200000\n", "two 100000\n", "200000 0\n", "0 100000\n", "1 2 3\n", "\xff"])
@pytest.mark.usefixtures("eight_cores")
def test_a_quota_that_cannot_be_read_does_not_limit(text, process):
    assert threads.available(process("0::/a\n", V2, {"fs/a/cpu.max": text})) == 8


@pytest.mark.usefixtures("eight_cores")
def test_a_mount_of_cgroups_that_the_process_is_not_in_does_not_count(process):
    quotas = {"fs/cpu.max": "100000 100000\n", "cpu/a/cpu.cfs_quota_us": "300000\n"}
    quotas["cpu/a/cpu.cfs_period_us"] = "100000\n"
    assert threads.available(process("4:cpu:/a\n", {**V2, **V1}, quotas)) == 3


@pytest.mark.usefixtures("eight_cores")
def test_half_of_a_quota_of_version_1_does_not_limit(process):
    assert threads.available(process("4:cpu:/a\n", V1, {"cpu/a/cpu.cfs_quota_us": "200000\n"})) == 8


@pytest.mark.parametrize("line", ["", "0", "0::", "::/a", "four:cpu:/a", "\x00"])
@pytest.mark.usefixtures("eight_cores")
def test_lines_that_mean_nothing_do_not_hide_those_that_do(line, process):
    folder = process(f"{line}\n0::/a\n", V2, {"fs/a/cpu.max": "200000 100000\n"})
    mounts = (folder / "mountinfo").read_text()
    (folder / "mountinfo").write_text(f"{line}\n30 22 0:26 - cgroup2\n{mounts}")
    assert threads.available(folder) == 2


# --- settings, prepare


@pytest.fixture
def cores(monkeypatch) -> Callable[[int, int], None]:
    """A function that sets how many cores are available, of how many; nothing is settled, torch is not loaded."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in SETTLED})
    monkeypatch.setattr(threads, "_ours", {})
    monkeypatch.setattr(threads, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def have(available: int, machine: int) -> None:
        monkeypatch.setattr(threads, "available", lambda: available)
        monkeypatch.setattr(os, "cpu_count", lambda: machine)

    return have


def settled() -> dict[str, str]:
    return {name: os.environ[name] for name in SETTLED if name in os.environ}


def test_where_fewer_cores_than_the_machine_s_are_ours_threads_are_as_many_and_none_spins(cores):
    cores(2, 64)
    threads.prepare()
    assert settled() == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def test_on_a_whole_machine_the_number_of_threads_is_left_to_torch(cores):
    cores(64, 64)
    threads.prepare()
    assert settled() == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_nothing_is_set_once_torch_is_loaded(cores):
    cores(2, 64)
    threads.sys.modules["torch"] = object()
    threads.prepare()
    assert settled() == {}


@pytest.mark.parametrize("name", [*threads.COUNT, *threads.WAITING])
def test_what_the_user_has_set_stays_and_nothing_else_is_set_for_it(name, cores, monkeypatch):
    cores(2, 64)
    monkeypatch.setenv(name, "7")
    threads.prepare()
    others = {"OMP_WAIT_POLICY": "PASSIVE"} if name in threads.COUNT else {"OMP_NUM_THREADS": "2"}
    assert settled() == {name: "7", **others}


def test_preparing_twice_changes_nothing(cores):
    cores(2, 64)
    threads.prepare()
    first = settled()
    threads.prepare()
    assert settled() == first and threads.settings(2) == first


# --- the share of one of several runs


@pytest.mark.parametrize(("available", "side_by_side", "share"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1")])
def test_runs_side_by_side_share_the_available_cores_and_do_not_spin(available, side_by_side, share, cores):
    cores(available, 64)
    assert jobs._share(0, side_by_side) == {"OMP_NUM_THREADS": share, "OMP_WAIT_POLICY": "PASSIVE"}


def test_a_share_replaces_the_number_that_this_process_has_set_for_itself(cores):
    cores(8, 64)
    threads.prepare()
    assert os.environ["OMP_NUM_THREADS"] == "8"
    assert jobs._share(1, 4)["OMP_NUM_THREADS"] == "2"


def test_a_share_replaces_nothing_that_the_user_has_set(cores, monkeypatch):
    cores(8, 64)
    threads.prepare()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert jobs._share(1, 4) == {}


def test_runs_take_the_gpus_in_turn_unless_the_user_has_named_some(cores, monkeypatch):
    cores(8, 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [jobs._share(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert "CUDA_VISIBLE_DEVICES" not in jobs._share(0, 3)


def test_a_run_side_by_side_is_started_with_its_share(cores, monkeypatch, tmp_path):
    cores(8, 64)
    threads.prepare()
    given = {}
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda command, *, env, **rest: given.update(env))
    jobs._Worker(0, 4, tmp_path)
    assert (given["OMP_NUM_THREADS"], given["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    assert given["PATH"] == os.environ["PATH"]


# --- which processes


@pytest.mark.parametrize(
    ("before", "name", "arguments", "expected"),
    [
        ("python /venv/bin/psd", "/venv/bin/psd", "train shapes", True),
        ("python C:/venv/psd.exe", "C:/venv/psd.exe", "demo", True),
        ("python -m psd", "-m", "train -m theirs", True),
        ("python -X dev -Im psd", "-m", "", True),
        ("python -mpsd", "-m", "demo", True),
        ("python -m theirs", "-m", "train psd", False),
        ("python -m theirs", "-m", "-m psd", False),
        ("python -m pytest", "/site-packages/pytest/__main__.py", "psd", False),
        ("python theirs.py", "theirs.py", "-m psd", False),
        ("python psd/theirs.py", "psd/theirs.py", "", False),
        ("python -c pass", "-c", "psd", False),
        ("python", "", "", False),
    ],
)
def test_psd_s_own_command_is_told_from_other_programs(before, name, arguments, expected, monkeypatch):
    monkeypatch.delenv("PSD_THREADS", raising=False)
    monkeypatch.setattr(sys, "orig_argv", [*before.split(), *arguments.split()])
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    assert threads.asked() is expected


@pytest.mark.parametrize("wish", ["4", "", "AUTO"])
def test_another_wish_than_auto_is_refused(wish, monkeypatch):
    monkeypatch.setenv("PSD_THREADS", wish)
    with pytest.raises(ValueError, match=f"PSD_THREADS must be auto or not set, got '{wish}'"):
        threads.asked()


def test_the_file_needs_the_standard_library_alone(tmp_path):
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, threads.__file__]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} - {"__main__"} <= sys.stdlib_module_names


SEEN = """
import os, sys
sys.exit(str({name: os.environ[name] for name in %r if name in os.environ}))
"""
PSD = str(Path(sysconfig.get_path("scripts")) / "psd")


def seen_by_torch(command: list[str], folder: Path, **environment: str) -> dict[str, str]:
    """What torch would find settled when it is loaded; a stand-in, found first, says so and ends the process."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(SEEN % (SETTLED,))
    kept = {name: value for name, value in os.environ.items() if name not in SETTLED}
    path = os.pathsep.join([str(folder), str(ROOT)])
    result = subprocess.run(
        command, cwd=folder, env={**kept, "PYTHONPATH": path, **environment}, capture_output=True, text=True
    )
    return ast.literal_eval(result.stderr)


@pytest.mark.parametrize("command", [[PSD, "--help"], [sys.executable, "-m", "psd", "--help"]], ids=["psd", "-m psd"])
def test_the_command_settles_threads_before_torch_is_loaded(command, tmp_path):
    assert seen_by_torch(command, tmp_path)["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("command", [[PSD, "--help"], [sys.executable, "-m", "psd", "--help"]], ids=["psd", "-m psd"])
def test_the_command_leaves_what_the_user_has_set(command, tmp_path):
    users = {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "1000"}
    assert seen_by_torch(command, tmp_path, **users) == users


@pytest.mark.parametrize("use", ["import psd", "from psd import patch_swap", "import psd.cli", "import psd.threads"])
def test_somebody_s_own_program_keeps_its_environment(use, tmp_path):
    program = tmp_path / "theirs.py"
    program.write_text(use)
    assert seen_by_torch([sys.executable, str(program), "psd"], tmp_path) == {}


def test_a_program_that_asks_has_its_threads_settled_by_import_psd(tmp_path):
    program = tmp_path / "theirs.py"
    program.write_text("import os\nos.environ['PSD_THREADS'] = 'auto'\nimport psd")
    assert seen_by_torch([sys.executable, str(program)], tmp_path)["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_first_cell_of_a_notebook_settles_threads_before_torch_is_loaded(tmp_path):
    cell = runpy.run_path(str(ROOT / "notebooks" / "buttons.py"))["COLAB_CELL"]
    program = tmp_path / "cell.py"
    program.write_text(cell.replace("%pip", "pass  #"))
    assert seen_by_torch([sys.executable, str(program)], tmp_path)["OMP_WAIT_POLICY"] == "PASSIVE"


def test_gnu_s_openmp_takes_it_for_no_spinning():
    kept = {name: value for name, value in os.environ.items() if name not in SETTLED}
    command = [sys.executable, "-c", "import psd"]
    counts = []
    for asks in ({}, {"PSD_THREADS": "auto"}):
        environment = {**kept, **asks, "OMP_DISPLAY_ENV": "VERBOSE"}
        shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr
        counts.append(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown))
    if not counts[0]:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert set(counts[1]) == {"0"} != set(counts[0])
