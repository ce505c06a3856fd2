# `make demo` and `make test` install what is missing. PYTHON names the interpreter: Python 3.12 or newer.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 --version >/dev/null 2>&1 && echo python3.12 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/installed
# Megatron-Bridge needs Python 3.12 and other versions of transformers: an environment of its own.
BRIDGE_BIN := .venv-bridge/bin
BRIDGE_INSTALLED := .venv-bridge/installed
# NeMo 2 needs older versions of megatron-core and transformers: an environment of its own.
NEMO_BIN := .venv-nemo/bin
NEMO_INSTALLED := .venv-nemo/installed

# The lowest versions that setup.cfg takes: an environment of their own.
OLDEST_BIN := .venv-oldest/bin
OLDEST_INSTALLED := .venv-oldest/installed

.PHONY: demo test test-all test-install test-oldest test-bridge test-nemo test-gpu lint clean

demo: $(INSTALLED)
	$(BIN)/nca-plugin study conf/study/demo.yaml

# Two files of tests at a time; more where there are cores for up to four ranks each.
JOBS ?= 2
# In the order of tests/conftest.py, which begins with the longest.
SPREAD := --dist loadfile --no-loadscope-reorder

test: lint
	$(BIN)/pytest --numprocesses $(JOBS) $(SPREAD) -m "not slow and not gpu and not index"

test-all: lint
	$(BIN)/pytest --numprocesses $(JOBS) $(SPREAD) -m "not gpu and not index"

# Parity with CPU mode and resuming on CUDA devices, then tokens a second; says so where there is no device. Nothing is
# installed: the environment of $(PYTHON) is used as it is, and needs the plugin, megatron-core, tensorboard and pytest.
test-gpu:
	@$(PYTHON) -P -c 'import sys; from importlib.util import find_spec as has; sys.exit(not (has("pytest") and has("nca_plugin")) and "$(PYTHON) lacks nca-plugin or pytest: make test-gpu PYTHON=/path/to/python of an environment that trains")'
	$(PYTHON) -P -m pytest -m gpu
	$(PYTHON) scripts/benchmark_training.py --only-cuda

# What pip would do in NVIDIA's containers, and the wheel where nothing else is.
test-install: $(INSTALLED)
	$(BIN)/pytest -m index tests/project/test_installation.py

# Datasets, and real runs: layouts, resuming, blends, Hydra, a transition. megatron-core 0.18 takes the model from files of
# Megatron-LM, for which those of the folder stand in.
test-oldest: $(OLDEST_INSTALLED)
	PYTHONPATH=$(CURDIR)/tests/megatron_lm_0_18 $(OLDEST_BIN)/pytest --numprocesses $(JOBS) $(SPREAD) -m "not slow" \
	    tests/automata/test_golden.py tests/megatron/test_dataset.py tests/megatron/test_corpus_dataset.py \
	    tests/megatron/test_pretrain.py tests/transition/test_transfer.py \
	    tests/launch/test_hydra.py::test_megatron_trains_on_a_blend

test-bridge: $(BRIDGE_INSTALLED)
	$(BRIDGE_BIN)/pytest tests/bridge

test-nemo: $(NEMO_INSTALLED)
	$(NEMO_BIN)/pytest tests/nemo2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The environment is made anew when what it holds changes. constraints.txt pins the versions that the tests ran with.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "nca-plugin needs Python 3.12 or newer: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

# --no-deps, because megatron-bridge asks for packages that need a GPU to be built; the extra names what it imports.
$(BRIDGE_INSTALLED): setup.cfg pyproject.toml constraints-bridge.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "Megatron-Bridge needs Python 3.12: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv-bridge
	$(BRIDGE_BIN)/pip install --quiet --no-deps megatron-bridge==0.6.2
	$(BRIDGE_BIN)/pip install --quiet --constraint constraints-bridge.txt --editable '.[bridge,study,slurm,dev]'
	touch $@

$(NEMO_INSTALLED): setup.cfg pyproject.toml constraints-nemo.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "the tests of NeMo 2 ran with Python 3.12: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv-nemo
	$(NEMO_BIN)/pip install --quiet --constraint constraints-nemo.txt --editable '.[nemo,study]' pytest hypothesis
	touch $@

$(OLDEST_INSTALLED): setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST_BIN)/pip install --quiet --constraint constraints-oldest.txt --editable '.[megatron,text,study]' \
	    pytest pytest-xdist hypothesis
	touch $@

clean:
	rm -rf .venv .venv-bridge .venv-nemo .venv-oldest runs
