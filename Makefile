# Every target first makes sure that what it needs is installed in .venv, and installs it once: a stamp inside
# .venv is newer than pyproject.toml and constraints.txt, or the step runs again. Nothing outside is touched.

VENV ?= .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/created
RUNTIME := $(VENV)/runtime
DEV := $(VENV)/dev
TORCH := $(VENV)/torch
DOCS := $(VENV)/docs
ARGS ?=

# An interpreter counts if it runs (a pyenv shim may exist and not work), is new enough and can make environments.
USABLE := -c "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$python $(USABLE) && { echo $$python; break; }; done)
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-all test-lowest lint format bench gpu compare kill count notebook docs constraints licenses clean distclean same-python

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Options: ARGS="..." is handed on, PYTHON=python3.12 makes .venv with that interpreter, VENV=dir puts it elsewhere.'

install: $(DEV) ## install the library and the development tools into .venv

train: $(RUNTIME) ## train on the embedded digits: make train ARGS="--optimizer.learning-rate 0.1"
	$(BIN)/python -m experiments.train digits $(ARGS)

# Two processes, each with the files it needs: most of a test is tracing, which one process does on one core. The files
# come in the order of conftest.py: by number of tests, the long ones with few tests would come last.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(DEV) ## run the fast tests and the doctests: make test ARGS="-k penalty"
	$(PYTEST) -m "not slow" $(ARGS)

# What no test above runs: programs are compiled as users get them here, and there with less effort (conftest.py).
test-slow: $(DEV) ## run the slow tests: real processes, kills, notebooks, whole networks
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m slow $(ARGS)

test-all: test test-slow ## run every test once

# The other end of the ranges in pyproject.toml than constraints.txt.
LOWEST := $(VENV)-lowest
test-lowest: $(CREATED) ## run the fast tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PIP) uv
	test -e $(LOWEST)/bin/python || $(BIN)/uv venv -q $(LOWEST) --python $(BIN)/python
	$(BIN)/uv pip install -q --resolution lowest-direct --python $(LOWEST)/bin/python -e '.[dev]'
	$(LOWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

lint: $(DEV) ## check style, formatting, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(TORCH) ## measure this machine, torch and ONNX Runtime beside it: make bench ARGS="--only training"
	$(BIN)/python -m experiments.benchmark $(ARGS)

# Twelve minutes do not do for all of it on most machines: the same command goes on.
gpu: $(TORCH) ## on a GPU: test the operations there and measure beside torch, for 12 minutes; again goes on
	$(BIN)/python -m experiments.benchmark --tests --aims --minutes 12 --resume --json runs/gpu.json $(ARGS)

compare: $(RUNTIME) ## train the mixers on the digits over five seeds (30 runs), table, figure and curves
	$(BIN)/python -m experiments.compare experiments/comparisons/digits.toml $(ARGS)

kill: $(DEV) ## train while being killed fifty times, and compare with an undisturbed run
	$(BIN)/python tools/kill_training.py --kills 50 --signal MIX $(ARGS)

count: $(RUNTIME) ## print parameters and multiply-adds of the networks
	$(BIN)/python -m experiments.count $(ARGS)

notebook: $(DEV) ## execute the notebooks in place
	$(BIN)/python tools/write_notebooks.py
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

# A link or a name in a docstring that leads nowhere is an error.
docs: $(DOCS) ## build the pages of docs/ with the API reference into docs/_build
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build
	@echo "open docs/_build/index.html"

# Every extra but bench and prepare: torch and TensorFlow pin dozens of packages more, for one command each.
constraints: $(CREATED) ## renew the pinned versions in constraints.txt
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 \
		--extra cuda --extra tfds --extra convert --extra dev --extra docs --no-header --no-annotate --output-file constraints.txt pyproject.toml

licenses: $(CREATED) ## renew the licences of all dependencies in THIRD_PARTY.md
	$(PIP) 'pip>=25.1' packaging
	$(BIN)/python tools/licenses.py

clean: ## remove caches and build output; runs and .venv stay
	rm -rf build dist docs/_build docs/api/*.rst .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name '.venv*' -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV) $(LOWEST)

# One chain, created -> runtime -> dev -> torch, so that `make -j` never starts pip twice in one environment.
$(CREATED):
	@python="$(PYTHON)"; \
	test -n "$$python" || { echo "make: no Python >= 3.11 on PATH that runs and has venv; name one: make PYTHON=/path/to/python" >&2; exit 1; }; \
	"$$python" $(USABLE) || { echo "make: PYTHON=$$python does not run, is older than 3.11 or lacks venv; name another" >&2; exit 1; }; \
	echo "Creating $(VENV) with $$("$$python" -V)"; \
	"$$python" -m venv $(VENV)
	@touch $@

$(RUNTIME): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing shuffle_jax into $(VENV)"
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "Installing the development tools into $(VENV)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

# Without them the benchmark does the rest, so a failure here does not stop it.
$(TORCH): $(DEV)
	@echo "Installing torch and ONNX Runtime, which the benchmark compares with, into $(VENV): up to 6 GB on Linux"
	@$(PIP) -c constraints.txt -e '.[bench]' && touch $@ || echo "make: they could not be installed: measuring without them" >&2

$(DOCS): $(DEV)
	@echo "Installing what builds the pages into $(VENV)"
	@$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@

# A .venv made with another interpreter would be used in silence.
ifeq ($(origin PYTHON),command line)
$(CREATED): | same-python
endif
same-python:
	@test ! -e $(CREATED) || test "$$($(BIN)/python -V)" = "$$("$(PYTHON)" -V 2>/dev/null)" || { \
		echo "make: $(VENV) holds $$($(BIN)/python -V), not PYTHON=$(PYTHON): run make distclean, or add VENV=.venv2" >&2; exit 1; }
