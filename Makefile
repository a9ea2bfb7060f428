# One file, no other tool needed: `make` lists what there is.
# `make PYTHON=python3.12 test` uses another interpreter; `make VENV=/somewhere/else test` another environment.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread per process: two pytest workers share two cores, and digests do not depend on the number of cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2

.PHONY: help install demo test coverage test-slow test-oldest check format docs docs-links wheel constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv with the pinned versions (done once, and again when they change)

# The version is in __init__.py, and an environment that was installed before would go on with the old one.
$(STAMP): pyproject.toml constraints.txt src/autotimm/__init__.py
	@command -v $(PYTHON) > /dev/null || { \
	  echo "No '$(PYTHON)' here. Install Python 3.10 or newer, or name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$$($(PYTHON) --version) is too old: autotimm needs Python 3.10 or newer. Name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot create an environment. On Debian and Ubuntu: apt install python3-venv. Elsewhere install a Python that has the venv and ensurepip modules."; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null || { \
	  echo "$(VENV) has no pip. Remove it (rm -rf $(VENV)), install python3-venv (or pip for $(PYTHON)) and try again."; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## train, test and predict on 1,797 scanned digits (about 2 minutes)
	$(BIN)/autotimm demo

test: $(STAMP) ## run the test suite
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(STAMP) ## run everything, the long tests too
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'slow or not slow'

coverage: $(STAMP) ## run the test suite and measure what it reaches
	rm -f .coverage .coverage.*
	$(TEST_ENV) $(BIN)/coverage run -m pytest -q -n $(WORKERS) --dist worksteal
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Removed if the tests pass: it takes about 5.5 GB, and is made again in some minutes.
test-oldest: ## run the test suite with the oldest versions that pyproject.toml allows
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tools/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/constraints.txt -e '.[dev]'
	$(TEST_ENV) .venv-oldest/bin/python -m pytest -q -n $(WORKERS) --dist worksteal
	rm -rf .venv-oldest

wheel: $(STAMP) ## build a wheel in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

check: $(STAMP) ## lint, format, types, import layers and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(STAMP) ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the documentation in site/, offline; a warning or a broken link is an error
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -E -q -W --keep-going -b html -d build/doctrees docs site
	@echo "site/index.html"

docs-links: $(STAMP) ## try every link of the documentation, also those that lead elsewhere; needs a network
	$(BIN)/python -m sphinx -E -q -W --keep-going -b linkcheck -d build/doctrees docs build/linkcheck

constraints: $(STAMP) ## pin the versions that are installed now
	$(BIN)/python tools/constraints.py > constraints.tmp && mv constraints.tmp constraints.txt

clean: ## remove caches and builds (.venv and runs/ stay)
	rm -rf build dist site docs/api/generated .mypy_cache .ruff_cache .pytest_cache .import_linter_cache constraints.tmp
	rm -rf .venv-oldest
	rm -f .coverage .coverage.*
	find src tests examples docs tools -name __pycache__ -type d -prune -exec rm -rf {} +
