"""What surrounds the package: metadata, the Makefile's commands, conda's files, continuous integration.

The Makefile runs here with a stand-in for Python that only writes down what it is asked to do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# conda-forge's names where they differ; the first is the usual one.
CONDA = {
    "torch": ("pytorch", "pytorch-cpu", "pytorch-gpu"),
    "matplotlib": ("matplotlib-base", "matplotlib"),
    "seaborn": ("seaborn-base", "seaborn"),
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def split(requirement: str) -> tuple[str, str]:
    """`PyYAML>=6.0` -> ("pyyaml", ">=6.0")."""
    name, bound = re.fullmatch(r"([\w.-]+)\s*([^\s#]*)", requirement.strip()).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), bound


def requirements(*extras: str) -> dict[str, str]:
    """Name -> bound, of the package and of these extras, without what only an older Python needs."""
    lines, others = list(PROJECT["dependencies"]), list(extras)
    while others:
        for line in PROJECT["optional-dependencies"][others.pop()]:
            if line.startswith(PROJECT["name"]):  # name[extra,extra]
                others += line.partition("[")[2].rstrip("]").split(",")
            else:
                lines.append(line)
    return dict(split(line) for line in lines if ";" not in line)


# -- metadata ------------------------------------------------------------------------------------------------


def test_one_version_everywhere():
    import psd

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]  # of psd.__version__
    assert psd.__version__ == citation["version"]


def test_torch_has_lower_bounds_only():
    bounds = requirements()
    assert (bounds["torch"], bounds["torchvision"]) == (">=2.6", ">=0.21")


def test_constraints_pin_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(split(line) for line in lines if line and not line.startswith("#"))
    unpinned = {name for name, bound in pins.items() if not re.fullmatch(r"==\d[\w.]*", bound)}
    assert not unpinned
    missing = requirements(*PROJECT["optional-dependencies"]).keys() - pins.keys()
    assert not missing


def test_wheel_holds_every_module_recipe_and_the_command(tmp_path):
    # Asked without looking for the module: setuptools takes who looks for pip to be pip, and torch.compile fails after.
    if not any(metadata.distributions(name="pip")):
        pytest.skip("no pip, as in uv's environments")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "psd", source / "psd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    recipe = source / "psd" / "recipes" / "deep" / "er" / "new.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.touch()

    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", tmp_path, source], check=True, capture_output=True)

    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "psd = psd.cli:main" in wheel.read(entry_points).decode()
    files = {file.relative_to(source).as_posix() for file in (source / "psd").rglob("*") if file.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == files
    assert any(name.endswith("/LICENSE") for name in names)


# -- conda and Binder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "extras"),
    [
        ("environment.yml", tuple(PROJECT["optional-dependencies"])),
        ("binder/environment.yml", ("notebooks",)),
    ],
)
def test_conda_file_names_every_dependency_with_its_bound(path, extras):
    environment = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *listed, last = environment["dependencies"]  # the last: what conda-forge has not, by pip
    assert listed.index("pip") and last.keys() == {"pip"}
    conda = dict(split(line) for line in listed + last["pip"])
    for name, bound in requirements(*extras).items():
        found = [conda[alias] for alias in CONDA.get(name, (name,)) if alias in conda]
        assert found == [bound], f"{path}: {name}{bound}"


def test_binder_takes_the_cpu_build():
    environment = yaml.safe_load((ROOT / "binder/environment.yml").read_text(encoding="utf-8"))
    names = {split(line)[0] for line in environment["dependencies"] if isinstance(line, str)}
    assert "pytorch-cpu" in names
    assert not [name for name in names if name == "pytorch" or re.search("gpu|cuda|nvidia", name)]


def test_binder_installs_psd_alone_and_stops_at_an_error():
    path = ROOT / "binder/postBuild"
    assert os.access(path, os.X_OK)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -e", "pip install --no-deps ."]


# -- make ----------------------------------------------------------------------------------------------------


class Checkout:
    """A copy of what make reads, with a Python that makes, installs and runs nothing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.folder = folder
        self.log = folder.parent / "log"
        self.pip_fails = folder.parent / "pip-fails"
        self.python = self.script(
            folder.parent / "python",
            f"""
            printf '%s\\n' "$*${{PSD_FAST:+ PSD_FAST=$PSD_FAST}}" >> {self.log}
            case "$*" in
                "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
                "-m pip install"*) test ! -e {self.pip_fails} ;;
            esac""",
        )

    @staticmethod
    def script(path: Path, text: str) -> Path:
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def make(self, *arguments: str, python: Path | str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", f"PYTHON={python or self.python}", *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]},  # none of the variables of a make around this test
            capture_output=True,
            text=True,
        )

    def asked(self) -> list[str]:
        """What Python was asked to run since the last call, in short."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [" ".join(line.split()[1:3]) for line in lines if line.startswith("-m ")]


INSTALL = "pip install"
VENV = "venv .venv"


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "checkout")


@needs_make
def test_make_help_is_the_default_and_lists_every_target(checkout):
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"help", "demo", "test", "lab", "lint"} <= set(targets)
    listed = checkout.make().stdout
    assert re.findall(r"^  ([a-z-]+) +\S", listed, flags=re.MULTILINE) == targets
    assert checkout.make("help").stdout == listed


@needs_make
def test_make_installs_at_the_first_call_only(checkout):
    assert checkout.make("test").returncode == 0
    assert checkout.asked() == [VENV, INSTALL, "pytest -n"]
    assert checkout.make("test").returncode == 0
    assert checkout.asked() == ["pytest -n"]
    assert checkout.make("demo").returncode == 0
    assert checkout.asked() == ["psd demo"]


@needs_make
def test_make_test_runs_tests_and_notebooks_in_fast_mode(checkout):
    checkout.make("test")
    (line,) = (line for line in checkout.log.read_text().splitlines() if line.startswith("-m pytest"))
    assert {"--nbval-lax", "tests", "notebooks", "PSD_FAST=1"} <= set(line.split())


@needs_make
def test_make_makes_a_new_environment_after_an_interrupted_install(checkout):
    checkout.pip_fails.touch()
    assert checkout.make("demo").returncode != 0
    assert checkout.asked() == [VENV, INSTALL]
    half_installed = checkout.folder / ".venv" / "half-installed"
    half_installed.touch()
    checkout.pip_fails.unlink()
    assert checkout.make("demo").returncode == 0
    assert checkout.asked() == [VENV, INSTALL, "psd demo"]
    assert not half_installed.exists()


@needs_make
def test_make_makes_a_new_environment_where_its_python_is_broken(checkout):
    checkout.make("demo")
    checkout.asked()
    checkout.script(checkout.folder / ".venv" / "bin" / "python", "exit 1")
    assert checkout.make("demo").returncode == 0
    assert checkout.asked() == [VENV, INSTALL, "psd demo"]


@needs_make
@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_make_installs_again_when_the_requirements_change(checkout, name):
    checkout.make("demo")
    checkout.asked()
    path = checkout.folder / name
    path.touch()
    checkout.make("demo")
    assert checkout.asked() == ["psd demo"]
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    checkout.make("demo")
    assert checkout.asked() == [INSTALL, "psd demo"]


@needs_make
def test_make_installs_again_when_the_checkout_has_moved(checkout):
    checkout.make("demo")
    checkout.asked()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("elsewhere"))
    checkout.make("demo")
    assert checkout.asked() == [INSTALL, "psd demo"]


@needs_make
@pytest.mark.skipif(sys.version_info < (3, 11), reason="make needs Python 3.11, and says so first")
@pytest.mark.parametrize(
    ("before", "line"),
    [
        ("import sys; sys.version_info = (3, 9, 18)", "3.11 or newer is needed"),
        ("import sys, importlib.util as u; u.find_spec = lambda name: None", "apt install python3-venv"),
    ],
)
def test_make_says_in_one_line_which_python_is_needed(checkout, tmp_path, before, line):
    text = f"""exec {sys.executable} -c "{before}; exec(sys.argv[1])" "$2" """
    python = checkout.script(tmp_path / "unfit", text)
    result = checkout.make("demo", python=python)
    assert result.returncode != 0
    assert len([said for said in result.stderr.splitlines() if line in said]) == 1
    assert not (checkout.folder / ".venv").exists()


@needs_make
def test_make_says_that_there_is_no_python(checkout):
    result = checkout.make("demo", python="no-such-python")
    assert result.returncode != 0
    assert "there is no no-such-python; install Python 3.11 or newer" in result.stderr


# -- continuous integration ----------------------------------------------------------------------------------


def ci_run(folder: Path, make: str = "exit 0", browser: bool = True, **environment: str) -> tuple[int, list[str]]:
    """Exit code of .ci/run beside stand-ins for make, the environment's Python and apt-get, and what these were asked.

    Nothing else is on PATH but the few commands that the script needs, and a browser if there is to be one.
    """
    checkout, log = folder / "checkout", folder / "log"
    for place in (checkout / ".ci", checkout / ".venv" / "bin", folder / "bin"):
        place.mkdir(parents=True)
    script = shutil.copy(ROOT / ".ci" / "run", checkout / ".ci")
    Checkout.script(folder / "bin" / "make", f'echo "$* $(basename "$PWD") $PSD_DATA" >> {log}\n{make}')
    Checkout.script(checkout / ".venv" / "bin" / "python", f'echo "python $*" >> {log}; test -d "$3"')
    Checkout.script(folder / "bin" / "apt-get", f'echo "apt-get $*" >> {log}; test ! -e {folder / "no-network"}')
    Checkout.script(folder / "bin" / "id", "echo 0")
    for name in ("chromium", "chromedriver") if browser else ():
        Checkout.script(folder / "bin" / name, "exit 0")
    for name in ("basename", "bash", "dirname", "env", "mktemp", "rm", "sh", "test", "timeout"):
        (folder / "bin" / name).symlink_to(shutil.which(name))
    environment["PATH"] = str(folder / "bin")
    code = subprocess.run([shutil.which("bash"), script], cwd="/", env=environment, stdin=subprocess.DEVNULL).returncode
    return code, [line.strip() for line in log.read_text().splitlines()]


def test_ci_runs_lint_and_then_the_tests(tmp_path):
    assert ci_run(tmp_path) == (0, ["lint checkout", "test checkout"])


@pytest.mark.parametrize("failing", ["lint", "test"])
def test_ci_fails_with_either_and_runs_both(tmp_path, failing):
    code, asked = ci_run(tmp_path, f'test "$1" != {failing}')
    assert code != 0
    assert asked == ["lint checkout", "test checkout"]


@pytest.mark.parametrize("network", [True, False])
def test_ci_installs_a_browser_where_there_is_none_and_runs_the_tests_in_any_case(network, tmp_path):
    if not network:
        (tmp_path / "no-network").touch()
    code, asked = ci_run(tmp_path, browser=False)
    assert code == 0
    install = ["apt-get -qq install -y chromium chromium-driver"] if network else []
    assert asked == ["lint checkout", "apt-get -qq update", *install, "test checkout"]


def test_ci_unpacks_the_real_data_beside_the_checkout_for_the_tests(tmp_path):
    unpack = tmp_path / "shared" / "data" / "unpack.py"
    unpack.parent.mkdir(parents=True)
    unpack.touch()
    code, (_, unpacked, tested) = ci_run(tmp_path)
    folder = unpacked.removeprefix("python ../shared/data/unpack.py cifar100 ")
    assert code == 0 and Path(folder).is_absolute() and tested == f"test checkout {folder}"
    assert not Path(folder).exists()


def test_ci_keeps_the_real_data_it_is_given(tmp_path):
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "shared" / "data" / "unpack.py").touch()
    assert ci_run(tmp_path, PSD_DATA="mine")[1] == ["lint checkout mine", "test checkout mine"]


WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def test_workflow_runs_the_same_on_the_tested_pythons_and_the_tests_on_the_oldest_and_on_other_systems():
    tested, package = (WORKFLOWS["ci.yml"]["jobs"][name] for name in ("tested-versions", "package"))
    assert tested["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert "bash .ci/run" in [step.get("run") for step in tested["steps"]]
    machines = package["strategy"]["matrix"]["include"]
    oldest = next(machine for machine in machines if machine["resolution"] == "lowest-direct")
    assert PROJECT["requires-python"] == f">={oldest['python']}"
    assert {machine["os"].partition("-")[0] for machine in machines} == {"ubuntu", "macos", "windows"}
    commands = [step["run"] for step in package["steps"] if "run" in step]
    assert any("pytest tests" in command for command in commands)
    assert not any("constraints" in command for command in commands)


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_workflow_pins_actions_by_hash_and_asks_for_no_more_than_it_needs(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)
    checkouts = [step for step in steps if "actions/checkout@" in step.get("uses", "")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


# -- git -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_gitignore_drops_what_runs_leave_and_keeps_code_and_records(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    dropped = [
        ".venv/bin/python",
        "runs/shapes/resnet8/model.safetensors",
        "data/cifar100/train.parquet",
        "model.pt",
        "psd/__pycache__/swap.pyc",
        "results/shapes/resnet8/events.log",
    ]
    kept = [
        "psd/data/shapes.py",
        "psd/recipes/shapes.yaml",
        "tests/data/test_shapes.py",
        "notebooks/00_start_here.ipynb",
        "results/shapes/resnet8/200ep/patch_swap-s0.json",
        "results/README.md",
        "results/shapes/figure.png",
    ]
    git = ["git", "-c", f"core.excludesFile={os.devnull}", "check-ignore", "--no-index", *dropped, *kept]
    said = subprocess.run(git, cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.split() == dropped
