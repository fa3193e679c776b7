# make demo   create the environment, install, make videos of prompts with the bundled video model
# make train  the same, but train a model first, on your own clips or on mp4 files that it makes itself
# make test   create the environment, install the dev extra, run the fast tests
# make check  lint, format, types, layers, then make test
#
# make test CONSTRAINTS=oldest   the same with the oldest versions allowed, in .venv-oldest (or CONSTRAINTS=tested)
# make test-random SEED=1        the tests in the random order of that seed

PYTHON ?= python3
# A file of constraints/ has an environment of its own; without one, pip installs the newest versions.
CONSTRAINTS ?=
VENV := .venv$(addprefix -,$(CONSTRAINTS))
BIN := $(VENV)/bin
PINS := $(addprefix constraints/,$(addsuffix .txt,$(CONSTRAINTS)))
SRC := $(CURDIR)/pyproject.toml Makefile $(PINS)
SEED ?= 1

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(PINS))

# Your own clips: make train DATA=~/clips RUN=runs/mine OUT=mine.mp4   (and PROMPT="..." if they have captions)
DATA ?= demo/clips
RUN ?= demo/run
PROMPT ?= $(if $(filter demo/clips,$(DATA)),a red circle moves left)
OUT ?= demo/trained.mp4
FRAMES ?= 64

# Waiting threads spin for microseconds, not milliseconds: on a busy machine two spinning threads lose to one.
export GOMP_SPINCOUNT ?= 20000

.PHONY: demo train test test-random test-slow check lint clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vidgen needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }

$(VENV)/installed: $(SRC) | $(BIN)/python
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(SRC) | $(BIN)/python
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@ $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/vidgen generate shapes/vdm "a red circle moves left" --seed 0 --out demo/video.mp4 --sheet demo/video.png
	@echo "the first video is in demo/video.mp4; now one of each of six prompts, then one of 64 frames"
	$(BIN)/vidgen generate shapes/vdm "a red circle moves left" "a blue square moves up" \
		"a green triangle moves right" "a yellow circle bounces" "a cyan square moves in a circle" \
		"a magenta triangle stays still" --seed 0 --out demo/videos.mp4 --sheet demo/videos.png
	$(BIN)/vidgen generate shapes/vdm "a red circle moves left" --num-frames 64 --seed 0 \
		--out demo/long.mp4 --sheet demo/long.png --sheet-columns 16
	@echo "look into demo/: video.mp4, videos-000.mp4 to videos-005.mp4, long.mp4, and a contact sheet of each"

demo/clips: | $(VENV)/installed
	$(BIN)/vidgen data make shapes $@ --count 96 --num-frames 64

train: $(VENV)/installed | $(filter demo/clips,$(DATA))
	$(BIN)/vidgen train vdm --recipe tiny --data "$(DATA)" --out "$(RUN)"
	$(BIN)/vidgen generate "$(RUN)" "$(PROMPT)" --num-frames $(FRAMES) --seed 0 --out "$(OUT)"
	@echo "the video is in $(OUT)"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2

test-random: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 -p randomly --randomly-seed=$(SEED)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

clean:
	rm -rf .venv .venv-* demo dist .pytest_cache .mypy_cache .ruff_cache
