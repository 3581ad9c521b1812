# make demo and make test need Python >= 3.10 and nothing else: each makes the virtual environment first, once.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= demo

# Two processes share a machine in the demo and in the tests: one thread each, so that they do not fight for its cores.
export OMP_NUM_THREADS ?= 1
# Memory that a step frees is kept for the next one; giving it back each time costs a CPU run a tenth of its speed.
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
export MALLOC_MMAP_MAX_ ?= 0

# Many tests wait for what they started, so that three at a time keep two cores busy.
TESTS_AT_A_TIME ?= 3

# Of Debian's packages, for the tests that need them and are run by root.
apt_install = { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >/dev/null; }

.PHONY: help install install-slurm demo test test-faults test-slurm lint clean

help:
	@echo "make demo     photographs -> shards -> a training on two processes -> one test; about 4 minutes on 2 cores"
	@echo "make test     the tests, but for those of the two lines below; about 8 minutes on 2 cores"
	@echo "make test-faults  runs that are killed, stopped and starved at random moments; about 17 minutes on 2 cores; FAULT_ROUNDS=100 for more"
	@echo "make test-slurm  slurm/*.sh on a real Slurm of three nodes on this machine, and launch/elastic.sh; needs root and Debian; about 10 minutes on 2 cores"
	@echo "make lint     ruff, mypy and shellcheck"
	@echo "make install  the virtual environment alone ($(VENV)); one to three minutes and 6 GB, once"

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@echo "== installing into $(VENV): pinned versions, one to three minutes and 6 GB, once, in silence"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,tensorboard,test]'
	@touch $@

demo: $(INSTALLED)
	@echo "== the demo, in $(DEMO)/: about 4 minutes on 2 cores; delete $(DEMO)/run to train again"
	$(BIN)/python -m shards demo --out $(DEMO)
	$(BIN)/python -m shards build --dataset demo --root $(DEMO) --out $(DEMO)/shards --patches 12 --size 128
	$(BIN)/accelerate launch --config_file launch/cpu.yaml -m dist_train train configs/demo.yaml \
		data.shards=$(DEMO)/shards run.folder=$(DEMO)/run

test: $(INSTALLED)
	@echo "== the tests, but for make test-faults and make test-slurm: about 8 minutes on 2 cores"
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_A_TIME) --dist worksteal --durations 40

test-faults: $(INSTALLED)
	@echo "== faults at random moments: FAULT_ROUNDS (20) kills in a row, every other fault in proportion; FAULT_SEED repeats them"
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && $(call apt_install,libfaketime); } || \
		echo "SKIPPED: clocks that jump; Debian's package libfaketime is not here, and was not installed, which takes root and apt-get"
	$(BIN)/python -m pytest tests/faults --numprocesses 2 --dist worksteal -rs

test-slurm: $(INSTALLED)
	@echo "== jobs on a real Slurm, and hosts without one, started and ended on this machine: about 10 minutes on 2 cores"
	@[ "$$(id -u)" = 0 ] || { echo "make test-slurm needs root, to make machines out of namespaces"; exit 1; }
	@$(MAKE) --no-print-directory install-slurm
	$(BIN)/python -m pytest tests/slurm --numprocesses $(TESTS_AT_A_TIME) --dist loadfile --durations 15

install-slurm:
	@missing=; for tool in slurmctld munged ip; do command -v $$tool >/dev/null || missing=yes; done; [ -z "$$missing" ] || $(call apt_install,slurm-wlm munge iproute2)

lint: $(INSTALLED)
	@echo "== ruff, mypy, shellcheck: under a minute"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck slurm/*.sh launch/*.sh tests/slurm/mini-slurm .ci/run

clean:
	rm -rf $(VENV) demo
