# Two commands need nothing but Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOWEST := .venv-lowest
# The tests' models are tiny: a process for each core is faster than threads within one.
PYTEST := pytest -n auto --dist worksteal

.PHONY: demo test test-long test-lowest test-matrix check format clean

demo: $(READY)
	$(BIN)/skipgpt demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST)

test-long: export SKIPGPT_LONG = 1
test-long: test

test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/$(PYTEST)

test-matrix: test test-lowest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): constraints.txt
$(LOWEST)/.ready: constraints-lowest.txt
$(READY) $(LOWEST)/.ready: %/.ready: pyproject.toml
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet --constraint $(filter constraints%,$^) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv $(LOWEST) demo-out
