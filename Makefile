# Every path is relative to the checkout, so that the checkout may lie in a folder whose name has a space.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: bench clean constraints coverage demo docs format help lint test test-all test-gpu test-wheel types

# What one may set: make test PYTHON=python3.12 WORKERS=8 PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'
PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
export PYTHON PIP_FLAGS

BIN := .venv/bin
# One thread a worker: two workers with two threads each are slower than one.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
RL := .venv/.installed-rl
DEV := .venv/.installed-dev

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | sort | while IFS=$$'\t' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

$(RL): pyproject.toml constraints.txt tools/setup_venv.sh
	@tools/setup_venv.sh rl $(RL)

# The developers' extras hold the application's, so one installation serves both.
$(DEV): pyproject.toml constraints.txt tools/setup_venv.sh
	@tools/setup_venv.sh all,dev $(DEV) && touch $(RL)

demo: $(RL) ## Train ACKTR on CartPole-v1 into runs/demo, evaluate it, draw its learning curve
	@rm -rf runs/demo
	@$(BIN)/natgrad-acktr train --config configs/agents/cartpole.yaml --threads 1 --out runs/demo

test: $(DEV) ## Run the quick tests
	@$(PYTEST)

test-all: $(DEV) ## Run every test that needs neither a GPU nor a download
	@$(PYTEST) -m "not gpu and not network"

test-gpu: $(DEV) ## Run the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

test-wheel: $(DEV) ## Build the wheel and run the tests against it from another folder
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/packaging -v -m "not gpu and not network"

lint: $(DEV) ## Check style, formatting and the direction of imports
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports

format: $(DEV) ## Format the code and sort the imports
	@$(BIN)/python -m ruff check --select I --fix .
	@$(BIN)/python -m ruff format .

types: $(DEV) ## Check the types, and that the checker sees the code through the links
	@$(BIN)/python -m mypy
	@$(BIN)/python -m mypy tests benchmarks tools
	@$(BIN)/python tools/types_canary.py

docs: $(DEV) ## Run the code blocks of README and docs, and check their links
	@$(BIN)/python -m pytest tests/docs -v

bench: $(DEV) ## Time a step and its memory beside SGD and other implementations
	@$(BIN)/python benchmarks/step_cost.py

coverage: $(DEV) ## Run the quick tests and report the lines that they miss
	@$(PYTEST) --cov --cov-report=term

constraints: $(DEV) ## Resolve the pins of constraints.txt anew
	@$(BIN)/python tools/pin.py

clean: ## Remove the environment, caches and builds; runs/ stays
	@rm -rf .venv build dist htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
