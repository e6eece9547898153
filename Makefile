# Two commands a stranger needs: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
# On a terminal pip says what it does; in a pipe the three lines below are enough. What it deprecates is no stranger's affair.
PIP    := PYTHONWARNINGS=ignore $(PY) -m pip install --disable-pip-version-check $(shell [ -t 2 ] || echo --quiet)

.PHONY: help setup demo demo-short test sim scale mutants soak chaos sigstop lint format typecheck clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv and install everything that requirements.lock pins

# One install from the full lock without re-resolving: the lock replaces fastecdsa 2.3.2, which libp2p pins and which
# needs GMP headers to build, by 4.0.0, which has wheels. The second line adds nothing to a CPU build of torch and
# pulls the CUDA libraries that a CUDA build needs.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "setting up $(VENV), once: about 120 packages, 1.7 GB on disk, one to three minutes"
	@$(PYTHON) -m venv $(VENV)
	@echo "  1/3  torch, hivemind and the others that requirements.lock pins ..."
	@$(PIP) --no-deps -r requirements.lock
	@echo "  2/3  what a CUDA build of torch needs besides, if it is one ..."
	@$(PIP) -c requirements.lock torch==2.13.0
	@echo "  3/3  barnraise itself ..."
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(STAMP)
	@echo "ready. Next: make demo, or $(VENV)/bin/barnraise --help"

demo: $(STAMP) ## raise a local swarm of real processes on real text and show it
	$(VENV)/bin/barnraise demo

demo-short: $(STAMP) ## the same in about a minute, for CI
	$(VENV)/bin/barnraise demo --short

# hivemind and libp2p cannot live in one process, so neither can their tests.
test: $(STAMP) ## the full test suite
	$(PY) -m pytest
	$(PY) -m pytest --libp2p

MINUTES ?= 60
soak: $(STAMP) ## six peers under random faults for MINUTES=60, and whether everything held
	$(PY) -m tests.system.soak --minutes $(MINUTES) $(SOAK)

SEEDS ?= 10000
sim: $(STAMP) ## SEEDS=10000 random schedules of faults against the round protocol
	$(PY) -m tests.sim.run --seeds $(SEEDS) $(SIM)

mutants: $(STAMP) ## whether the simulator finds every bug that is put into the protocol on purpose
	$(PY) -m tests.sim.mutants $(SIM)

# More of it: make chaos CHAOS="--only leader --json chaos.json --repeat 3"
chaos: $(STAMP) ## kill, freeze and cut off real peers at every step of a round
	$(PY) -m tests.system.chaos $(CHAOS)

sigstop: $(STAMP) ## how long three peers wait for a fourth that froze in mid-exchange
	$(PY) -m tests.system.sigstop $(SIGSTOP)

# More of it: make scale SCALE="--peers 10 100 --rounds 5 --kinds --json scale.json"
scale: $(STAMP) ## what a round costs 10, 100 and 1,000 simulated peers under churn
	$(PY) -m tests.sim.scale $(SCALE)

lint: $(STAMP) ## ruff (lint and format) and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP) ## let ruff rewrite the sources
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
