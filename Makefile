# Set-up, demo and tests on a machine that has python3 and make.
#
#   make demo                                                         offline, on a generated catalogue
#   make demo DATASET=ml-100k DATA_DIR=ml-100k.zip PLM=path-or-name   the same on real data
#   make test

PYTHON ?= python3
DATASET ?= demo
DATA_DIR ?=
PLM ?=
OUTPUT_DIR ?= runs/$(DATASET)
ARGS ?=

VENV := .venv
INSTALLED := $(VENV)/.installed
.DEFAULT_GOAL := help
.PHONY: help install demo test docs

help:
	@echo "make install   create $(VENV) and install flip-ctr with its tests in it"
	@echo "make demo      install, then run the whole pipeline on a generated catalogue, offline"
	@echo "               DATASET=ml-100k|ml-1m  PLM=path-or-name  [DATA_DIR=folder-or-zip]: the same on real data"
	@echo "               [OUTPUT_DIR=$(OUTPUT_DIR)]  [ARGS='--seed 1 --num_train_epochs 3']: more options of flip-ctr demo"
	@echo "make test      install, then run the tests; ARGS go to pytest"
	@echo "make docs      install, then build the pages of docs/ as a site in build/site"
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
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED)
	$(VENV)/bin/python -m flip_ctr.train.cli demo --dataset '$(DATASET)' --output_dir '$(OUTPUT_DIR)' --overwrite_output_dir$(if $(DATA_DIR), --data_dir '$(DATA_DIR)')$(if $(PLM), --model_name_or_path '$(PLM)') $(ARGS)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -q $(ARGS)

# the packages of the `docs` extra are of no use to demo and test
docs: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
