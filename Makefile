# Everything sets itself up in .venv; `make train` and `make test` need only Python 3.11
# or newer with pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?= tests lstm_jax
CASES ?= 200
# Warnings of the C++ compiler are errors here; where the package is installed from
# elsewhere they are not.
export LSTM_JAX_WERROR := 1

.PHONY: train examples test test-all chaos peers bench aot aot-check docs wheel wheels sanitize lint clean

# Goes on where it was stopped, if it was.
train: $(VENV)/package.stamp $(VENV)/examples.stamp
	$(BIN)/python examples/char_lm.py $(if $(wildcard out/char_lm/checkpoints),--resume)

# Every task in examples/, briefly: that it runs, not how well. `make -j2` runs two at once.
TASKS := add char_lm classify distributed forecast memory play tag transcribe
examples: $(TASKS:%=briefly-%) briefly-copy
briefly-char_lm: FLAGS := --hidden-size 32
briefly-copy: TASK := memory
briefly-copy: FLAGS := --task copy
briefly-%: $(VENV)/package.stamp $(VENV)/examples.stamp
	rm -rf out/briefly/$*
	$(BIN)/python examples/$(or $(TASK),$*).py --steps 10 --out out/briefly/$* $(FLAGS)

# Most programs of tests run once: LLVM's optimizations would take a third of the time.
# What XLA fuses and how it orders sums is the same without them.
test: export XLA_FLAGS := --xla_backend_optimization_level=0 $(XLA_FLAGS)
# Programs that were compiled once are kept, so that a second run takes half the time:
# CACHE= to keep none.
CACHE ?= $(CURDIR)/.jax_cache
ifneq ($(CACHE),)
test: export JAX_COMPILATION_CACHE_DIR := $(CACHE)
test: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
test: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1
endif
test: $(VENV)/package.stamp $(VENV)/tests.stamp
	$(BIN)/python -m pytest -n 2 $(TESTS) --ignore=tests/peers $(PYTEST)

# All tests, and the contract suite on every cell by every implementation, here and on a
# newer Python with the newest JAX, where there is one. `PYTEST=--contract=all` has every
# cell in every dtype under every check too, which takes twice as long.
NEWEST ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13) \
  $(shell python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null))

test-all:
	$(MAKE) test PYTEST="--contract=pairs $(PYTEST)"
	if [ -n "$(NEWEST)" ]; then \
	  $(MAKE) test PYTHON=$(NEWEST) VENV=.venv-newest PYTEST="--contract=pairs $(PYTEST)"; \
	else echo "No Python 3.13 here: the tests ran on one lane."; fi
	$(MAKE) peers PYTEST="--contract=all $(PYTEST)"

# Runs of training, killed twenty times each and resumed: equal to unbroken ones to the bit.
chaos: $(VENV)/package.stamp $(VENV)/tests.stamp
	PYTHONPATH=. $(BIN)/python tests/chaos.py $(CHAOS)

# Parity with PyTorch and Keras, and their examples.
peers: $(VENV)/package.stamp $(VENV)/tests.stamp $(VENV)/peers.stamp
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 tests/peers $(PYTEST)

bench: $(VENV)/package.stamp $(VENV)/examples.stamp $(VENV)/peers.stamp
	$(BIN)/python -m benchmarks $(BENCH)

# What the compilers of TPUs and of an H100 say of the library and of its rivals, on a
# machine that has neither; the environment is its own, since versions are pinned. All of
# it takes half an hour; aot-check a minute, and fails where a loop has become longer.
AOT_VENV := .venv-aot
aot: $(AOT_VENV)/compilers.stamp
	$(AOT_VENV)/bin/python -m benchmarks.aot $(AOT)

aot-check: $(AOT_VENV)/compilers.stamp
	$(AOT_VENV)/bin/python -m benchmarks.aot --check

$(AOT_VENV)/compilers.stamp: pyproject.toml benchmarks/aot/cuda.txt
	$(MAKE) VENV=$(AOT_VENV) $(AOT_VENV)/package.stamp $(AOT_VENV)/aot.stamp
	$(AOT_VENV)/bin/python -m pip install --quiet --no-deps -r benchmarks/aot/cuda.txt
	touch $@

# The site: out/docs/index.html. A warning is an error.
docs: $(VENV)/package.stamp $(VENV)/docs.stamp
	$(BIN)/sphinx-build -W --keep-going -q -b html docs out/docs

wheel: | $(BIN)/python
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

# What is published, in dist/: an sdist, wheels for two machines and one for all others;
# each is tried in an empty environment, where it can run here.
wheels: $(VENV)/package.stamp $(VENV)/wheels.stamp
	$(BIN)/python tests/wheels.py dist

# The kernels without JAX, on random shapes, under the sanitizers. What the processor
# lacks is passed over.
sanitize: $(VENV)/package.stamp
	$(BIN)/python hatch_build.py --sanitize build/kernels_test
	build/kernels_test $(CASES)

lint: $(VENV)/package.stamp $(VENV)/tests.stamp $(VENV)/peers.stamp $(VENV)/lint.stamp
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

# The CPU kernels are compiled as the package is installed: once, against the headers of
# the oldest jaxlib. What else is installed leaves them as they are.
NATIVE := hatch_build.py $(shell find lstm_jax/recurrence/cpu/csrc -type f)

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
	rm -rf $(VENV) out build dist .jax_cache .pytest_cache .ruff_cache
