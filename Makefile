# Everything runs in a virtual environment of its own, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint docs mutants clean

run: .venv/.run
	$(BIN)/senn fit digits --out runs/digits --overwrite

# Many tests start processes of their own: compiled once, senn and the tests begin much sooner.
test: .venv/.dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.dev
	$(BIN)/python -m sphinx -n -W --keep-going -q docs build/docs
	$(BIN)/python docs/check.py build/docs

mutants: .venv/.dev
	$(BIN)/python benchmarks/mutants.py

clean:
	rm -rf .venv runs build docs/api docs/gallery docs/_generated

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'senn needs Python 3.11 or newer: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv

.venv/.run: $(BIN)/python pyproject.toml reproduce/pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cli]" -e ./reproduce
	touch $@

.venv/.dev: $(BIN)/python pyproject.toml reproduce/pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]" -e ./reproduce
	touch $@ .venv/.run
