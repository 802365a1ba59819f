# The two commands a newcomer needs: make run, make test. Each does its own set-up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test demo bench crash faults fuzz soak deb lock lint clean

setup: .venv/.installed

.venv/.installed: deploy/requirements.lock pyproject.toml deploy/debian-packages
	@sh deploy/install-debian run
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --require-hashes -r deploy/requirements.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.installed deploy/requirements-dev.lock
	$(BIN)/python -m pip install -q --require-hashes -r deploy/requirements-dev.lock
	@touch $@

run: setup
	@mkdir -p -m 700 var && mkdir -p var/ged/macon-dupont
	$(BIN)/welyb-relay serve

test: .venv/.dev
	@sh deploy/install-debian test
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: setup
	$(BIN)/welyb-relay demo

crash: .venv/.dev
	@sh deploy/install-debian test
	CRASH_ROUNDS=200 $(BIN)/python -m pytest tests/crash

faults: .venv/.dev
	@sh deploy/install-debian test
	FAULTS=long $(BIN)/python -m pytest -o timeout=0 tests/faults

fuzz: .venv/.dev
	@sh deploy/install-debian test
	FUZZ_EXAMPLES=5000 $(BIN)/python -m pytest -o timeout=0 tests/fuzz

soak: .venv/.dev
	@sh deploy/install-debian test
	$(BIN)/python -m tests.soak

bench: .venv/.dev
	@sh deploy/install-debian bench
	$(BIN)/python -m tests.bench

deb: .venv/.dev
	@sh deploy/install-debian run
	PYTHON=$(BIN)/python sh deploy/debian/build dist

# Hashes, and no index address: the lock works with whatever registry the machine is set up for.
COMPILE := $(BIN)/pip-compile -q --generate-hashes --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate
lock: .venv/.dev
	$(COMPILE) --extra build -o deploy/requirements.lock pyproject.toml
	$(COMPILE) --extra dev -c deploy/requirements.lock -o deploy/requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv var *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
