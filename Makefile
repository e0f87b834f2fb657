# `make demo` and `make test` work on a fresh machine: each sets up the virtual environment that it needs first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint format types docs audit fuzz soak check clean help

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/'

demo: $(VENV)/installed  ## install, train Memory-CLIP on the embedded data (minutes on a laptop), print where the report is
	$(BIN)/impresa train shapes

test: $(VENV)/installed-dev  ## install, run all tests
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev  ## ruff, format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/installed-dev  ## type-check the package
	$(BIN)/mypy

docs: $(VENV)/installed-docs  ## build the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/site/index.html

audit: $(VENV)/installed-dev  ## are versions of dependencies known to be vulnerable?
	-$(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python tools/audit.py --pip-audit $(VENV)/audit/bin/pip-audit

fuzz: $(VENV)/installed-dev  ## damage files of data and of runs at random; about an hour
	$(BIN)/python tests/fuzzing/run.py

soak: $(VENV)/installed-dev  ## kill a training run fifty times, and hold it against one that nobody killed; some minutes
	$(BIN)/python tests/soak/run.py

check: lint types test  ## everything that decides whether a change is accepted

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit("Impresa needs Python 3.11 or later; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(VENV)/installed $@
