# `make check` and `make test` need nothing but make, Python 3.11 or later and git: they set up .venv first.
# PYTHON=python3.12 make test    chooses the interpreter (after make clean)
# PYTEST_ARGS='-k zap' make test hands arguments to pytest

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
CODE := src tests $(wildcard bench)

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup check test lint format bench lock clean

help:
	@echo "make check   run the checker: every scenario, every design"
	@echo "make test    lint, types and all tests"
	@echo "make lint    lint and types alone"
	@echo "make format  lay the code out, and fix what can be fixed"
	@echo "make bench   measure"
	@echo "make lock    renew requirements.lock (needs uv)"
	@echo "make clean   remove everything that make made"

setup: $(STAMP)

# The stamp is written last, so that an interrupted set-up starts again.
$(STAMP): requirements.lock pyproject.toml tools/make-venv
	@echo "Setting up $(VENV)"
	@tools/make-venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

check: $(STAMP)
	@$(BIN)/interleaf check

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy --no-error-summary $(CODE)

# pytest comes last, so that its summary is the last line.
test: lint
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

format: $(STAMP)
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(STAMP)
	@$(BIN)/python -m bench

# Exact versions and hashes for every Python and platform that the project supports.
lock:
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command "make lock" \
		--group dev pyproject.toml --output-file requirements.lock

clean:
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find src tests $(wildcard bench) -name __pycache__ -type d -prune -exec rm -rf {} +
