# One command on a fresh machine: `make demo` shows the main job, `make test` runs every test.
# Needs Python 3.10 or later; uv, when installed, makes the set-up faster.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Processes among which the tests are divided; each computes with one thread.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup test test-full test-conditions compat unit lint demo docs clean

setup: $(STAMP)

# torch and torchvision have to come from one index and one release: a mixed pair cannot be imported.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p mir_plugin
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

test: lint
	$(BIN)/python -m pytest $(PARALLEL)
	$(BIN)/python -m pytest -q --doctest-modules mir_plugin

# Every fault and every random example too; the table of all faults goes to build/faults.md.
test-full: lint
	$(BIN)/python -m pytest $(PARALLEL) --full
	$(BIN)/python -m pytest -q --doctest-modules mir_plugin

# What compares numbers, with other numbers of threads and other vector instructions, and beside a busy machine.
test-conditions: setup
	$(BIN)/python tests/conditions.py

# The declared ranges of versions, one fresh environment after another: lowest, newest, transformers 4.57, constraints.txt.
compat: setup
	$(BIN)/python tests/compat.py $(ENVIRONMENTS)

# The part without checkpoints, training and other programs: under a minute.
unit: setup
	$(BIN)/python -m pytest -m "not slow and not host"

demo: setup
	$(BIN)/mir demo --out demo-out

# The documentation as a site: open site/index.html.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out site
