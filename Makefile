# Everything that is done to this repository. `make` lists it; PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
RUN_STAMP := $(VENV)/.setup-run-done
BENCH ?= build/bench
JOBS ?= 2
WORKERS := -n $(JOBS) --dist worksteal

# One thread per process: small matrices gain nothing from more, and two test processes share the cores.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Many images set it, and every process would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart setup test test-full test-gpu architectures faults check format bench bench-full images clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(RUN_STAMP)  ## train a small model from nothing, in about three minutes, and ask it something
	test ! -e runs/quickstart || mv runs/quickstart runs/quickstart-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/dumbo examples/quickstart.yaml
	@echo && echo 'dumbo generate runs/quickstart "reverse h e l l o" "add 17 and 25"'
	@$(BIN)/dumbo generate runs/quickstart "reverse h e l l o" "add 17 and 25"
	@echo && echo 'Look at runs/quickstart/report.html, talk to it with "$(BIN)/dumbo chat runs/quickstart",'
	@echo 'or teach it another task: $(BIN)/dumbo examples/lora.yaml'

setup: $(STAMP)  ## make .venv with dumbo, its tests and its checks, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,check]'
	@touch $@ $(RUN_STAMP)

# What the quickstart needs, and nothing of the tests: a newcomer waits for less.
$(RUN_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[polars,peft]'
	@touch $@

test: setup  ## run the tests that need neither network nor GPU; what is skipped is listed at the end
	$(BIN)/python -m pytest $(WORKERS) $(TESTS)

test-full: setup  ## run the long tests too, and keep the report in build/test-full.txt
	@mkdir -p build
	DUMBO_TEST_EXAMPLES=all bash -o pipefail -c '$(BIN)/python -m pytest $(WORKERS) -m "not gpu" --durations=25 $(TESTS) 2>&1 | tee build/test-full.txt'

test-gpu: setup  ## run the tests that need a CUDA device, one process for the device
	$(BIN)/python -m pytest -m gpu $(TESTS)

architectures: setup  ## compare the loss without logits in every architecture, and write docs/architectures.md
	$(BIN)/python -m tests.architectures.table

faults: setup  ## stop every kind of training in every way, let it go on, and write docs/reliability.md
	$(BIN)/python -m tests.faults.matrix

check: setup  ## lint, formatting, types, and who may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup  ## put the code into its one format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## time trainings, the start of the program, the making of rows and more, in under 20 minutes, into build/bench
	$(BIN)/python benchmarks/startup.py --repeat 1 --output $(BENCH)/startup.json
	$(BIN)/python benchmarks/prepare.py --rows 5000 --repeat 1 --output $(BENCH)/prepare.json
	$(BIN)/python benchmarks/sft.py --repeat 1 --steps 4 --output $(BENCH)/sft.json
	$(BIN)/python benchmarks/loss.py --tokens 256 --repeat 1 --sizes 8192 32768 --types float32 --output $(BENCH)/loss.json
	$(BIN)/python benchmarks/lora_kernels.py --tokens 512 --repeat 3 --output $(BENCH)/lora_kernels.json
	$(BIN)/python benchmarks/dense_mixer.py --repeat 3 --output $(BENCH)/dense_mixer.json
	$(BIN)/python benchmarks/packed_attention.py --repeat 3 --output $(BENCH)/packed_attention.json
	$(BIN)/python benchmarks/packed_recurrent.py --repeat 3 --output $(BENCH)/packed_recurrent.json
	$(BIN)/python benchmarks/streaming.py --megabytes 100 --output $(BENCH)/streaming.json
	$(BIN)/python benchmarks/prepare_memory.py --megabytes 100 --output $(BENCH)/prepare_memory.json
	$(BIN)/python benchmarks/checkpoints.py --repeat 1 --output $(BENCH)/checkpoints.json
	$(BIN)/python benchmarks/merge.py --repeat 1 --layers 4 --output $(BENCH)/merge.json

# PEERS='--peer llamafactory=PYTHON --peer axolotl=PYTHON' measures them too: see benchmarks/README.md.
bench-full: setup  ## the same for hours, into benchmarks/results; PEERS names further peers
	$(BIN)/python benchmarks/startup.py $(PEERS)
	$(BIN)/python benchmarks/prepare.py $(PEERS)
	$(BIN)/python benchmarks/sft.py $(PEERS)
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/lora_kernels.py
	$(BIN)/python benchmarks/dense_mixer.py
	$(BIN)/python benchmarks/packed_attention.py
	$(BIN)/python benchmarks/packed_recurrent.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/prepare_memory.py
	$(BIN)/python benchmarks/checkpoints.py
	$(BIN)/python benchmarks/merge.py $(PEERS)

images: setup  ## make the pictures of the documentation again, from the run in runs/quickstart; needs Chromium
	$(BIN)/python docs/make_images.py

clean:  ## remove everything that was built, except runs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
