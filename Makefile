# Headrace. `make` alone prints the targets below from their own comments.
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
ARGS ?=
# processes of the tests: much of their time they wait for brokers, servers and clocks
PROCESSES ?= 4
# a test run starts hundreds of processes, each of which would compile our modules again
export PYTHONDONTWRITEBYTECODE :=
# the first Python on the path that bytewax has a wheel for
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
# address of PyTorch's CPU wheels (shown at pytorch.org/get-started): without it, torch for Linux brings 5 GB of CUDA
TORCH_INDEX ?=
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# a Python that has no bytewax: a few minutes of tests without it, and without torch
NEWEST ?= python3.13
QUICK := tests/schemas tests/features tests/house/test_house.py \
  $(addprefix --ignore=tests/features/test_,redis_url.py view_names.py whole_numbers.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all quick lowest lint format bench docs pictures pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with every pinned package (once; TORCH_INDEX=URL for the CPU build of torch)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Headrace needs Python 3.11 or 3.12 (bytewax has no newer wheel): install one, or say make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a venv: on Debian or Ubuntu run  apt-get install python3-venv"; exit 1; }
	$(PY) $(PIP_INSTALL) -c constraints.txt --editable '.[all,dev]'
	@touch $@

demo: setup ## the main job, end to end on real input (ARGS="--seconds 60 --json report.json")
	@$(VENV)/bin/headrace demo $(ARGS)

test: setup ## the tests but those marked slow, in four processes (ARGS="tests/features -k ring", PROCESSES=0)
	@$(PY) -m pytest -n $(PROCESSES) --dist worksteal -m "not slow" $(ARGS)

test-all: setup ## every test, with all examples of its properties, as CI runs them
	@$(PY) -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

quick: ## the tests of events and features on NEWEST (python3.13), without torch and Bytewax
	@$(NEWEST) -m venv .venv-newest
	@.venv-newest/bin/python $(PIP_INSTALL) -c constraints.txt --editable '.[flow,local]' pytest pytest-timeout hypothesis pyyaml duckdb
	@.venv-newest/bin/python -m pytest $(QUICK) $(ARGS)

lowest: ## the test suite with the lowest version of every range in pyproject.toml
	@$(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python .ci/lowest.py > .venv-lowest/lowest.txt
	@.venv-lowest/bin/python $(PIP_INSTALL) -c .venv-lowest/lowest.txt --editable '.[all,dev]'
	@.venv-lowest/bin/python -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

lint: setup ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: setup ## let ruff put the code in shape
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

bench: setup ## every benchmark against its baseline (a few minutes)
	@for run in benchmarks/*/run.py benchmarks/*/*/run.py; do echo "== $$run"; $(PY) $$run || exit 1; done

docs: setup ## write the generated pages of docs/ anew
	@$(PY) docs/generate.py

pictures: setup ## draw the pictures of docs/images anew (the demo's own takes some minutes of an idle machine: ARGS=--demo)
	@$(PY) docs/draw.py $(ARGS)

pins: setup ## write constraints.txt anew from what is installed
	@$(PY) -m pip freeze --exclude-editable | sed 's/+cpu$$//' | { sed -n 1p constraints.txt; cat; } > constraints.new && mv constraints.new constraints.txt

clean: ## remove .venv, caches and the demo's data
	@rm -rf $(VENV) .venv-newest .venv-lowest .headrace .mypy_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
