# The commands to know. Each makes or reuses .venv and needs only Python 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# numpy's products here are small: many threads only wait for each other
export OPENBLAS_NUM_THREADS ?= 1

# pip would compile all that it installs, and most of it is never loaded: what is loaded is compiled then, also where the environment says no
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test prep lab site
help:           ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*##/\t/'

$(VENV)/.ready: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "medseg needs Python 3.11; this is %d.%d: say make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -U pip  # the pip that comes with Python 3.11 takes more than twice as long
	-grep -v -e '^#' -e '^pip==' constraints.txt | xargs -P 4 -n 40 $(BIN)/python -m pip install -q --no-compile --no-deps  # torch first; pip takes one core, and waits for what it fetches
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[lab,site,dev,bench,scale]'  # what that has left out
	touch $@

demo: $(VENV)/.ready  ## phantoms -> survey -> three training runs -> masks, table and page, in runs/demo
	medseg demo

# two chapters or two test files at a time, each on one core; experiments are run by the tests, through papermill
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.ready  ## export in sync, every chapter, every test
	-python tests/browser.py
	nbdev_test --n_workers 2 --do_print --skip_folder_re '^([_.]|experiments$$)'
	python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

prep: $(VENV)/.ready  ## before each commit: export, clean, and all that `make test` does
	jupytext --sync medseg/experiments/[!_]*.py
	nbdev_export
	nbdev_clean
	python -m tools.stale --write --workers 2
	$(MAKE) test

lab: $(VENV)/.ready  ## JupyterLab on the book
	medseg lab

site: $(VENV)/.ready  ## the book as a site, in _docs
	python -m tools.site
