# make demo      the whole path on a small simulated archive, into runs/demo
# make test      lint, types, spelling and every test;  quick: make test PYTEST_ARGS='-m "not slow"'
# make format    let ruff rewrite the sources
# make docs      build the documentation into docs/_build; a warning or a broken link is an error
# make wheel     build dist/*.whl
# make clean     remove what the above made, runs/ excepted
#
# All of it happens in .venv. Another interpreter: make demo PYTHON=python3.12. Further arguments for pip: PIP_ARGS='...'.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
OUT ?= runs/demo

BIN := .venv/bin
# pip's progress for a person, silence for a log
QUIET := $(shell test -t 2 || echo --quiet)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(QUIET) -c constraints.txt $(PIP_ARGS)

# More threads than cores slow the small models down, and pytest runs two processes.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint format docs wheel clean

demo: .venv/.stamp-demo
	$(BIN)/scijepa demo --out $(OUT)

test: lint
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: .venv/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: .venv/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.stamp-dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

wheel: .venv/.stamp-dev
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf .venv build dist docs/_build docs/notebooks .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say when to install again: when the dependencies or the pins have changed.
.venv/.stamp-demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing sciJEPA into .venv; the first time takes some minutes, mostly for torch." >&2
	$(PIP_INSTALL) -e '.[plot]'
	@touch $@

.venv/.stamp-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing sciJEPA and its test tools into .venv; the first time takes some minutes, mostly for torch." >&2
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ .venv/.stamp-demo

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit(f"sciJEPA needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
