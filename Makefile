# One door for everything. `make demo` installs what is needed, trains the demonstration's arms and names the report.
# PYTHON chooses the interpreter (3.11 to 3.13), VENV the environment's folder, ARGS adds overrides: make demo ARGS='run.total_steps=512'.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
GAMES_INSTALLED := $(VENV)/.games-installed

.PHONY: setup demo reproduce-small test test-fast test-portable cluster-test gpu-check check bench docs chaos clean

setup: $(INSTALLED)

# torch first: everything else then meets the version it was tested with. Everything is compiled at the end: pip would
# do it on one core, and every process our own files again where PYTHONDONTWRITEBYTECODE is set. A template in a package may be no Python.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "PYTHON must be 3.11 to 3.13, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 2 $(VENV)/lib lamorel_ext experiments launchers || true
	touch $@

# Two processes, each with every second run, take less time than one launch with two servers:
# 46 instead of 51 CPU seconds for one seed and 512 steps of the demonstration's arms.
define compare_in_halves
	$(BIN)/python -m experiments.compare --config-name $(1) --part 1/2 $(ARGS) & first=$$!; \
	$(BIN)/python -m experiments.compare --config-name $(1) --part 2/2 $(ARGS); second=$$?; \
	wait $$first && exit $$second
	$(BIN)/python -m experiments.compare --config-name $(1) $(ARGS)
endef

demo reproduce-small: export OMP_NUM_THREADS = 1
demo: setup
	$(call compare_in_halves,demo)

reproduce-small: setup
	$(call compare_in_halves,reproduce_small)

# Two processes, each with whole files of tests: fixtures of a file are made once. ARGS='-n 0' runs them in one. The files keep the order of
# tests/conftest.py; xdist would hand out those with most tests first.
test: setup $(GAMES_INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Where TextWorld cannot be had its tests are skipped, and say so.
$(GAMES_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[textworld]' || echo 'without textworld: its tests are skipped'
	touch $@

# What neither starts processes nor builds models: while you work.
test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m fast $(ARGS)

# The numeric tests with the kernels of other processors: a test that hangs on one processor's rounding fails here. Five minutes on one core.
test-portable: setup
	for kernels in MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2; do \
		echo "$$kernels"; \
		env $$kernels OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/training tests/llm tests/updaters $(ARGS) || exit 1; \
	done

# A Slurm of two nodes and two machines with a network between them, on this host, in namespaces that end with the command. Needs root and
# `apt-get install slurm-wlm munge iproute2`; says so and passes where they are missing. Some of it: ARGS='-k requeue'.
cluster-test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.cluster $(ARGS)

# What only a GPU can show; says "not run here" where there is none.
gpu-check: setup
	$(BIN)/python -m tests.gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy lamorel_ext experiments launchers

bench: setup
	$(BIN)/python -m experiments.bench $(ARGS)

# The site, in docs/_build/index.html; a warning is an error.
docs: $(DOCS_INSTALLED)
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build
	@echo "site: docs/_build/index.html"

$(DOCS_INSTALLED): $(INSTALLED) setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

# A fault takes 20 seconds of a core or more: 200 take over an hour on two free ones, longer on a busy machine, where
# ARGS='--slow 2' doubles the limits. Fewer with ARGS='--faults 20'.
chaos: setup
	$(BIN)/python -m tests.chaos $(ARGS)

clean:
	rm -rf $(VENV) build dist docs/_build docs/_generated *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
