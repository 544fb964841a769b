# `make` lists the targets. Every target that needs Python packages prepares .venv itself, from the
# lock, once: the stamp file says for which lock it was prepared.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
IMAGE  ?= holdfast:dev
OVERLAYS := k8s/exchange $(sort $(wildcard k8s/overlays/*))
PYTEST_ARGS ?=
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install lock proto format lint types check browser test sim integration bench run soak \
        image manifests clean

help: ## List the targets.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | \
	    awk -F ':.*## ' '{ printf "  %-12s %s\n", $$1, $$2 }'

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    "Holdfast needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || { echo "Preparing $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the locked packages (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
	    --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
	    --no-deps --no-build-isolation -e .
	@touch $@

install: $(STAMP) ## Prepare .venv from the lock; a second call does nothing.

LOCK := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

lock: export CUSTOM_COMPILE_COMMAND = make lock
lock: $(STAMP) ## Resolve pyproject.toml into the two lock files; add LOCK_ARGS=--upgrade to move on.
	@test -x $(BIN)/pip-compile || $(BIN)/python -m pip install --quiet pip-tools
	$(LOCK) $(LOCK_ARGS) --extra dev --output-file requirements.txt pyproject.toml
	@cp requirements.txt requirements-runtime.txt
	$(LOCK) --output-file requirements-runtime.txt pyproject.toml

proto: $(STAMP) ## Generate exchange/v1 from protos/.
	$(BIN)/python -m exchange.generate

format: $(STAMP) ## Rewrite the sources in the one format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## Check format and rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## Check the types, strictly.
	$(BIN)/mypy

check: lint types ## Lint, types, import contracts, generated code: what to run before a commit.
	$(BIN)/pytest tests/test_architecture.py tests/test_contracts.py $(PYTEST_ARGS)

browser: ## Install Debian's Chromium, which the tests of the page drive; needs root.
	@command -v chromium >/dev/null || { apt-get -qq update && \
	    apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } || \
	    echo "No Chromium could be installed: the tests of the page will be passed over."

test: $(if $(CI),browser) lint types ## Everything that must hold: lint, types, contracts and all tests.
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

sim: $(STAMP) ## Only the tests against the plain twins and the simulated mesh.
	$(BIN)/pytest $(wildcard tests/simulation tests/property) $(PYTEST_ARGS)

integration: $(STAMP) ## Only the tests with real processes.
	$(BIN)/pytest tests/integration $(PYTEST_ARGS)

bench: $(STAMP) ## Measure this machine and print the figures.
	$(BIN)/python -m bench

run: $(STAMP) ## Start the exchange on this machine: two pairs, books, risk, page, generated flow.
	$(BIN)/holdfast run

SECONDS ?= 600
soak: $(STAMP) ## Run the exchange for SECONDS, kill everything in it again and again, prove the books.
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

image: ## Build the container image (needs docker).
	docker build --tag $(IMAGE) .

manifests: ## Print the Kubernetes objects of the exchange and every pair (needs kubectl).
	@for overlay in $(OVERLAYS); do echo "---"; kubectl kustomize $$overlay; done

clean: ## Remove caches and build output; .venv stays.
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf
