# Everything a user runs. Each target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
TABLE ?=
ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help reproduce-table verify report sync test test-fast lint types lock clean

help: ## list targets and tables
	@echo "Targets:"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "Tables (make reproduce-table TABLE=NAME):"
	@for spec in experiments/*.yaml; do \
	  printf '  %-27s %s\n' "$$(basename $$spec .yaml)" "$$(sed -n 's/^title: *//p' $$spec)"; done

reproduce-table: $(READY) ## make the quick tables, or TABLE=NAME, in runs/results, and compare; ARGS="--fresh" passes options
	$(BIN)/python scripts/reproduce_table.py $(TABLE) $(ARGS)

verify: $(READY) ## check without training: records, counts, results/, README and weights say the same
	$(BIN)/python scripts/verify.py $(ARGS)

report: $(READY) ## show all results on one page, results/report.html
	$(BIN)/python scripts/report.py $(ARGS)

sync: $(READY) ## upload the runs that wandb logged offline, to the account of `wandb login`
	@runs=$$(ls -d wandb/offline-run-* 2>/dev/null); if [ -z "$$runs" ]; then echo "no offline runs in ./wandb"; \
	  else $(BIN)/wandb sync --yes $$runs; fi

test: $(READY) ## run the whole test suite
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-fast: $(READY) ## run the tests but for the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

lint: $(READY) ## check format and style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## check the types of the package
	$(BIN)/mypy

lock: $(READY) ## pin today's newest versions in requirements.lock
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --no-header --no-annotate -o requirements.lock

clean: ## remove the environment; runs, results and data stay
	rm -rf $(VENV)

# The mark is written last, so an interrupted installation is done again. LOCK=no installs by the ranges of
# pyproject.toml instead of the pinned versions.
LOCK ?= yes
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "whtnet needs Python 3.11 or newer; run make with PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (PyTorch is large: some minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	if [ "$(LOCK)" = yes ]; then $(BIN)/python -m pip install -q -r requirements.lock; fi
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $(READY)
