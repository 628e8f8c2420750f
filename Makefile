# Needs make, bash and Python 3.11 to 3.13. Works with GNU Make 3.81 and newer.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ifndef DEVICE
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
endif
ifeq ($(filter cpu gpu,$(DEVICE)),)
$(error DEVICE: must be cpu or gpu; got '$(DEVICE)')
endif
# Asked for the CPU build of torch only where pip finds none by itself.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Passed on to pytest, e.g. make test PYTEST_ARGS='-k ties'.
PYTEST_ARGS ?=
# Tests that start no cluster and no engine.
PARALLEL := $(patsubst %,tests/%,conformance properties reference sanity unit)
# Of these a file's run one after the other, for they wait for processes more than they compute.
# The end-to-end test takes four minutes alone: begun last, it would run beside nothing.
BY_FILE := $(patsubst %,tests/%,end_to_end integration)
# PYTEST_ARGS may choose tests of one part only.
NONE_CHOSEN := [ $$? -eq 5 ]

# The environment's packages come uncompiled; without this each of a run's many processes would
# compile again all that it imports, several times as long as loading it.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
# Other projects' tools, each in its own environment.
PEERS := benchmarks/.peers
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.safemerge-setup
PINS := constraints/$(DEVICE).txt
TORCH := $(shell sed -n 's/^torch==\([^ ;]*\).*/\1/p' $(PINS) 2>/dev/null)

# pip's own lines, thinned out; its errors are shown, its warnings about indexes are not.
PROGRESS := awk '/^Collecting /{if (++n % 25 == 0) {print "  found " n " packages"; fflush()}} \
  /^Installing collected/{print "  unpacking"; fflush()}'

.PHONY: help setup demo test test-all check format test-fast e2e bench bench-merge bench-peers docs report clean distclean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  DEVICE=$(DEVICE) (cpu or gpu)  PYTHON=$(PYTHON)  VENV=$(VENV)"

setup: $(STAMP) ## Create the environment, or bring it up to date

# A stamp of the other device does not count as done.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(DEVICE))
$(STAMP): FORCE
endif

$(STAMP): $(PINS) pyproject.toml
	@if [ -f $(STAMP) ] && [ "$$(cat $(STAMP))" != '$(DEVICE)' ]; then \
	  echo "$(VENV): was set up for $$(cat $(STAMP)), and DEVICE is $(DEVICE)." \
	    "Run 'make distclean' first, or pass DEVICE=$$(cat $(STAMP))." >&2; exit 2; fi
	@if [ ! -x $(BIN)/python ]; then \
	  command -v $(PYTHON) >/dev/null || { \
	    echo "PYTHON: '$(PYTHON)' not found. Install Python 3.11, 3.12 or 3.13, or pass PYTHON=/path/to/python." >&2; exit 2; }; \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo "PYTHON: must be Python 3.11, 3.12 or 3.13; got $$($(PYTHON) --version 2>&1). Pass PYTHON=/path/to/python3.12." >&2; exit 2; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "PYTHON: '$(PYTHON)' lacks the venv module. On Debian and Ubuntu: apt install python3-venv." >&2; exit 2; }; \
	  echo "Creating $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $(VENV); \
	fi
ifeq ($(DEVICE),cpu)
	@$(BIN)/python -c 'from importlib.metadata import version; assert version("torch").split("+")[0] == "$(TORCH)"' 2>/dev/null || \
	if [ "$$(uname -s)" = Linux ]; then \
	  echo "Installing torch $(TORCH), CPU build"; \
	  $(PIP) install --quiet --no-deps --no-compile 'torch==$(TORCH)+cpu' 2>/dev/null || { \
	    echo "  from $(TORCH_CPU_INDEX)"; \
	    $(PIP) install --quiet --no-deps --no-compile --index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH)+cpu'; }; \
	fi
endif
	@echo "Installing the packages of $(PINS): a few minutes when none is cached"
	@set -o pipefail; $(PIP) install --no-deps --no-compile --progress-bar off -r $(PINS) \
	  2> >(grep -v '^WARNING: ' >&2) | $(PROGRESS)
	@echo "Installing safemerge"
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'from safemerge.merge.compiled import prepare; prepare()'
	@echo $(DEVICE) > $(STAMP)
	@echo "Ready: $(BIN)/safemerge, for $(DEVICE)"

demo: setup ## Search merges of tiny models and draw the report
	$(BIN)/safemerge demo

# Tests are more processes than cores: a thread that waits must not spin on one.
test: export OMP_WAIT_POLICY := passive
test: check ## Run the checks, then the tests (tests/README.md)
	$(BIN)/python -m pytest $(PARALLEL) -n 2 $(PYTEST_ARGS) || $(NONE_CHOSEN)
	$(BIN)/python -m pytest $(BY_FILE) -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) || $(NONE_CHOSEN)

test-all: test bench-peers ## And live comparisons with mergekit
	$(BIN)/python -m pytest tests/peers $(PYTEST_ARGS) || $(NONE_CHOSEN)

check: setup ## Lint, format, types, layers and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

format: setup ## Format the code and fix what ruff can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

test-fast: setup ## Run the tests that need no Ray and take seconds
	$(BIN)/python -m pytest $(PARALLEL) $(BY_FILE) -m "not slow and not e2e and not ray" $(PYTEST_ARGS)

e2e: setup ## Run the whole path, from data to report
	$(BIN)/python -m pytest tests/end_to_end $(PYTEST_ARGS)

bench-peers: ## Install mergekit beside, to time against
	$(PYTHON) -m venv $(PEERS)/mergekit
	$(PEERS)/mergekit/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r benchmarks/peers.txt
	$(PEERS)/mergekit/bin/mergekit-yaml --help >/dev/null

bench-merge: setup ## Time merges, against a plain copy and against mergekit
	$(BIN)/python benchmarks/merge_speed.py --mergekit $(PEERS)/mergekit

bench: setup ## Time a candidate: merge, load, answer
	$(BIN)/python benchmarks/candidate_turnaround.py

# The site's tools are no part of the environment until they are asked for.
docs: setup ## Build the documentation into site/, offline; a broken link is an error
	@$(BIN)/python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || \
	  $(PIP) install --quiet --no-deps --no-compile -r constraints/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

report: setup ## Draw the report of results/demo again
	$(BIN)/safemerge report results/demo

clean: ## Remove build products (not results, caches or the environment)
	rm -rf build dist site *.egg-info
	find safemerge tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Remove the environment too
	rm -rf $(VENV)

FORCE:
