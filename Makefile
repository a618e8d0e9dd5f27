# make demo    sets everything up and trains the tiny model: base -> SFT -> GRPO, in minutes
# make test    sets everything up and runs the quick tests
# make lint    style, formatting and types
# make audit   asks whether an installed package has a known vulnerability; needs the network
# Another Python: make PYTHON=python3.12 demo. README.md has the same as plain commands.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

.PHONY: setup demo test lint audit

setup: $(STAMP)

# Up to date as long as the requirements do not change. torch comes first, so that a machine with
# a wheel of its own kind at hand takes that one.
$(STAMP): $(wildcard requirements*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	@touch $(STAMP)

demo: setup
	$(BIN)/python train.py --config configs/tiny_demo.yaml

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

audit: setup
	$(BIN)/python .ci/audit.py
