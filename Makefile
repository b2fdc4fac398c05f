# Everything a contributor runs. `make demo` and `make test` need nothing but Linux and Python >= 3.11.
PYTHON ?= python3
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/yolojob
# The environment belongs to this checkout. uv links its files from a cache that all checkouts share: a second one costs
# seconds and no disk.
ENV ?= $(CURDIR)/.venv
RUN := $(ENV)/bin
LOCK := requirements/dev.txt
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' $(LOCK))
UV := $(CACHE)/uv-$(UV_VERSION)/bin/uv
# Processes that run tests: those of tests/unit compute, those of tests/cluster mostly wait for the API server.
WORKERS ?= 2
CLUSTER_WORKERS ?= 4
PYTEST := $(RUN)/python -m pytest
QUICK := not processes and not torch
PARALLEL := --dist loadfile --numprocesses
VERSION = $(shell $(PYTHON) tools/version.py)
export PATH := $(RUN):$(PATH)
export VIRTUAL_ENV := $(ENV)
export YOLO_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help env env-operator any-env demo test quick lint format unit cluster e2e gpu gpu-on-cpu chaos bench coverage generate check-generated lock \
  images chart wheel sbom clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t18

# uv comes from PyPI like everything else, with the hashes of the lock file.
$(UV):
	$(PYTHON) -m venv --clear $(CACHE)/uv-$(UV_VERSION)
	sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) | sed '/#/d; $$s/ *\\$$//' > $(CACHE)/uv-$(UV_VERSION)/lock.txt
	$(CACHE)/uv-$(UV_VERSION)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --requirement $(CACHE)/uv-$(UV_VERSION)/lock.txt

# $(1): lock file. A different lock file, or a changed one, brings the environment up to date. $(2): lock file of a smaller
# environment that will do as well.
define install
@test -e $(RUN)/python || $(UV) venv --quiet --python $(PYTHON) $(ENV)
@key() { echo "$$1 $$(cat $$1 pyproject.toml | sha256sum | cut -c1-16)"; }; \
key="$$(key $(1))"; installed="$$(cat $(ENV)/.installed 2>/dev/null)"; \
test "$$installed" = "$$key" $(if $(2),|| test "$$installed" = "$$(key $(2))") || { \
  echo "Installing $(1) into $(ENV)"; \
  $(UV) pip sync --quiet --require-hashes $(1) \
  && $(UV) pip install --quiet --no-deps --no-build-isolation --editable . \
  && echo "$$key" > $(ENV)/.installed; }
endef

env: $(UV)  ## create the environment of this checkout in .venv (torch is large; once per machine)
	$(call install,$(LOCK))

env-operator: $(UV)  ## the same without torch: for operator, command line, chart and docs
	$(call install,requirements/dev-operator.txt)

# What needs no torch takes the environment that is there.
any-env: $(UV)
	$(call install,$(LOCK),requirements/dev-operator.txt)

demo: env  ## train an example here, with two worker processes and no cluster; TASK=segment (pose, obb, classify…)
	$(RUN)/yolojob run manifests/examples/digits$(addprefix -,$(filter-out detect,$(TASK))).yaml

test: lint unit cluster  ## linters, unit tests, and the operator against a real API server

quick: any-env  ## the pure tests: no process, no network, no torch, seconds
	$(PYTEST) tests/unit -m "$(QUICK)" $(PARALLEL) $(WORKERS) -q

lint: env  ## ruff, mypy, import-linter, deptry, bandit
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/deptry yolojob operator/yolojob_operator trainer/yolojob_trainer
	$(RUN)/bandit --quiet --recursive --severity-level medium --configfile pyproject.toml yolojob operator trainer

format: any-env  ## let ruff rewrite what it can
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

unit: env  ## pure functions, models, command line, trainer with real processes
	$(PYTEST) tests/unit $(PARALLEL) $(WORKERS) $(PYTEST_OPTIONS)

cluster: any-env  ## the operator against a real API server; kwok simulates the pods
	$(PYTEST) tests/cluster $(PARALLEL) $(CLUSTER_WORKERS) $(PYTEST_OPTIONS)

e2e: env  ## images, pods and training on a real cluster: KUBECONFIG, or the test cluster
	$(PYTEST) tests/e2e $(PYTEST_OPTIONS)

gpu: env  ## checks of the trainer on this machine's GPU: tests/gpu/README.md
	tests/gpu/run.sh $(GPU_OPTIONS)

gpu-on-cpu: env  ## the same without a GPU and with everything tiny, to test the checks
	tests/gpu/run.sh --cpu --seconds 1800 --out $(or $(TMPDIR),/tmp)/yolojob-gpu-on-cpu $(GPU_OPTIONS)

chaos: env  ## random faults over many small jobs on the test cluster; an hour, not part of CI
	$(PYTEST) tests/e2e/chaos.py -s $(PYTEST_OPTIONS)

bench: env  ## speed, accuracy and overhead against stock Ultralytics; ratios within one run
	$(PYTEST) tests/bench -s

coverage: env  ## print what the last measured test runs covered, and compare with the floor
	$(RUN)/python -m coverage combine --quiet --append 2>/dev/null || true
	$(RUN)/python -m coverage report --skip-covered --skip-empty --sort=cover

generate: any-env  ## write CRD, install.yaml, dashboards and reference, from the models, the chart and the code
	PYTHONPATH=tests $(RUN)/python tools/generate.py

check-generated: any-env  ## fail when `make generate` would change a file
	PYTHONPATH=tests $(RUN)/python tools/generate.py --check

LOCK_COMMAND := pip compile -q --universal --python-version 3.11 --generate-hashes --no-header $(if $(UPGRADE),--upgrade)
lock: $(UV)  ## resolve the lock files again; UPGRADE=1 takes the newest versions
	$(UV) $(LOCK_COMMAND) --extra dev pyproject.toml -o $(LOCK)
	for extra in operator torch trainer dev-operator; do \
	  $(UV) $(LOCK_COMMAND) --extra $$extra -c $(LOCK) pyproject.toml -o requirements/$$extra.txt || exit 1; done

images:  ## build both images with docker, tagged with the version
	docker build --target operator --tag yolojob/operator:$(VERSION) .
	docker build --target trainer --tag yolojob/trainer:$(VERSION) .

chart:  ## package the chart into dist/
	helm package helm/yolojob --destination dist

wheel: any-env  ## build the wheel into dist/
	$(UV) build --quiet --wheel --no-build-isolation --out-dir dist .

sbom: any-env  ## write a CycloneDX SBOM of each image's Python packages into dist/
	mkdir -p dist
	for image in operator trainer; do \
	  $(RUN)/cyclonedx-py requirements requirements/$$image.txt --output-file dist/$$image.cdx.json || exit 1; done

clean:  ## remove the environment of this checkout
	rm -rf $(ENV)
