"""The web site: `make site` builds it from the committed pages and notebooks, without running a cell or the network.

The source folder is the repository itself, so that every page keeps its path: sphinx-build -c docs . build/site
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import buttons  # noqa: E402

import psd  # noqa: E402

REPOSITORY = f"https://github.com/{buttons.repository()}"

project = "psd"
author = "The psd authors"
copyright = "The psd authors. Code: MIT. Text: CC BY 4.0"
release = version = psd.__version__
language = "en"
default_role = "py:obj"  # `names` in docstrings: links where there is something to link to

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "notebooks/**",
    "examples/README.md",
    "RESULTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "RELIABILITY.md",
]
exclude_patterns = ["**/.ipynb_checkpoints", "notebooks/LICENSE", "docs/top"]
html_extra_path = ["top"]  # index.html at the top leads to the first page

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
# Links to torch's own pages need its inventory from the network: the workflow that publishes the site sets this.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }
    if os.environ.get("PSD_SITE_LINKS") == "1"
    else {}
)

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}  # a widget's script would come from the network; its still figure does not
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_block", "html_image"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False

html_theme = "sphinx_book_theme"
html_title = "psd"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_copy_source = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "path_to_docs": "",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "launch_buttons": {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"},
    "navbar_persistent": [],  # the search stands in the sidebar
    "show_navbar_depth": 1,
    "home_page_in_toc": True,
}

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
BADGES = re.compile(r"^\[!\[(Open in Colab|Launch on Binder)\].*\n?", re.MULTILINE)


def is_page(path: str) -> bool:
    return (path.startswith(("docs/", "notebooks/")) and path.endswith((".md", ".ipynb"))) or path in include_patterns


def lead_to_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """A link to a file that is no page of the site leads to the repository."""

    def instead(match: re.Match[str]) -> str:
        path = normpath(join(dirname(name), match[1]))
        if is_page(path) or not (ROOT / path).exists() or path.endswith((".png", ".svg")):
            return match[0]
        if path == "README.md":
            return f"](/docs/index.md{match[2] or ''})"
        if (ROOT / path / "README.md").exists():  # a folder that has a page
            return f"](/{path}/README.md)" if is_page(f"{path}/README.md") else match[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path})"

    source[0] = LINK.sub(instead, source[0])


def prepare_notebook(app: Sphinx, name: str, source: list[str]) -> None:
    """Progress bars and sliders are left out: their scripts are not there, and what they leave is "0 %". A figure's
    description goes where myst-nb looks for it."""
    if Path(app.env.doc2path(name)).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    title = "".join(notebook["cells"][0]["source"])
    notebook["cells"][0]["source"] = BADGES.sub("", title)  # the theme has launch buttons of its own
    for cell in notebook["cells"]:
        cell["outputs"] = [
            output
            for output in cell.get("outputs", [])
            if "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
        ]
        if cell["cell_type"] != "code":
            del cell["outputs"]
            continue
        told = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in cell["outputs"]]
        if any(told):
            cell["metadata"]["mystnb"] = {"image": {"alt": next(filter(None, told))}}
    notebook["metadata"].pop("widgets", None)
    # ipython3, as %pip and !git stand in cells
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    source[0] = json.dumps(notebook)


STAR = re.compile(r"(``.*?``|`.*?`)|(\*)")


def plain_stars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A star in a docstring is a star, as in `**options` and `PATH/*`, and no emphasis."""
    lines[:] = [STAR.sub(lambda match: match[1] or r"\*", line) for line in lines]


def mathml(self: Any, node: nodes.Element) -> None:
    block = isinstance(node, nodes.math_block)
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", prepare_notebook)
    app.connect("source-read", lead_to_repository)
    app.connect("autodoc-process-docstring", plain_stars)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "mathml"
