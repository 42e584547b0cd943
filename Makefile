# `make demo` and `make test` do everything on a machine with Python, pip and make. Quiet unless something fails.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench docs-tables clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo
	@$(RUN) examples/digits.py

test: $(VENV)/test
	@$(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/test $(VENV)/demo $(VENV)/bench  # types are checked against what examples and benchmarks import
	@$(RUN) -m ruff format --check --quiet . || (echo "formatting differs: run $(RUN) -m ruff format ."; exit 1)
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m pyright --warnings

bench: $(VENV)/bench
	@$(RUN) benchmarks/step_time.py

docs-tables: $(VENV)/test  # a test fails while a page is out of date
	@$(RUN) docs/algorithms.py
	@$(RUN) -m docs.conformance

clean:
	rm -rf $(VENV)

# torch goes in before whatever depends on it, so that pip never looks for another build.
$(VENV)/torch: constraints.txt
	@$(PYTHON) -m venv $(VENV)
	@echo "installing torch and gradtx into $(VENV) (once)"
	@$(PIP) torch setuptools
	@touch $@

$(VENV)/%: $(VENV)/torch pyproject.toml
	@$(PIP) --no-build-isolation -e ".[$*]"
	@touch $@
