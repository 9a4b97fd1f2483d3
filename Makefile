# make demo    set up, then run the whole of Selective Self-Rehearsal on the embedded lab
# make test    set up, then run the tests
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STORE ?= .ssr

export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export TOKENIZERS_PARALLELISM = false

.PHONY: help install demo test quick check format bench

help:
	@echo "make demo | test | quick | check | format | bench | install"

# torch first: it is pinned to a build that needs no CUDA packages where there is no GPU.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/installed

demo: install
	@$(BIN)/ssr run demo --store $(STORE)

test: install
	$(BIN)/python -m pytest

quick: install
	$(BIN)/python -m pytest -m "not slow"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python tests/benchmarks
