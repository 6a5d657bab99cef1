# `make demo`: the main job on data that it generates. `make test`: the tests that take a second or two each;
# `make test-all`: all of them. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
# One per Python: `make PYTHON=python3.13` sets .venv up anew.
READY := $(VENV)/.ready-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

.PHONY: demo test test-all check clean

demo: $(READY)
	$(BIN)/python tools/demo.py

test: $(READY)
	$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# opencv-python needs libGL, which servers often lack: there the headless build takes its place.
$(READY): pyproject.toml tools/constraints/dev.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint tools/constraints/dev.txt --editable '.[dev]'
	$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	  $(BIN)/python -m pip uninstall --quiet --yes opencv-python && \
	  $(BIN)/python -m pip install --quiet opencv-python-headless && \
	  $(BIN)/python -c 'import cv2'; }
	touch $@

clean:
	rm -rf $(VENV) demo
