# Two commands do everything on a fresh Debian or Ubuntu machine:
#   make run    set up, then the main job on the network that ships with dlas
#   make test   set up, then style, types, layers and all tests that are not marked slow
# More:
#   make test-all   every extra (TensorFlow too: 2 GB), the converters' own environments (7 GB) and every test
#   make fuzz       100,000 damaged model files through every importer (hours)
#   make bench      the figures of benchmarks/README.md

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NATIVE := CMakeLists.txt $(wildcard src/dlas/kernels/native/*/*)
RUN_EXTRAS  := tflite,openvino
TEST_EXTRAS := dev
ALL_EXTRAS  := dev,keras,iree,executorch,fuzz

SIDE_ENVIRONMENTS := onnx2tf onnx2tf-1.28 litert-torch ncnn tflite2onnx

.PHONY: run test test-all side-environments lint bench fuzz clean system-run system-test system-all help

help:
	@sed -n '1,7p' Makefile

run: $(VENV)/.run
	$(BIN)/dlas run

test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations 20

test-all: $(VENV)/.all lint side-environments
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 40

# Converters that cannot live beside the rest; those that are built already are left alone.
side-environments: $(VENV)/.all
	$(BIN)/dlas doctor $(foreach name,$(SIDE_ENVIRONMENTS),--make-env $(name))

lint: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/pyright
	$(BIN)/lint-imports

fuzz: $(VENV)/.all
	$(BIN)/python scripts/fuzz.py

bench: $(VENV)/.test
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# --- set-up -------------------------------------------------------------------------------------

$(VENV)/.run: pyproject.toml constraints.txt $(NATIVE) | system-run $(BIN)/python
	@echo "set-up: install dlas with $(RUN_EXTRAS) into $(VENV)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(RUN_EXTRAS)]"
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(NATIVE) | system-test $(BIN)/python
	@echo "set-up: install dlas with $(TEST_EXTRAS) into $(VENV)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(TEST_EXTRAS)]"
	@echo "set-up: the hardware tools compile themselves on their first call"
	$(BIN)/python -m dlas.hardware.synthesis.warm
	@touch $@ $(VENV)/.run

$(VENV)/.all: pyproject.toml constraints.txt $(NATIVE) | system-test $(BIN)/python
	@echo "set-up: install dlas with $(ALL_EXTRAS) into $(VENV)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings cmake.define.DLAS_SSE4=ON \
	  --editable ".[$(ALL_EXTRAS)]"
	@touch $@ $(VENV)/.test $(VENV)/.run

$(BIN)/python:
	@echo "set-up: make $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dlas needs Python 3.11 or newer; give one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The compiler builds the native kernels.
system-run:
	@PYTHON=$(PYTHON) ./scripts/system-packages venv compiler

# A compiler also links what TVM generates; Chromium is where the report is looked at.
system-test:
	@PYTHON=$(PYTHON) ./scripts/system-packages venv compiler browser

# Emulators and a compiler for ARM, for the slow tests of the native kernels.
system-all: system-test
	@PYTHON=$(PYTHON) ./scripts/system-packages cross

clean:
	rm -rf $(VENV) dlas-out build dist .pytest_cache .ruff_cache
