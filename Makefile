# Two commands need nothing but Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOWEST := .venv-lowest
# The tests' models are tiny: a process for each core is faster than threads within one.
PYTEST := pytest -n auto --dist worksteal

# Long text for the base of `compare-gpu`, one document a line or file.
TEXT ?= novels.txt

.PHONY: demo test test-long test-lowest test-matrix check format clean compare-gpu test-gpu bench-gpu

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

# On a machine with a GPU, and with torch for it.
test-gpu: $(READY)
	TRITON_INTERPRET=0 $(BIN)/pytest tests/gpu -rs

bench-gpu: test-gpu
	$(BIN)/python benchmarks/kernels.py --out build/kernels-gpu.json
	$(BIN)/skipgpt bench --shape llama-3.1-8b --device cuda --dtype bfloat16 \
		--sparsity 0.25,0.4,0.5 --batch-sizes 1,8,32 --prompt-tokens 512,2048,8192 \
		--out build/bench-gpu

# Likewise: a base of 84 M parameters and 24 layers, made in
# minutes, and every method on it; the table goes into docs/results.md.
compare-gpu: build/deep24/pretraining.json
	$(BIN)/python experiments/run.py retention --base build/deep24 --data stdlib $(TEXT) \
		--device cuda --sparsity 0.25 0.4 0.6 --page docs/results.md

build/deep24/pretraining.json: | $(READY)
	$(BIN)/python scripts/pretrain.py --shape deep24 --data stdlib $(TEXT) --bf16 --device cuda \
		--batch-size 64 --minutes 15 --out build/deep24

clean:
	rm -rf .venv $(LOWEST) demo-out
