# Each target sets up what it needs; a second run is quick.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version). Set PYTHON=python3.11, say."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## A .venv with all packages

check: setup ## Format, lint, types, arrows, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/released.binpb
	$(BIN)/python proto/check_fresh.py

# On the CPU, whatever the machine has: what is on a GPU is neither numpy's nor the same to the last bit.
ON_CPU := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
PYTEST := $(ON_CPU) $(BIN)/python -m pytest -n 2 --dist worksteal

test: setup ## Tests (under 15 minutes on 2 cores)
	$(PYTEST)

coverage: setup ## The same, and which lines they reach, which takes half as long again
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=85

# $(1): the environment; $(2): which of the versions that pyproject.toml allows.
define test_with
	@test -x $(1)/bin/uv || { $(PYTHON) -m venv $(1); $(1)/bin/python -m pip install --quiet --disable-pip-version-check uv; }
	$(1)/bin/uv pip install --quiet --upgrade --python $(1)/bin/python --resolution $(2) -e '.[dev]'
	$(ON_CPU) $(1)/bin/python -m pytest -n 2 --dist worksteal
endef

test-oldest: ## The tests with the oldest packages that pyproject.toml allows, in .venv-oldest (gigabytes; torch is for CUDA)
	$(call test_with,.venv-oldest,lowest-direct)

test-newest: ## The same with the newest ones, which users get, in .venv-newest (gigabytes, too)
	$(call test_with,.venv-newest,highest)

demo: setup ## The whole idea on real human judgements (8 to 20 minutes on 2 cores)
	$(BIN)/python examples/demo

demo-clean: ## Forgets the demo's cached stages
	rm -rf demo_work demo_report

acceptance: setup ## Learning runs, storms in small, real peers (up to 80 minutes)
	$(BIN)/python -m pytest tests/acceptance -rs

bench: setup ## The service against the ceiling of this machine, into bench/results.json (under 15 minutes)
	$(BIN)/python -m bench

bench-peers: setup ## Other servers with the same model, each in an environment of its own (up to 80 minutes)
	$(BIN)/python -m bench --only peers

bench-ppo: setup ## Our PPO trainer beside trl 1.12's, which is installed beside, into bench/ppo.json (under 20 minutes)
	$(BIN)/python -m bench.ppo

storm: setup ## Swaps, loads and unloads under callers of a real server, into bench/storm.json (about 20 minutes)
	$(BIN)/python -m bench.storm

bench-gpu: setup ## A CUDA device: the service against its matrix products, into bench/gpu.json; skips where there is none
	$(BIN)/python -m bench.gpu

proto: ## Generates proto/rm_api anew; the only way to touch it
	@test -x .venv-proto/bin/python || $(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.66.2' 'setuptools<81'
	.venv-proto/bin/python proto/generate.py

clean: ## Removes environments, caches and results
	rm -rf .venv .venv-* demo_work demo_report bench/side dist build *.egg-info examples/javascript/node_modules \
		examples/javascript/package-lock.json .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup check test coverage test-oldest test-newest demo demo-clean acceptance bench bench-peers bench-gpu storm bench-ppo proto clean
