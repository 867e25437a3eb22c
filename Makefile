# `make` lists the targets. `make demo` and `make test` set everything up by themselves.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TESTS ?= tests
SIZE ?=
CLASSIFIER ?= configs/classification/glyphs_lt_cosine
OUTPUT ?= output/glyphs_lt_cosine

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet
STAMP := $(VENV)/.ready
LOCKED := $(INSTALL) --constraint requirements.lock

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-classification test lint format lock clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-19s %s\n", $$1, $$2}' Makefile
	@echo "variables: SIZE=tiny|demo|lvis (demo), TESTS=path (test), PYTHON=python3.11, VENV=.venv"

setup: $(STAMP)  ## create .venv with the pinned packages; done once

# The stamp is written last, so an interrupted set-up starts again and keeps what is installed.
$(STAMP): requirements.lock setup.py tools/install_detectron2.py
	@echo "set-up 1/5: virtual environment in $(VENV) (seconds)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "Python 3.11 or newer is needed, this is " + sys.version + "; use make PYTHON=...")'
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	    { echo "apt-get install python3-venv, then call make again"; exit 1; }
	@echo "set-up 2/5: torch and torchvision (minutes; 3 GB to download, 5 GB on disk)"
	@$(LOCKED) setuptools wheel
	@$(LOCKED) torch torchvision
	@echo "set-up 3/5: the other pinned packages (about a minute; 0.3 GB)"
	@$(INSTALL) --requirement requirements.lock
	@echo "set-up 4/5: Detectron2 (seconds)"
	@$(BIN)/python tools/install_detectron2.py
	@echo "set-up 5/5: logn_d2 itself, editable (seconds)"
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'import cv2' || \
	    { echo "apt-get install libgl1 libglib2.0-0, then call make again"; exit 1; }
	@$(BIN)/python -c 'import detectron2.modeling, lvis, torchvision'
	@touch $@

demo: $(STAMP)  ## all steps on LT-Glyphs, with a report; SIZE=tiny for a smoke test
	$(BIN)/logn demo $(if $(SIZE),--size $(SIZE))

demo-classification: $(STAMP)  ## image classifiers on drawn characters, unknown images, a report
	$(BIN)/logn train --config-file $(CLASSIFIER).yaml --resume OUTPUT_DIR $(OUTPUT)
	$(BIN)/logn sweep --config-file $(CLASSIFIER).yaml --weights $(OUTPUT)/model_final.pth \
	    --stats $(OUTPUT)/logn_stats.safetensors --output $(OUTPUT)/sweep --resume \
	    --calibrations logn_mean logn_std logn logit_adjustment auto \
	    --choose-on glyphs_lt_val --ood glyphs_lt_unknown noise
	$(BIN)/logn report $(OUTPUT)/sweep --output $(OUTPUT)/report.html

# One thread for each of two processes: more of either only wait for each other on two cores.
test: export OMP_NUM_THREADS ?= 1
# Both read what pytest makes of the files' assertions, and so does the next run.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP)  ## the test suite; TESTS=tests/core for a part, WORKERS=8 on a larger machine
	$(BIN)/python -m pytest -q --numprocesses $(or $(WORKERS),2) --dist worksteal $(TESTS)

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP)  ## write the versions in .venv to requirements.lock
	@grep '^#' requirements.lock > requirements.lock.partial
	@$(PIP) freeze --all | grep -vE '^(#|-e|detectron2|logn_d2|pip=|nvidia-|cuda-|triton)' \
	    >> requirements.lock.partial
	@mv requirements.lock.partial requirements.lock

clean:  ## remove .venv and the caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
