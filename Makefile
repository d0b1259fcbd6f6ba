# Every target works on a fresh machine with Python and pip: the virtual
# environment is made on first use and brought up to date when the pins change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test unit lint format reference models bench fuzz chaos clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,dev]'
	touch $@

install: $(STAMP) ## make .venv with everything in it

demo: $(STAMP) ## the whole path for real: embedded Redis, worker, submit, results
	$(BIN)/python -m examples.demo

lint: $(STAMP) ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(STAMP) ## make the tables of docs/reference.md from the code
	$(BIN)/python -m docs.reference --write

models: $(STAMP) ## make docs/models.md: which families of models run, and what holds for each
	$(BIN)/python -m tests.families

# Two processes: one often waits for leases and workers while the other computes.
# A file's tests stay together, for the fixtures that they share. Both processes must
# find the same tests in the same order, also where parameters come from a set.
PYTEST := PYTHONHASHSEED=0 $(BIN)/python -m pytest --numprocesses $(or $(PROCESSES),2) --dist loadfile --no-loadscope-reorder

unit: $(STAMP) ## the fast tests only: no service, under a minute
	$(PYTEST) tests/unit

test: lint ## lint, then every test with its own real Redis and Postgres
	$(PYTEST) --cov --cov-report=term --durations=30
	@# Tests must leave no trace: on CI a changed or new file is a failure.
	@test -z "$$CI" || test -z "$$(git status --porcelain)" || { git status --short; exit 1; }

# Seconds for each target; the first exception that is no refusal ends it.
FUZZ_SECONDS ?= 60
fuzz: $(STAMP) ## many examples of every property, and the coverage-guided fuzzer over every parser, FUZZ_SECONDS each
	$(PYTEST) tests/unit -m hypothesis --hypothesis-profile many
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.fuzz $(FUZZ_SECONDS)

bench: $(STAMP) ## the queue benchmark: prompts/s beside one Celery task per prompt
	$(BIN)/python -m benchmarks.queue

chaos: $(STAMP) ## break everything at random moments, RUNS=100 of each fault, JOBS=4 at once; MISSING=1 goes on; writes docs/reliability.md
	$(BIN)/python -m tests.chaos --runs $(or $(RUNS),100) --seed $(or $(SEED),0) --jobs $(or $(JOBS),4) $(if $(MISSING),--missing)

clean: ## remove what make made
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .coverage
