# The commands of this repository. Those that need packages install them into .venv, once, and again only when
# pyproject.toml, constraints.txt or the folder's place has changed. pip's own settings (PIP_EXTRA_INDEX_URL,
# PIP_CACHE_DIR, ...) and PSD_DATA pass through the environment.

PYTHON ?= python3
VENV ?= .venv

PY := $(VENV)/bin/python
# Two processes, each with one thread; a file's tests, and a notebook's cells, stay in one of them.
PYTEST := PSD_FAST=1 OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	--nbval-lax --nbval-current-env
STAMP := $(VENV)/.installed-$(shell { cat pyproject.toml constraints.txt; pwd; } | cksum | cut -d ' ' -f 1)

# A stamp says nothing where the Python below it was removed or replaced since: then install again.
USABLE := import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("pip", "torch", "psd"))))
ifneq ($(shell test -e $(STAMP) && $(PY) -I -c '$(USABLE)' 2>/dev/null && echo usable),usable)
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test notebooks notebooks-full lab site lint reliability clean

help: ## Show this list
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo "The first call installs into $(VENV) (some minutes and gigabytes, most of it PyTorch)."

demo: $(STAMP) ## Train cross-entropy and patch swap on the embedded images and compare them (minutes)
	$(PY) -m psd demo

test: $(STAMP) ## Run every test: the package's, its examples, the notebooks (in fast mode)
	$(PYTEST) --doctest-modules tests notebooks psd

notebooks: $(STAMP) ## Run the notebooks alone, in fast mode, against their committed outputs
	$(PYTEST) notebooks

notebooks-full: $(STAMP) ## Run the notebooks in full, save their outputs, note time and memory (about 20 minutes)
	$(PY) notebooks/run.py

lab: $(STAMP) ## Open the notebooks in JupyterLab (as root: make lab LAB_OPTIONS=--allow-root)
	$(PY) -m jupyterlab --notebook-dir=notebooks $(LAB_OPTIONS)

site: $(STAMP) ## Build the web site into build/site, from the committed pages and outputs
	$(PY) -m sphinx -q -W -E -b html -c docs . build/site

lint: $(STAMP) ## Check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

TALLY := $(CURDIR)/build/tally.jsonl
reliability: $(STAMP) ## Try faults, bad input, untrusted files and laws at length, and print RELIABILITY.md
	@mkdir -p build && rm -f $(TALLY)
	PSD_RELIABILITY=long PSD_TALLY=$(TALLY) $(PYTEST) --timeout 3600 tests/reliability
	$(PY) tests/reliability/report.py $(TALLY)

clean: ## Remove .venv, caches and build products; runs/, data/ and results/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# One line each, for people who have never met the error.
define CHECK_PYTHON
import sys
from importlib.util import find_spec
if sys.version_info < (3, 11):
    sys.exit("make: Python 3.11 or newer is needed, %s is %d.%d; name another: make PYTHON=/path/to/python3 (remove $(VENV) if that is the older one)" % (sys.executable, *sys.version_info[:2]))
if not (find_spec("venv") and find_spec("ensurepip")):
    sys.exit("make: this Python cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv")
endef
export CHECK_PYTHON

# .installing outlives an install that was interrupted; what that left behind is removed and made again.
$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@if test -e $(VENV)/.installing || ! $(PY) -I -c 'import pip' 2>/dev/null; then \
		$(PYTHON) -c "$$CHECK_PYTHON" && rm -rf $(VENV) && mkdir -p $(VENV) && touch $(VENV)/.installing && \
		echo "$(PYTHON) -m venv $(VENV)" && $(PYTHON) -m venv $(VENV); \
	fi
	@$(PY) -c "$$CHECK_PYTHON"
	@rm -f $(VENV)/.installed-* && touch $(VENV)/.installing
	$(PY) -m pip install -c constraints.txt -e ".[test,notebooks]"
	@mv $(VENV)/.installing $@
