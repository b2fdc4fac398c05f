# Everything a contributor runs. `make demo` and `make test` need nothing but Linux and Python >= 3.11.
PYTHON ?= python3
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/yolojob
LOCK := requirements/dev.txt
# One environment per lock file and interpreter, outside the work tree: torch alone is 6 GB.
KEY := $(shell cat $(LOCK) | sha256sum | cut -c1-12)-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ENV ?= $(CACHE)/env-$(KEY)
RUN := $(ENV)/bin
export PATH := $(RUN):$(PATH)
export YOLO_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help env demo test lint format unit cluster e2e bench generate lock images clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t14

$(ENV)/.installed:
	@echo "Installing into $(ENV) (once; torch is large)"
	$(PYTHON) -m venv --clear $(ENV)
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $(LOCK)
	@touch $@

# The project itself, linked: cheap, so done whenever this checkout is not the one that is linked.
env: $(ENV)/.installed  ## create the environment
	@test "$$(cat $(ENV)/.checkout 2>/dev/null)" = "$(CURDIR)" || { \
	  $(RUN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . \
	  && echo "$(CURDIR)" > $(ENV)/.checkout; }

demo: env  ## train the example detector here, with two worker processes and no cluster
	$(RUN)/yolojob run manifests/examples/digits.yaml

test: lint unit cluster  ## linters, unit tests, and the operator against a real API server

lint: env  ## ruff, mypy, import-linter, bandit
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/bandit --quiet --recursive --severity-level medium --configfile pyproject.toml yolojob operator trainer

format: env  ## let ruff rewrite what it can
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

unit: env  ## pure functions, models, command line, trainer with real processes
	$(RUN)/pytest tests/unit

cluster: env  ## the operator against a real API server; pods are played by kwok
	$(RUN)/pytest tests/cluster

e2e: env  ## images, pods and training on a real cluster: KUBECONFIG, or the test cluster
	$(RUN)/pytest tests/e2e

bench: env  ## speed, accuracy and overhead against stock Ultralytics; ratios within one run
	$(RUN)/pytest tests/bench -s

generate: env  ## write CRD, install.yaml, dashboards and reference, from the models, the chart and the code
	PYTHONPATH=tests $(RUN)/python tools/generate.py

lock: env  ## resolve the lock files anew
	$(RUN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --upgrade --extra dev pyproject.toml -o $(LOCK)
	for extra in operator torch trainer; do \
	  $(RUN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --extra $$extra -c $(LOCK) pyproject.toml -o requirements/$$extra.txt || exit 1; done

clean:  ## forget the environment
	rm -rf $(ENV)
