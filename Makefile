# The two commands: `make demo` and `make test`. Each sets up what it needs on a fresh clone.
SHELL := /bin/bash
TOOLS := .tools
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
READY := .venv/.ready
RUN := $(UV) run --frozen --no-sync
# Two workers keep two cores busy: a server that starts uses one. `make test WORKERS=` does without.
WORKERS := -n 2 --no-loadscope-reorder
PYTHONS ?= 3.11 3.12 3.13
# Two of everything fit a small machine; torch would otherwise start a thread per core and process.
export TOKENIZERS_PARALLELISM := false
# A server is three processes that import all of SGLang: without bytecode files each compiles it anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo picture test test-all test-pythons test-gpu check format coverage bench bench-kernels clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(READY)  ## Create the environment (.venv); the other targets do it themselves

$(TOOLS)/bin/uv:
	@echo "== uv is not installed: putting it into $(TOOLS)/"
	@python3 -m venv $(TOOLS) 2>/dev/null && $(TOOLS)/bin/python -m pip install --quiet uv \
	  || { rm -rf $(TOOLS); python3 -m pip install --quiet --target $(TOOLS) uv; } \
	  || { echo "Could not install uv: python3 has neither venv nor pip."; exit 1; }

$(READY): pyproject.toml uv.lock $(if $(filter $(TOOLS)/bin/uv,$(UV)),$(TOOLS)/bin/uv)
	@test -d .venv || { \
	  free=$$(df --output=avail -BG . | tail -1 | tr -dc 0-9); \
	  echo "== Creating .venv: about 10 GB with SGLang's CUDA wheels ($$free GB free here)."; \
	  echo "   Once; a few minutes, depending on the network."; \
	  test $$free -ge 12 || { echo "Not enough disk space: 12 GB are needed."; exit 1; }; }
	@UV_HTTP_TIMEOUT=300 $(UV) sync --frozen
	@touch $@

demo: $(READY)  ## A real SGLang server answers a question about a video, beside plain decoding
	$(RUN) specvlm demo

picture: $(READY)  ## Prune a real clip with the reference and draw what a draft would keep
	$(RUN) python examples/pruned_clip.py

test: $(READY)  ## Every test that runs without a GPU in reasonable time
	$(RUN) pytest -m "not slow" $(WORKERS)

test-all: $(READY)  ## The slow tests too
	$(RUN) pytest $(WORKERS)

test-pythons: $(READY)  ## The quick tests on each Python; PYTHONS="3.12 3.13" chooses
	PYTEST_ADDOPTS="$(WORKERS)" $(RUN) python -m tests.pythons $(PYTHONS)

test-gpu: $(if $(GPU_PYTHON),,$(READY))  ## What needs a GPU; GPU_PYTHON=python3 takes one that has SGLang
	$(or $(GPU_PYTHON),$(RUN) python) -m tests.gpu

check: $(READY)  ## Formatting, lint, types
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

format: $(READY)  ## Format and fix what can be fixed
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

coverage: $(READY)  ## Line and branch coverage of the reference
	$(RUN) pytest tests/reference --cov --cov-report=term-missing

bench: $(READY)  ## A short benchmark; AGAINST=DIR fails on a loss beyond noise beside that run
	$(RUN) specvlm bench --profile short --out $(or $(OUT),bench) $(if $(AGAINST),--against $(AGAINST))

bench-kernels: $(READY)  ## Kernel timings (pytest-benchmark)
	$(RUN) pytest benchmarks/kernels --benchmark-only

clean:  ## Remove the environment and everything built
	rm -rf .venv .venvs $(TOOLS) .cache .coverage demo
