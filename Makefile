# Two commands: `make reproduce`, `make test`. Each target does its own set-up, in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
SCALE ?= smoke
SLURM_TESTS ?= all
ROUNDS ?= 1
CORES ?= $(shell nproc)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# A killed run leaves no lock behind: the kernel drops this one with the last process that holds it.
ONE_RUN = mkdir -p results && flock --verbose results/.lock
SNAKEMAKE = $(ONE_RUN) snakemake --cores $(CORES) --nolock --rerun-incomplete --keep-going --config scale=$(SCALE)

.PHONY: reproduce test test-slurm figures tune report keep lint schema clean help

reproduce: .venv/ready ## run every experiment at SCALE (default smoke), judge every claim, write the report
	kinji forget-failures --scale $(SCALE)
	$(SNAKEMAKE) || { [ $$? = 1 ]; kinji give-up --scale $(SCALE); $(SNAKEMAKE); }
	kinji claims --scale $(SCALE)
	@echo "Report: results/$(SCALE)/report.pdf and results/$(SCALE)/report.html"
	@if grep -l '"error": {' results/$(SCALE)/*/*.json; then echo "These cases failed; run again to retry them." >&2; exit 1; fi

test: .venv/ready ## run the tests, one a core: their BLAS and OpenMP must not want every core
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 pytest -n $(CORES) --dist worksteal

test-slurm: .venv/ready ## run the tests on a real Slurm (Debian: munge slurmctld slurmd slurm-client); SLURM_TESTS=ci, a few; ROUNDS=10
	for round in $$(seq $(ROUNDS)); do \
	  KINJI_SLURM=$(SLURM_TESTS) pytest tests/slurm -rs -n 4 --dist worksteal $(if $(filter ci,$(SLURM_TESTS)),-m slurm_ci); \
	done

figures: .venv/ready ## redraw every figure from the records that exist, or from the committed ones; no experiment
	@for script in figures/*.py; do kinji figure "$$(basename "$$script" .py)" --scale $(SCALE); done

tune: .venv/ready ## search the hyperparameters of the table (outside smoke's ten minutes)
	$(SNAKEMAKE) tune
	python -m kinji.experiments.resnet50_tune results/$(SCALE)/resnet50_tune/*.json

report: .venv/ready ## bundle results, figures and provenance into one page by Snakemake
	snakemake --cores 1 --nolock --config scale=$(SCALE) --report results/$(SCALE)/snakemake-report.html

keep: .venv/ready ## copy this run's records to paper/measured and redraw the README's picture from them, to be committed
	kinji keep --scale $(SCALE)
	kinji claims --scale $(SCALE) --picture paper/claims.png > /dev/null

lint: .venv/ready ## check style, types and rules
	ruff check
	ruff format --check
	mypy
	snakefmt --check Snakefile workflows
	snakemake --lint

schema: .venv/ready ## regenerate config/schema.json from the case classes
	python -m kinji.workflow.config

clean: ## remove results, figures and logs of own runs; measurements in paper/measured stay
	rm -rf results logs .snakemake figures/smoke figures/workstation figures/paper

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /make \1\t/' | expand -t 18

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "kinji needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V): make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	pip install --disable-pip-version-check --progress-bar off --quiet -r requirements.lock
	pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	touch $@
