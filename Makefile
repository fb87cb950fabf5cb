# Set-up, demo, tests and releases on a machine that has python3 and make.
#
#   make demo                                                         offline, on a generated catalogue
#   make demo DATASET=ml-100k DATA_DIR=ml-100k.zip PLM=path-or-name   the same on real data
#   make lint test

PYTHON ?= python3
DATASET ?= demo
DATA_DIR ?=
PLM ?=
OUTPUT_DIR ?= runs/$(DATASET)
ARGS ?=
JOBS ?= 2

VENV := .venv
INSTALLED := $(VENV)/.installed
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
.DEFAULT_GOAL := help
.PHONY: help install demo lint test attack docs notebooks remote-envs test-remote test-lowest dist test-wheel

help:
	@echo "make install      create $(VENV) and install flip-ctr with its tests and checks in it"
	@echo "make demo         install, then run the whole pipeline on a generated catalogue, offline"
	@echo "                  DATASET=ml-100k|ml-1m  PLM=path-or-name  [DATA_DIR=folder-or-zip]: the same on real data"
	@echo "                  [OUTPUT_DIR=$(OUTPUT_DIR)]  [ARGS='--seed 1 --num_train_epochs 3']: more options of flip-ctr demo"
	@echo "make lint         formatting, lint, the contracts of the imports, types of the public interface"
	@echo "make test         the tests, in JOBS=$(JOBS) processes; ARGS go to pytest"
	@echo "make attack       broken tables and checkpoints, bad calls, kills, several runs at once, full disks: what became of each"
	@echo "make notebooks    run the notebooks of examples/ whole and keep their outputs [DATA_DIR=ml-100k.zip] [ARGS=name]"
	@echo "make remote-envs  environments that have transformers $(REMOTE_VERSIONS) and not this package, in $(REMOTE);"
	@echo "                  with them 'make test' also loads checkpoints there; 'make test-remote' runs these tests alone"
	@echo "make test-lowest  the core of the tests with the lowest versions that pyproject.toml allows, in $(LOWEST)"
	@echo "make dist         wheel and sdist in dist/, checked"
	@echo "make test-wheel   unit tests and recipes on the installed wheel, outside the checkout"
	@echo "make docs         the pages of docs/ as a site in build/site"
	@echo "PYTHON=python3.12 makes $(VENV) with another Python (3.11 or newer)"

install: $(INSTALLED)

# The stamp is the last step, so that a failed installation leaves none; the old one goes first.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@command -v $(PYTHON) >/dev/null || { echo "make: no command '$(PYTHON)'; install Python 3.11 or newer, or name it: PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $$($(PYTHON) --version 2>&1) is too old; flip-ctr needs 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(VENV)/bin/python && $(VENV)/bin/python -m pip --version >/dev/null 2>&1 || \
	  { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || \
	  { rm -rf $(VENV); echo "make: '$(PYTHON) -m venv' failed; it needs the modules venv and ensurepip (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[test,lint,dist]'
	@touch $@

demo: $(INSTALLED)
	$(VENV)/bin/python -m flip_ctr.train.cli demo --dataset '$(DATASET)' --output_dir '$(OUTPUT_DIR)' --overwrite_output_dir$(if $(DATA_DIR), --data_dir '$(DATA_DIR)')$(if $(PLM), --model_name_or_path '$(PLM)') $(ARGS)

# two processes, each with whole files of tests: fixtures of a file are made once
test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# A part of them runs in the tests. What failed is listed with the command that repeats it alone.
ATTACKS := PYTHONPATH=tests:tests/attacks OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python tests/attacks/attack.py

attack: $(INSTALLED)
	$(ATTACKS) $(ARGS)

# --- checks

# mypy knows a package by its folder's name, and the root folder is the package
TYPING := $(VENV)/typing

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	@mkdir -p $(TYPING) && ln -sfn '$(CURDIR)' $(TYPING)/flip_ctr && ln -sfn '$(CURDIR)/flip_ctr_command' $(TYPING)/
	MYPYPATH=$(TYPING) $(VENV)/bin/mypy

# --- versions

# A checkpoint's code runs where people have transformers and torch alone. The library's versions share one torch (of
# $(REMOTE)/torch): each is a folder of its own on PYTHONPATH.
REMOTE := .venv-remote
REMOTE_VERSIONS ?= 5.2.0 5.17.0 5.24.0
REMOTE_PYTHON := $(REMOTE)/torch/bin/python

remote-envs: $(REMOTE_VERSIONS:%=$(REMOTE)/%/.installed)

$(REMOTE)/torch/.installed: constraints.txt
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	$(REMOTE_PYTHON) $(PIP_INSTALL) -c constraints.txt torch numpy
	@touch $@

$(REMOTE)/%/.installed: $(REMOTE)/torch/.installed
	@rm -rf $(@D)
	$(REMOTE_PYTHON) $(PIP_INSTALL) --target $(@D) transformers==$*
	@touch $@

test-remote: $(INSTALLED) remote-envs
	$(VENV)/bin/python -m pytest -q tests/remote $(ARGS)

# Each floor of pyproject.toml as a version, all installed together; torch stays the one of constraints.txt, as its own
# floor is a build for CUDA of gigabytes. $(LOWEST)/versions.txt lists what was installed.
LOWEST := .venv-lowest
LOWEST_TESTS ?= tests/unit/modeling_flip tests/recipes/test_recipes.py tests/recipes/test_resume.py tests/recipes/test_predict.py tests/recipes/test_lora.py

$(LOWEST)/.installed: pyproject.toml constraints.txt tests/lowest_versions.py
	@rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest_versions.py pyproject.toml constraints.txt > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python $(PIP_INSTALL) -c $(LOWEST)/constraints.txt -e '.[plot,sentencepiece,tensorboard]' pytest
	$(LOWEST)/bin/python -m pip freeze --exclude-editable > $(LOWEST)/versions.txt
	@touch $@

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -q $(LOWEST_TESTS) $(ARGS)

notebooks: $(INSTALLED)
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[notebooks]'
	$(VENV)/bin/python tests/run_notebooks.py $(if $(DATA_DIR),--data_dir '$(DATA_DIR)') $(ARGS)

# --- releases

dist: $(INSTALLED)
	@rm -rf dist build
	$(VENV)/bin/python -m build --outdir dist .
	$(VENV)/bin/twine check --strict dist/*

# The wheel in an environment of its own, over the libraries of $(VENV). The tests run in a folder outside the checkout,
# from which they would else import the package; what is of benchmarks/ and docs/ is not in the wheel.
WHEEL := .venv-wheel
WHEEL_TESTS ?= unit recipes/test_recipes.py

test-wheel: dist
	@rm -rf $(WHEEL) && $(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python $(PIP_INSTALL) --no-deps dist/*.whl
	@$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(WHEEL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; cp -r tests "$$folder"; cd "$$folder/tests"; \
	  '$(CURDIR)/$(WHEEL)/bin/python' -m pytest -q -c /dev/null --rootdir=. -W ignore::DeprecationWarning $(WHEEL_TESTS) $(ARGS)

# --- pages

# the packages of the `docs` extra are of no use to demo and test
docs: $(INSTALLED)
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
