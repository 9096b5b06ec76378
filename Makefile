# `make` lists the targets. PYTHON chooses the interpreter the environment is made with,
# VENV where it lies: make install PYTHON=python3.12 VENV=/path/to/venv
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2
DEMO_ARGS ?=
export DETECTRON2_DATASETS ?= $(CURDIR)/datasets

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint doctor clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## make .venv and install everything into it at the tested versions

$(STAMP): $(wildcard requirements/*.txt) setup.py tools/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "$(PYTHON) is not there or is older than Python 3.10;" \
	       "name another one: make install PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) tools/install.py --venv $(VENV)
	@touch $@

demo: install ## train, evaluate and show a small panoptic model (some minutes on a CPU)
	@$(RUN) tools/run_demo.py $(DEMO_ARGS)

test: install ## run the tests (PYTEST_ARGS="-k matcher" for some of them)
	@$(RUN) -m pytest $(PYTEST_ARGS)

lint: install ## check style and types: ruff, mypy
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

doctor: ## say what is installed, what is missing and what mends it
	@if [ -x $(RUN) ]; then $(RUN) tools/doctor.py; else $(PYTHON) tools/doctor.py; fi

clean: ## remove what the demo wrote, caches and build leftovers
	rm -rf output/shapes_demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find mask_former tools demo tests -name __pycache__ -prune -exec rm -rf {} +
	rm -rf datasets/__pycache__

distclean: clean ## the same, and remove the environment
	rm -rf $(VENV)
