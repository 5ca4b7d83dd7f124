.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOME_DIR ?= .prompt-serve
INSTALLED := $(VENV)/.installed
SERVE_VENV ?= .venv-serve
# A process for each core, up to four; a file's tests share one, and so its services. Files run in the
# order of tests/conftest.py: slow ones first.
PARALLEL ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SERVE_INSTALLED := $(SERVE_VENV)/.installed
SUPPLY_VENV ?= .venv-supply
SUPPLY_INSTALLED := $(SUPPLY_VENV)/.installed

.PHONY: help install check fix test test-all soak chaos attack mutation bench pythons docs quickstart demo serve pretrain lock sbom audit clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(SERVE_INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(SERVE_VENV)
	$(SERVE_VENV)/bin/python -m pip install --quiet --editable '.[serve]'
	touch $@

$(SUPPLY_INSTALLED): tools/supply-chain.txt
	$(PYTHON) -m venv $(SUPPLY_VENV)
	$(SUPPLY_VENV)/bin/python -m pip install --quiet --requirement tools/supply-chain.txt
	touch $@

install: $(INSTALLED) ## make .venv and install everything into it

check: $(INSTALLED) ## format, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(INSTALLED) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Threads of several test processes that wait for each other in turns would take seven times as long.
test: export OMP_NUM_THREADS = 1
test: $(INSTALLED) ## the tests (about ten minutes on two cores)
	$(BIN)/python -m pytest -m 'not long' $(PARALLEL)

test-all: export OMP_NUM_THREADS = 1
test-all: $(INSTALLED) ## the long tests as well, for the night: every method, all pages, a soak, generated requests
	$(BIN)/python -m pytest $(PARALLEL)

soak: $(INSTALLED) ## an hour of load, kills and a stopped database, every answer checked (SECONDS=3600)
	$(BIN)/python -m drills.soak --seconds $(or $(SECONDS),3600) $(ARGS)

chaos: $(INSTALLED) ## each fault on its own under load: tries, wrong, lost, recovery (ARGS=--write: into the page)
	$(BIN)/python -m drills.chaos $(ARGS)

attack: $(INSTALLED) ## every kind of attack, with other instances for each SEED (COUNT=400, ARGS='images --write')
	$(BIN)/python -m drills.attack --seed $(or $(SEED),0) --count $(or $(COUNT),400) $(ARGS)

mutation: $(INSTALLED) ## which changes of the core no test notices (about an hour)
	$(BIN)/python -m pip install --quiet --requirement tools/mutation.txt
	$(BIN)/python -m tools.mutation $(ARGS)

bench: $(INSTALLED) ## the service beside other servers, same weights, in turns (ARGS=--write: into the page)
	$(BIN)/python -m benchmarks.peers $(ARGS)

pythons: $(INSTALLED) ## core, client and service on every other Python found, 3.11 to 3.14 (no torch)
	$(BIN)/python -m tools.pythons

docs: $(INSTALLED) ## build the documentation into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

quickstart: $(SERVE_INSTALLED) ## learn a task, serve it, ask it; installs no torch
	PROMPT_SERVE_HOME=$(HOME_DIR) $(SERVE_VENV)/bin/python examples/quickstart.py

demo: $(INSTALLED) ## the same with everything installed, and a prompt beside it
	PROMPT_SERVE_HOME=$(HOME_DIR) $(BIN)/python examples/demo.py

serve: $(SERVE_INSTALLED) ## serve the embedded backbone on http://localhost:3000; installs no torch
	PROMPT_SERVE_HOME=$(HOME_DIR) $(SERVE_VENV)/bin/bentoml serve

pretrain: $(INSTALLED) ## make the embedded backbone anew (npm; about three hours on two cores)
	$(BIN)/python -m pip install --quiet --requirement pretraining/requirements.txt
	$(BIN)/python -m pretraining --work build/pretraining

lock: $(INSTALLED) ## pin the packages of the images, with hashes (UPGRADE=1: their newest versions)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python deploy/requirements.py $(if $(UPGRADE),--upgrade,--lock)
	for lock in deploy/*.lock.txt; do $(BIN)/uv pip install --quiet --dry-run --require-hashes --reinstall \
	    --python $(BIN)/python --requirement $$lock || exit 1; done

sbom: $(SUPPLY_INSTALLED) ## CycloneDX lists of the packages of the images, in build/
	mkdir -p build
	for lock in deploy/*.lock.txt; do $(SUPPLY_VENV)/bin/cyclonedx-py requirements --pyproject pyproject.toml \
	    --output-reproducible --output-file build/sbom.$$(basename $$lock .lock.txt).json $$lock || exit 1; done

audit: $(SUPPLY_INSTALLED) ## known vulnerabilities of these packages (says so where no index answers)
	$(SUPPLY_VENV)/bin/python -m tools.audit

clean: ## remove the environment and caches
	rm -rf $(VENV) $(SERVE_VENV) $(SUPPLY_VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
