.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help install book report pdf sweep test test-fast notebooks lint lock train clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## make .venv with the pinned packages (done by the others when needed)

# --no-compile: most of what is installed is never imported, and what is imported is compiled then
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python is %d.%d, 3.11 or newer is needed." % sys.version_info[:2])'
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements.lock
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# the rules are in workflow/Snakefile
SNAKEMAKE = $(RUN)/snakemake --snakefile workflow/Snakefile --workflow-profile workflow/profiles/local

# what was given, to the letter: the Snakefile reads it from the environment
override MODEL := $(value MODEL)
override DATASET := $(value DATASET)
override CHAPTERS := $(value CHAPTERS)
override PROFILE := $(value PROFILE)
override AGAINST := $(value AGAINST)
export MODEL DATASET CHAPTERS PROFILE AGAINST

book: install  ## run notebooks and render _build/html; MODEL="a b@tag", DATASET=/photos, CHAPTERS="01 05", PROFILE=imagenette
	$(SNAKEMAKE)
	@echo "the book is in _build/html/index.html"

report: override AGAINST := $(or $(AGAINST),tabletop-conv)
report: override PROFILE := $(or $(PROFILE),$(if $(filter full,$(SIZE)),tabletop-full))
report: book  ## a checkpoint against another, with the report card in front: MODEL=a@tag AGAINST=b@tag, SIZE=full

pdf: book  ## print the book to _build/pdf/book.pdf (needs Chromium)
	$(RUN)/python -m zsr_utils.book --pdf

sweep: install  ## run the grid CONFIG (default workflow/sweep.yaml), then write its tables and its book
	@$(RUN)/python workflow/grid.py $(or $(CONFIG),workflow/sweep.yaml) > /dev/null
	$(SNAKEMAKE) --configfile $(or $(CONFIG),workflow/sweep.yaml)

test: install lint  ## everything: the book on an empty cache, its pages and its notebooks, the rest (CI runs this)
	rm -rf _build/cache
	ZSR_CACHE=$(CURDIR)/_build/cache $(RUN)/python -m pytest tests/book/test_book.py
	ZSR_CACHE=$(CURDIR)/_build/cache ZSR_BOOK_BUILT=1 $(RUN)/python -m pytest -n 2 tests/book/test_browser.py tests/notebooks
	$(RUN)/python -m pytest -n 2 --doctest-modules zsr_utils tabletop tests/unit tests/embedded tests/workflow

test-fast: install  ## unit tests and doctests, no trained model
	$(RUN)/python -m pytest -q -n 2 -m "not slow" --doctest-modules zsr_utils tabletop tests/unit

notebooks: install  ## compare every notebook's checked numbers with the committed ones (nbval)
	$(RUN)/python -m pytest -n 2 tests/notebooks

lint: install  ## ruff, over code and notebooks
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

lock:  ## pin every package anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate \
	  --all-extras --upgrade pyproject.toml --output-file requirements.lock

train: install  ## train the default embedded model (resumes; hours on a laptop, minutes on a GPU)
	$(RUN)/python -m tabletop.train

clean:  ## remove the book and its static files, keep results
	rm -rf _build book/_generated book/_static/plotly.min.js book/_static/mathjax
