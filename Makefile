# The habits of this project by name. `make demo` and `make test` need nothing before them but Python 3.11, make and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --no-deps
# PyTorch's CPU builds have an index of their own; pip warns and goes on where it cannot be reached.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench docs lock ci-tools clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.cpu  ## one night and one day on the example: mine, plan, bake, publish, serve, replay. ARGS="--help" tells more
	@$(BIN)/python -m examples.demo $(ARGS)

test: $(VENV)/.dev ci-tools  ## every test; ARGS are pytest's
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## every benchmark; one alone: .venv/bin/python -m benchmarks NAME
	@$(BIN)/python -m benchmarks all $(ARGS)

docs: $(VENV)/.dev  ## write the generated pages anew: settings, tables, commands
	$(BIN)/python -m docs.generate

# A CI machine gets what tests need from Debian: the browser for pages, promtool for alert rules, wrk and nginx for the
# gateway's benchmark; a person's is left as it is.
ci-tools:
ifdef CI
	@command -v chromium >/dev/null && command -v promtool >/dev/null && command -v wrk >/dev/null && test -x /usr/sbin/nginx || \
	  (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium prometheus wrk nginx) >/dev/null 2>&1 || \
	  echo "no Chromium, promtool, wrk or nginx: the tests that need them will be skipped"
endif

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
CPU := --override requirements/overrides.txt --no-emit-package torch
lock: $(VENV)/.uv  ## lock the requirements anew
	echo uv | $(LOCK) - -o requirements/uv.txt
	$(LOCK) pyproject.toml -o requirements/base.txt
	$(LOCK) pyproject.toml --extra flows --extra cpu $(CPU) -o requirements/cpu.txt
	$(LOCK) pyproject.toml --extra flows --extra cpu --extra ray --extra otel --extra dev $(CPU) -o requirements/dev.txt
	$(LOCK) pyproject.toml --extra flows --extra gpu -o requirements/gpu.txt
	$(LOCK) pyproject.toml --extra flows --extra gpu --extra ray -o requirements/ray.txt

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo build bench-cache *.egg-info

$(VENV)/.uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  (echo "prebake needs Python 3.11 to 3.13, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.11 ..."; exit 1)
	@echo "setting up $(VENV) (once, a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/.torch: $(VENV)/.uv requirements/torch-cpu.txt
	@$(BIN)/python -m pip install --quiet --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) -r requirements/torch-cpu.txt
	@touch $@

$(VENV)/.cpu: $(VENV)/.torch requirements/cpu.txt pyproject.toml
	@$(UV) --require-hashes -r requirements/cpu.txt
	@$(UV) --editable .
	@touch $@

# Compiled once here: the tests start hundreds of processes, and where PYTHONDONTWRITEBYTECODE is set, as containers like
# to, each would compile all it imports.
$(VENV)/.dev: $(VENV)/.torch requirements/dev.txt pyproject.toml
	@$(UV) --compile-bytecode --require-hashes -r requirements/dev.txt
	@$(UV) --editable .
	@touch $@
