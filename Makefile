# `make demo` and `make test` do everything on a machine with Python, pip and make. Quiet unless something fails.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Python compiles what it imports; pip would compile everything, which takes half of the time. Images for containers
# often keep Python from storing the result, and then each process spends seconds to compile torch again.
export PYTHONDONTWRITEBYTECODE :=
# Setuptools warns of every editable installation, and the newest pip repeats it. That pip also warns of each package
# that a second index does not have; errors are still shown.
PIP := PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --quiet --disable-pip-version-check --no-compile -c constraints.txt

CORES := $(shell getconf _NPROCESSORS_ONLN)
# One more than cores: tests that start processes wait for them.
JOBS := $(shell echo $$(($(CORES) + 1)))

.PHONY: demo quick test test-all install lint bench gpu docs versions docs-tables clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo
	@$(RUN) examples/digits.py

test: $(VENV)/test
	@$(RUN) -m pytest -n $(JOBS) --dist worksteal -m "not nightly" $(ARGS)

test-all: $(VENV)/test  # with all cases of tests whose cases multiply
	@$(RUN) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

quick: $(VENV)/test  # no compiler of torch, no processes, no other libraries: a minute and a half on two cores
	@$(RUN) -m pytest -n $(CORES) --dist worksteal -m "not slow and not nightly" gradtx tests $(ARGS)

install: $(VENV)/all

lint: install  # types are checked against what all of it imports
	@$(RUN) -m ruff format --check --quiet . || (echo "formatting differs: run $(RUN) -m ruff format ."; exit 1)
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m pyright --warnings

docs: $(VENV)/docs  # every warning is an error, a dead link too
	@rm -rf docs/_build
	@$(RUN) -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/bench
	@$(RUN) benchmarks/step_time.py

# For a machine with a GPU, where PYTHON often has all packages, and no index is within reach.
gpu:
	@if $(PYTHON) -c "import torch, pytest, xdist, hypothesis, tqdm" 2>/dev/null; \
	then $(PYTHON) benchmarks/gpu.py $(ARGS); \
	else $(MAKE) --no-print-directory $(VENV)/test $(VENV)/bench && $(RUN) benchmarks/gpu.py $(ARGS); fi

versions:  # other versions of Python and torch, each in a new environment; see .ci/versions
	@bash .ci/versions $(ARGS)

docs-tables: $(VENV)/test $(VENV)/docs  # tests fail while the pages are out of date
	@$(RUN) docs/table.py
	@$(RUN) docs/algorithms.py
	@$(RUN) docs/other_names.py
	@$(RUN) docs/stubs.py
	@$(RUN) -m benchmarks.guide.report

clean:
	rm -rf $(VENV) docs/_build docs/reference

# The pip that comes with Python 3.11 takes three times as long as the newest one to choose versions.
# torch goes in before whatever depends on it, so that pip never looks for another build.
$(VENV)/torch: constraints.txt
	@$(PYTHON) -m venv $(VENV)
	@echo "installing torch and gradtx into $(VENV) (once)"
	@$(PIP) --upgrade pip
	@$(PIP) torch setuptools
	@touch $@

# All packages in one go, which takes a fifth less time than one set after another.
$(VENV)/all: $(VENV)/torch pyproject.toml
	@$(PIP) --no-build-isolation -e ".[test,demo,bench,docs]"
	@touch $(VENV)/test $(VENV)/demo $(VENV)/bench $(VENV)/docs $@

$(VENV)/%: $(VENV)/torch pyproject.toml
	@$(PIP) --no-build-isolation -e ".[$*]"
	@touch $@
