# Everything runs in a virtual environment of the project's own: make demo, test, sanitize, lint.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test gpu zoo mutants sanitize lint format bench seeds clean

demo: $(STAMP)  ## encode the example checkpoint, inspect it, decode it elsewhere, classify images
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# A process for each core, which takes one file of tests after the other; more threads would be in the way.
test: $(STAMP)  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

gpu: $(STAMP)  ## tests of all that a CUDA device does its own way; without one, by Triton's interpreter
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --config-settings editable_mode=compat --editable '.[gpu]'
	$(BIN)/python -m pytest tests/test_device.py tests/test_triton.py

zoo: $(STAMP)  ## timm, transformers and Triton, for tests that are skipped without them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --config-settings editable_mode=compat --editable '.[zoo,gpu]'

mutants: $(STAMP)  ## damages copies of the package in 500 places, one at a time: do the tests notice?
	$(BIN)/python benchmarks/mutants.py

ROUNDS ?= 2000
sanitize: $(STAMP)  ## the C kernels under AddressSanitizer and UndefinedBehaviorSanitizer; longer: ROUNDS=50000
	$(BIN)/python tests/sanitize.py --rounds $(ROUNDS)

lint: $(STAMP)  ## style, types, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## sizes of the example and of any official checkpoints at hand
	$(BIN)/python benchmarks/storage.py

seeds: $(STAMP)  ## which seeds are found behind the weights of 149 networks; some ten minutes
	$(BIN)/python benchmarks/seeds.py

# By path (compat): else a script beside a clone called pemncodec would import the clone's folder.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard pemncodec/kernels/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --config-settings editable_mode=compat --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info pemncodec/kernels/*.so
