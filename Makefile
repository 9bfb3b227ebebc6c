# make demo          the main job in miniature; prints where the report lies
# make test          the tests that need no GPU, but for the kernels'
# make test-kernels  the tests that run Unsloth's kernels in Triton's interpreter, which is slow
# make test-gpu      the tests that need a GPU
# make perf          reading, comparing, exporting and rendering up to 100,000 records: some minutes, 4 GB of memory
# make lint          ruff and mypy
# Each makes .venv if it is not there or if what it is made from has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)

# Without a GPU the CPU build of torch, and of Unsloth what its kernels need in Triton's interpreter: it cannot train there.
ifeq ($(GPU),yes)
EXTRAS := gpu,dev
TORCH := "torch>=2.11,<2.15"
else
EXTRAS := dev
TORCH := torch -c constraints-cpu.txt
KERNELS := requirements-kernels-cpu.txt
endif

# What runs Unsloth's kernels in Triton's interpreter.
KERNEL_TESTS := tests/kernels_check tests/regress/test_seeded.py

.PHONY: demo test test-kernels test-gpu perf lint clean

$(MADE): pyproject.toml constraints.txt constraints-cpu.txt requirements-kernels-cpu.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(if $(KERNELS),$(BIN)/python -m pip install --quiet --no-deps -r $(KERNELS))
	touch $@

demo: $(MADE)
	$(BIN)/peftmark run demo
	$(BIN)/peftmark report runs/demo --published results --out runs/demo/report --title "peftmark demo"

test: $(MADE)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not scale" $(KERNEL_TESTS:%=--ignore %) --ignore tests/perf
	$(BIN)/python -m pytest -m "not scale" tests/perf

test-kernels: $(MADE)
	$(BIN)/python -m pytest $(KERNEL_TESTS)

test-gpu: $(MADE)
	$(BIN)/python -m pytest -m gpu tests/gpu

perf: $(MADE)
	$(BIN)/python -m pytest tests/perf

lint: $(MADE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
