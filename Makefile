# `make` lists the targets. PYTHON chooses the interpreter the environment is made with,
# VENV its folder: make install PYTHON=python3.12 VENV=/path/to/venv
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist worksteal
DEMO_ARGS ?=
APP_ARGS ?=
export DETECTRON2_DATASETS ?= $(CURDIR)/datasets

RUN := $(VENV)/bin/python
CORE := $(addprefix tests/,losses layers ops inference modeling test_registries.py test_floors.py)
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo app docs test test-core test-isa lint doctor clean distclean coverage matrix release soak

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## make .venv and install everything into it at the tested versions

$(STAMP): $(wildcard requirements/*.txt) setup.py tools/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "$(PYTHON) was not found or is older than Python 3.10;" \
	       "name another one: make install PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) tools/install.py --venv $(VENV)
	@touch $@

demo: install ## segment a photo, then train and show a small panoptic model (some minutes on a CPU)
	@$(RUN) tools/run_demo.py $(DEMO_ARGS)

app: install ## start the web page for trying out models (APP_ARGS="--weights model_final.pth --port 8000")
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements/app.txt
	@$(RUN) demo/app.py $(APP_ARGS)

docs: install ## build the documentation into site/ (a static site; no warnings)
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements/docs.txt
	@$(RUN) -W ignore -m sphinx -q -W --keep-going -b html -c docs -d build/doctrees . site
	@echo "site/index.html"

test: install ## run the tests (PYTEST_ARGS="-k matcher" for some of them)
	@$(RUN) -m pytest $(PYTEST_ARGS)

test-core: install ## run the fast tests of the research core (one to two minutes)
	@$(RUN) -m pytest $(PYTEST_ARGS) -m "not slow and not subprocess" $(CORE)

test-isa: install ## run the numeric tests with other processors' kernels (ISA_ARGS="--only noise")
	@$(RUN) tools/check_arithmetic.py $(ISA_ARGS)

coverage: install ## run the tests and list untested lines of mask_former/ (fails below 90 %)
	@$(RUN) -m pytest $(PYTEST_ARGS) --cov --cov-report term-missing:skip-covered --cov-fail-under 90

matrix: ## run the core tests on other Pythons and versions (MATRIX_ARGS="--only py312"; 6 GB each)
	@$(PYTHON) tools/matrix.py $(MATRIX_ARGS)

release: install ## build the wheel and try it in an empty environment (RELEASE_ARGS=--rehearse)
	@$(RUN) tools/release.py $(RELEASE_ARGS)

soak: install ## kill, damage and fill on purpose for half an hour (SOAK_ARGS="--minutes 5 --only fuzz")
	@$(RUN) -W ignore -m tests.robustness.soak $(SOAK_ARGS)

lint: install ## check style and types: ruff, mypy
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

doctor: ## report what is installed, what is missing and the command that fixes it
	@if [ -x $(RUN) ]; then $(RUN) tools/doctor.py; else $(PYTHON) tools/doctor.py; fi

clean: ## remove the output of the demo, caches and build leftovers
	rm -rf output/shapes_demo output/photos_demo build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find mask_former tools demo tests -name __pycache__ -prune -exec rm -rf {} +
	rm -rf datasets/__pycache__

distclean: clean ## like clean, and remove the environment
	rm -rf $(VENV)
