# `make demo` and `make test` install what is missing. PYTHON names the interpreter: Python 3.12 or newer.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 --version >/dev/null 2>&1 && echo python3.12 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-all test-gpu lint clean

demo: $(INSTALLED)
	$(BIN)/nca-plugin study conf/study/demo.yaml

test: lint
	$(BIN)/pytest -m "not slow and not gpu"

test-all: lint
	$(BIN)/pytest -m "not gpu"

# Parity with CPU mode and resuming on CUDA devices, then tokens a second; says so where there is no device.
test-gpu: $(INSTALLED)
	$(BIN)/pytest -m gpu tests/test_gpu.py
	$(BIN)/python scripts/benchmark_training.py --only-cuda

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The environment is made anew when what it holds changes. constraints.txt pins the versions that the tests ran with.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "nca-plugin needs Python 3.12 or newer: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
