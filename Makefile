# The everyday commands of CONTRIBUTING.md. `make -n NAME` prints what `make NAME` runs.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: setup hooks test test-all lint format types benchmark ci

.venv:
	$(PYTHON) -m venv .venv

setup: .venv
	$(BIN)/pip install -e '.[dev]'

hooks: setup
	$(BIN)/pip install pre-commit
	$(BIN)/pre-commit install

test:
	$(BIN)/python -m pytest -n 2

test-all:
	$(BIN)/python -m pytest -n 2 -m ''

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types:
	$(BIN)/pyright --pythonpath $(BIN)/python

benchmark:
	$(BIN)/pip install -e '.[benchmark]'
	$(BIN)/python -m benchmarks

ci:
	bash .ci/run
