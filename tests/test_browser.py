"""What a reader sees: JupyterLab, opened by `make lab`, runs notebooks 00 and 01 in a browser, and sliders move."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest

REASON = "no selenium, which drives the browser; install it: pip install selenium"
webdriver = pytest.importorskip("selenium.webdriver", reason=REASON)
By = pytest.importorskip("selenium.webdriver.common.by", reason=REASON).By
Keys = pytest.importorskip("selenium.webdriver.common.keys", reason=REASON).Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui", reason=REASON).WebDriverWait
WebDriverException = pytest.importorskip("selenium.common.exceptions", reason=REASON).WebDriverException
TimeoutException = pytest.importorskip("selenium.common.exceptions", reason=REASON).TimeoutException

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER and shutil.which("make")),
        reason="no chromium, no chromedriver or no make; on Debian: apt-get install chromium chromium-driver make",
    ),
    pytest.mark.timeout(400),  # the first test waits for the server and the browser too
]

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000"
)

NOTEBOOK = ".jp-NotebookPanel:not(.lm-mod-hidden) "
PANE = NOTEBOOK + ".jp-WindowedPanel-outer"
IDLE = NOTEBOOK + ".jp-Notebook-ExecutionIndicator[data-status=idle]"  # beside the kernel
SELECT = ".jp-Dialog .jp-Dialog-button.jp-mod-accept"  # of "Select Kernel"
PROMPT = NOTEBOOK + ".jp-CodeCell .jp-InputPrompt"
ERROR = NOTEBOOK + '[data-mime-type="application/vnd.jupyter.error"]'
STDERR = NOTEBOOK + '[data-mime-type="application/vnd.jupyter.stderr"]'
INTERACT = NOTEBOOK + ".widget-interact"


class Lab:
    """A running JupyterLab, and the browser that looks at it."""

    def __init__(self, browser: webdriver.Chrome, folder: Path, url: str, token: str) -> None:
        self.browser, self.folder, self.url, self.token = browser, folder, url, token
        self.ran = ""

    def path(self, name: str) -> Path:
        return self.folder / "notebooks" / f"{name}.ipynb"

    def find(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        # One call for all: elements found one by one can be gone before they are read.
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.textContent.trim())"
        return self.browser.execute_script(script, selector)

    def pictures(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].filter(i => i.naturalWidth).map(i => i.src)"
        return self.browser.execute_script(script, selector + " img")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> object:
        wait = WebDriverWait(self.browser, seconds, poll_frequency=0.1, ignored_exceptions=[WebDriverException])
        return wait.until(lambda browser: condition(), f"waited {seconds} s for {what}")

    def click(self, selector: str, label: str) -> None:
        def clicked() -> bool:
            for element in self.find(selector):
                if element.is_displayed() and element.text.strip() == label:
                    element.click()
                    return True
            return False

        self.wait(clicked, f"'{label}' in the menu")

    def idle(self) -> bool:
        return bool(self.find(IDLE))

    def begun(self) -> bool:
        """Whether a cell runs or has run. Where the notebook had no kernel yet, JupyterLab asks for one first."""
        for button in self.find(SELECT):
            button.click()
        return set(self.texts(PROMPT)) != {"[ ]:"}

    def run(self, name: str) -> None:
        """Open a notebook and run all of its cells, if that is not what was done last."""
        if self.ran == name:
            return
        self.ran = name  # from now on: where this fails, the other tests of the notebook need not wait as long
        self.browser.get(f"{self.url}/lab/tree/{name}.ipynb?reset&token={self.token}")
        self.wait(lambda: self.texts(PROMPT), f"the cells of {name}", 60)
        self.wait(self.idle, "a kernel", 60)
        for seconds in (30, 60):  # a second click, where the server lost the kernel it had just named
            self.click(".lm-MenuBar-itemLabel", "Run")
            self.click(".lm-Menu-itemLabel", "Run All Cells")
            try:
                self.wait(self.begun, "the first cell", seconds)
                break
            except TimeoutException:
                if seconds == 60:
                    raise
        # The kernel is idle before the first cell, and between two: all is done once no cell waits with a star. Not all
        # cells are on the page, but the last is: Run All Cells goes there.
        self.wait(lambda: self.idle() and "[*]:" not in self.texts(PROMPT), f"the last cell of {name}", 200)

    def saved(self, name: str) -> nbformat.NotebookNode:
        """The notebook as it stands in the browser now."""
        before = self.path(name).stat().st_mtime_ns

        def read() -> nbformat.NotebookNode | None:
            with suppress(ValueError):  # half of a file, while the server writes it
                if self.path(name).stat().st_mtime_ns != before:
                    return nbformat.read(self.path(name), as_version=4)
            return None

        self.click(".lm-MenuBar-itemLabel", "File")
        self.click(".lm-Menu-itemLabel", "Save Notebook")
        return self.wait(read, "the saved file")

    def scroll(self) -> Iterator[None]:
        """From top to bottom: JupyterLab draws a cell when it comes into view."""
        position, height = 0, 1
        while position < height:
            script = "const pane = document.querySelector(arguments[0]); pane.scrollTop = arguments[1];"
            height = self.browser.execute_script(script + "return pane.scrollHeight", PANE, position)
            time.sleep(0.3)
            yield
            position += 600


@contextmanager
def started(command: list[str], folder: Path, port: int, environment: dict[str, str]) -> Iterator[None]:
    log = folder / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert server.poll() is None and time.monotonic() < deadline, f"no server:\n{log.read_text()[-3000:]}"
            time.sleep(0.2)
        yield
    finally:
        # Asked to end, the server ends its kernels, which are in groups of their own. A kernel whose server was
        # killed ends by itself.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        # Without the committed outputs, so that all there is was made here.
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count, cell.outputs = None, []
        nbformat.write(notebook, folder / "notebooks" / path.name)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    options = f"--no-browser --port={port} --ServerApp.port_retries=0" + " --allow-root" * (os.geteuid() == 0)
    # `make lab` beside the copies, with the Python that runs this test; -o: what is installed is not installed again.
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "-C", str(folder), "-o", "installed", "lab"]
    command += ["STAMP=installed", f"VENV={shlex.quote(sys.prefix)}", f"LAB_OPTIONS={options}"]
    environment = os.environ | {"PSD_FAST": "1", "JUPYTER_TOKEN": token, "IPYTHONDIR": str(folder / "ipython")}
    environment["OMP_NUM_THREADS"] = "1"  # more threads than free cores make 00's training many times slower
    environment |= {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}

    chrome = webdriver.ChromeOptions()
    chrome.binary_location = BROWSER
    for flag in (*FLAGS.split(), f"--user-data-dir={folder / 'chrome'}"):
        chrome.add_argument(flag)
    with started(command, folder, port, environment):
        browser = webdriver.Chrome(options=chrome, service=webdriver.ChromeService(DRIVER))
        try:
            yield Lab(browser, folder, f"http://127.0.0.1:{port}", token)
        finally:
            browser.quit()


@pytest.fixture(autouse=True)
def evidence(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """For the report of a test that fails: the last picture, and what the server said."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        return
    picture = lab.folder / f"{re.sub(r'[^a-z0-9]+', '_', request.node.name)}.png"
    with suppress(WebDriverException):
        lab.browser.save_screenshot(str(picture))
    print(f"The browser showed {picture}; the server's log ends:\n{(lab.folder / 'lab.log').read_text()[-3000:]}")


