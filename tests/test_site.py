"""The web site: it builds without a warning, no inner link is broken, and a browser shows it without an error."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytest.importorskip("myst_nb", reason="the site is built by sphinx and myst-nb; install them: pip install -e '.[site]'")

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
LOOKED_AT = ("docs/index.html", "docs/when.html", "docs/api.html", "notebooks/00_start_here.html", "RESULTS.html")
WIDTHS = (390, 800, 1400)  # a phone, a tablet, a laptop

needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium or no chromedriver")


class Page(HTMLParser):
    """The links, the anchors and the pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[dict[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name") if tag == "a" else None) if name}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag == "img":
            self.pictures.append(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `make site` does, elsewhere."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-c", "docs", ".", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    found = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    return {name: page for name, page in found.items() if not name.startswith("_static/")}


def test_every_notebook_and_page_is_on_it(pages):
    sources = [*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/solutions/*.ipynb")]
    assert {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in sources} <= pages.keys()


def test_every_inner_link_leads_to_a_page_and_its_anchor(site, pages):
    broken = []
    for name, link in ((name, link) for name, page in pages.items() for link in page.links):
        target, anchor = urldefrag(link)
        if "://" in target or target.startswith("mailto:"):
            continue
        path = ((site / name).parent / unquote(target) if target else site / name).resolve()
        page = pages.get(path.relative_to(site.resolve()).as_posix())
        if not path.exists() or (anchor and page and unquote(anchor) not in page.anchors):
            broken.append(f"{name}: {link}")
    assert not broken


def test_every_picture_says_what_it_shows(pages):
    pictures = [(name, picture) for name, page in pages.items() for picture in page.pictures]
    # Sphinx writes the path where there is no description.
    silent = [f"{name}: {p['src']}" for name, p in pictures if not p.get("alt") or p["alt"] in p["src"]]
    assert pictures and not silent


def test_nothing_comes_from_another_host(site, pages):
    for name in pages:
        text = (site / name).read_text(encoding="utf-8")
        assert 'script src="http' not in text and 'rel="stylesheet" href="http' not in text


# -- in a browser --------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser(site) -> Iterator[tuple[object, str]]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_script_timeout(120)
    yield driver, f"http://127.0.0.1:{server.server_port}"
    driver.quit()
    server.shutdown()


@needs_browser
@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_browser_shows_it_without_an_error(browser, name):
    driver, url = browser
    driver.get(f"{url}/{name}")
    assert driver.find_element("css selector", "article h1").text
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LOOKED_AT)
def test_no_page_is_wider_than_the_window(browser, name, width):
    driver, url = browser
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    driver.get(f"{url}/{name}")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.parametrize("name", [name for name in LOOKED_AT if "api" not in name])  # that one takes a minute
def test_axe_finds_nothing_serious(browser, name):
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    driver, url = browser
    driver.get(f"{url}/{name}")
    found = axe.run(driver)["violations"]
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    assert not [(v["id"], [node["html"][:200] for node in v["nodes"]][:3]) for v in serious]


@needs_browser
def test_search_finds_a_word(browser):
    driver, url = browser
    driver.get(f"{url}/search.html?q=temperature")
    from selenium.webdriver.support.ui import WebDriverWait

    hits = WebDriverWait(driver, 20).until(lambda d: d.find_elements("css selector", "#search-results li a"))
    assert hits
