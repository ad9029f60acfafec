# Everything sets itself up in .venv; `make train` and `make test` need only Python 3.11
# or newer with pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?= tests lstm_jax

.PHONY: train test peers bench wheel sanitize lint clean

train: $(VENV)/package.stamp $(VENV)/examples.stamp
	$(BIN)/python examples/char_lm.py

test: $(VENV)/package.stamp $(VENV)/tests.stamp
	$(BIN)/python -m pytest -n 2 $(TESTS) --ignore=tests/peers $(PYTEST)

# Parity with PyTorch and Keras, and their examples.
peers: $(VENV)/package.stamp $(VENV)/tests.stamp $(VENV)/peers.stamp
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/peers $(PYTEST)

bench: $(VENV)/package.stamp $(VENV)/examples.stamp $(VENV)/peers.stamp
	$(BIN)/python -m benchmarks $(BENCH)

wheel: | $(BIN)/python
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

# The kernels without JAX, on random shapes, under the sanitizers. A processor that lacks
# AVX2 passes over that part.
SANITIZE := -std=c++17 -O1 -g -ffp-contract=fast -fsanitize=address,undefined \
  -fno-sanitize-recover=undefined -Ilstm_jax/recurrence/cpu/native
sanitize:
	mkdir -p build/sanitize
	cd build/sanitize && for unit in \
	  "baseline.o -DLSTM_ISA=baseline -DLSTM_WIDTH=4 -DLSTM_REGISTERS=16" \
	  "avx2.o -DLSTM_ISA=avx2 -DLSTM_WIDTH=8 -DLSTM_REGISTERS=16 -mavx2 -mfma"; do \
	  $(CXX) $(subst -I,-I../../,$(SANITIZE)) -o $$unit \
	    -c ../../lstm_jax/recurrence/cpu/native/kernels.cc || exit 1; done
	$(CXX) $(SANITIZE) '-DLSTM_ISAS=X(baseline) X(avx2)' -o build/sanitize/test \
	  build/sanitize/*.o tests/native/kernels_test.cc -pthread \
	  $(addprefix lstm_jax/recurrence/cpu/native/,team.cc dispatch.cc)
	build/sanitize/test 100

lint: $(VENV)/package.stamp $(VENV)/tests.stamp $(VENV)/peers.stamp $(VENV)/lint.stamp
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

# The CPU kernels are compiled as the package is installed: once, against the headers of
# the oldest jaxlib. What else is installed leaves them as they are.
NATIVE := hatch_build.py $(wildcard lstm_jax/recurrence/cpu/native/*)

$(VENV)/package.stamp: pyproject.toml $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet "hatchling>=1.27" editables --editable .
	touch $@

$(VENV)/%.stamp: pyproject.toml | $(VENV)/package.stamp
	LSTM_JAX_NATIVE=0 $(BIN)/python -m pip install --quiet --no-build-isolation \
	  --editable ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), sys.version'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache
