# Everything sets itself up in .venv; `make train` and `make test` need only Python 3.11
# or newer with pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?= tests lstm_jax

.PHONY: train test peers bench wheel lint clean

train: $(VENV)/examples.stamp
	$(BIN)/python examples/char_lm.py

test: $(VENV)/tests.stamp
	$(BIN)/python -m pytest -n 2 $(TESTS) --ignore=tests/peers $(PYTEST)

# Parity with PyTorch and Keras, and their examples.
peers: $(VENV)/tests.stamp $(VENV)/peers.stamp
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/peers $(PYTEST)

bench: $(VENV)/examples.stamp $(VENV)/peers.stamp
	$(BIN)/python -m benchmarks $(BENCH)

wheel: | $(BIN)/python
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

lint: $(VENV)/tests.stamp $(VENV)/peers.stamp $(VENV)/lint.stamp
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

# The kernels are compiled as the package is installed.
NATIVE := hatch_build.py $(wildcard lstm_jax/recurrence/cpu/native/*)

$(VENV)/%.stamp: pyproject.toml $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), sys.version'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache
