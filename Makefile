# Two commands on a fresh machine with python3 (3.11 or later) and a package index:
#   make demo    install, simulate a star field with its catalogue, solve it, show the result
#   make test    install with the test extras and run the whole suite, offline
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
DEMO ?= demo

BIN := $(VENV)/bin
CORE := $(VENV)/.installed
TEST := $(VENV)/.installed-test
# What the tests that want another program need, as Debian packages.
DEBIAN_PACKAGES := chromium source-extractor scamp astrometry.net postgresql

.PHONY: help install demo test test-all bench lint docs clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make lint    ruff, mypy"
	@echo "make docs    write docs/reference/ anew from the commands, settings and records"
	@echo "make bench   the benchmarks"
	@echo "make test-all  like test, with the Debian packages that some tests want ($(DEBIAN_PACKAGES))"
	@echo "make clean   remove the demo and the caches (not $(VENV))"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11"; echo "try: make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(TEST): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(CORE) $@

install: $(CORE)

demo: $(CORE)
	$(BIN)/cynosure simulate demo --out $(DEMO) --overwrite
	$(BIN)/cynosure refcat build $(DEMO)/reference.parquet --out $(DEMO)/refcat --overwrite
	$(BIN)/cynosure solve $(DEMO)/demo.fits --refcat $(DEMO)/refcat --out $(DEMO)/solved --overwrite

test: $(TEST)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-all: $(TEST)
	@missing=$$(for p in $(DEBIAN_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$sudo apt-get install --yes --no-install-recommends $$missing; \
	fi
	CYNOSURE_TEST_ALL=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

bench: $(TEST)
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(TEST)
	$(BIN)/python docs/reference/generate.py

clean:
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
