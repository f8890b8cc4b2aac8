# Every target makes `.venv` and installs what it needs when that is missing, and does nothing twice.
# Another interpreter: make PYTHON=python3.12 setup

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.stamp-dev

.PHONY: setup demo test test-all lint bench docs browser
.DEFAULT_GOAL := setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  f"found Python {sys.version.split()[0]}; expected 3.11 to 3.13; run: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

# the whole main job: data, training to sudden convergence, pictures; see demo/index.html
demo: $(READY)
	$(BIN)/controlnet demo --out demo

# two processes on two cores, a thread each: twice as fast as one with two threads
test: $(READY) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist loadfile -m 'not slow'

test-all: $(READY) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist loadfile

# the tests of the web app drive a real Chromium: an installed one, else Debian's package where we may install it
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium; } || { \
	  echo 'the tests need Chromium; on Debian and Ubuntu: apt install chromium' >&2; exit 1; }

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# side-by-side measurements; each script prints its ratios
bench: $(READY)
	set -e; for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script; done

# links, pictures, commands and names that README.md and docs/ mention must exist
docs: $(READY)
	$(BIN)/python -m pytest -q tests/test_docs.py
