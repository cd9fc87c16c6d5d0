# Every target makes what it needs: a virtual environment (unless one is active), the package, the test data.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
ENV := EXTRAS=dev . scripts/environment.sh

.PHONY: help test lint format soak bench

help:
	@echo "make test    lint, then all tests that take no GPU and no more than minutes"
	@echo "make soak    also the long fault tests: kills, deaths, damage, leaks (SOAK=-n4 for other than a process a core)"
	@echo "make bench   ours beside its peers, one benchmark after the other (see docs/performance.md)"
	@echo "make lint    ruff, rules and layout"
	@echo "make format  let ruff lay the code out"

test: lint
	@$(ENV); python -m pytest -m "not slow" -n auto --dist loadfile

# Each result as it comes. What measures memory and pace by the step runs by itself, when the others are done.
SOAK := -n auto
ALONE := tests/scripts/test_soak.py
soak: test
	@$(ENV); status=0; \
	python -m pytest -m slow -vv --durations=0 $(SOAK) --dist worksteal $(addprefix --ignore=,$(ALONE)) || status=$$?; \
	python -m pytest -m slow -vv -s $(ALONE) || status=$$?; exit $$status

lint:
	@$(ENV); ruff check . && ruff format --check .

format:
	@$(ENV); ruff check --fix . && ruff format .

bench:
	@EXTRAS=bench . scripts/environment.sh; for file in benchmarks/bench_*.py; do echo "== $$file"; python $$file; done