NAMES = ["00_start_here", "01_patch_swap"]


@pytest.mark.parametrize("name", NAMES, scope="module")  # the scope: notebook after notebook, not test after test
def test_run_all_cells_runs_them_in_order_and_without_an_error(lab, name):
    lab.run(name)
    cells = [cell for cell in lab.saved(name).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output.evalue for output in outputs if output.output_type == "error"] == []
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("name", NAMES, scope="module")  # the scope: notebook after notebook, not test after test
def test_every_figure_is_on_the_page_and_no_warning(lab, name):
    lab.run(name)
    shown: set[str] = set()
    warnings: set[str] = set()
    for _ in lab.scroll():
        shown.update("".join(source.split()) for source in lab.pictures(NOTEBOOK))
        warnings.update(lab.texts(f"{ERROR}, {STDERR}"))
    outputs = [output for cell in lab.saved(name).cells for output in cell.get("outputs", [])]
    figures = ["".join(output.data["image/png"].split()) for output in outputs if "image/png" in output.get("data", {})]
    assert figures
    # Numbers: the figures themselves would fill the report.
    assert [n for n, figure in enumerate(figures) if f"data:image/png;base64,{figure}" not in shown] == []
    assert warnings == set()


def move(lab: Lab, slider: str, key: str) -> tuple[str, str]:
    """Press a key on a slider of 01; what was printed before and after, once text and picture are others."""
    lab.run("01_patch_swap")
    for _ in lab.scroll():
        if lab.find(f"{INTERACT} img"):
            break
    lab.wait(lambda: lab.find(f"{INTERACT} .noUi-handle") and lab.find(f"{INTERACT} img"), "the sliders of 01")

    def output() -> tuple[list[str], list[str]]:
        return lab.texts(f"{INTERACT} .jp-OutputArea-output pre"), lab.pictures(INTERACT)

    def redrawn() -> tuple[list[str], list[str]] | None:
        texts, pictures = output()
        return (texts, pictures) if texts and pictures and texts != before[0] and pictures != before[1] else None

    before = output()
    labels = lab.texts(f"{INTERACT} .widget-hslider .widget-label")
    lab.find(f"{INTERACT} .widget-hslider .noUi-handle")[labels.index(slider)].send_keys(key)
    after = lab.wait(redrawn, f"another text and another picture below the slider '{slider}', not {before[0]}", 30)
    assert lab.texts(f"{INTERACT} :is([data-mime-type$='jupyter.error'], [data-mime-type$='jupyter.stderr'])") == []
    return before[0][0], after[0][0]


def test_the_slider_of_the_patch_size_halves_it(lab):
    before, after = move(lab, "patch size", Keys.ARROW_LEFT)
    assert re.fullmatch(r"m = 8: \d+ of 16 patches changed places", before)
    assert re.fullmatch(r"m = 4: \d+ of 64 patches changed places", after)


@pytest.mark.parametrize("slider", ["ratio", "seed"])
def test_the_other_sliders_move_other_patches(lab, slider):
    before, after = move(lab, slider, Keys.ARROW_RIGHT)
    assert before.split(":")[0] == after.split(":")[0]
