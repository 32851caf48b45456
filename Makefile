# Needs python3 (3.11 or newer), make and a package index; everything else is set up here, in this folder.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .tools/bin/uv
TOOLS_READY := .tools/ready-$(UV_VERSION)
READY := .venv/ready
IN_VENV := . .venv/bin/activate &&
COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || command -v docker-compose)

.PHONY: help setup demo demo-stop run check test chaos soak image-test fuzz audit sbom clean

help:  ## show these targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '%-18s %s\n' "$$target" "$$text"; done

setup: $(READY)  ## make .venv with the command .venv/bin/tandem

demo: $(READY)  ## a real Label Studio and Tandem, and an annotator at work: watch the suggestions get better
	@.venv/bin/tandem demo

demo-stop: $(READY)  ## stop the two servers that the demo left running
	@.venv/bin/tandem demo --stop

run: $(READY)  ## start Tandem: web and worker (settings come from the environment, see README)
	@.venv/bin/tandem serve

check: $(READY)  ## lint, format, types, layers, Dockerfile and compose file
	$(IN_VENV) ruff check
	$(IN_VENV) ruff format --check
	$(IN_VENV) mypy
	$(IN_VENV) lint-imports
	$(IN_VENV) hadolint Dockerfile
	$(IN_VENV) yamllint --strict docker-compose.yml docker-compose.gpu.yml deploy
	$(if $(COMPOSE),for files in "" "-f docker-compose.yml -f docker-compose.gpu.yml"; do \
		$(COMPOSE) $$files --profile monitoring --profile storage config --quiet || exit 1; done,\
		@echo "no docker compose here: what it makes of docker-compose.yml is not checked")

PROCESSES ?= 2
test: $(READY)  ## every test that this machine can run, in two processes; the first run also installs a Label Studio
	$(IN_VENV) pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

KILLS ?= 300
chaos: $(READY)  ## kill, fill, cut and lose everything for half an hour: nothing acknowledged is lost (KILLS=300 SEED=7 FINETUNE=1)
	$(IN_VENV) pytest tests/chaos -s --chaos-kills $(KILLS) $(if $(SEED),--chaos-seed $(SEED)) \
		$(if $(FINETUNE),--chaos-finetune)

SOAK_S ?= 600
soak: $(READY)  ## three web processes and three workers on one PostgreSQL for ten minutes (SOAK_S=600)
	$(IN_VENV) pytest tests/integration/test_soak.py -s --soak-s $(SOAK_S)

image-test: $(READY)  ## build the image, start docker-compose.yml with it and run the end-to-end tests against that
	@scripts/image-test

fuzz: $(READY)  ## a coverage-guided fuzzer on label configs, request bodies and images, five minutes each
	$(IN_VENV) pytest tests/fuzz --fuzz-seconds 300 --timeout 900

audit: $(READY)  ## known vulnerabilities of what is installed, from public databases
	$(UV) export --quiet --frozen --no-emit-project --all-extras --output-file .tools/audited.txt
	$(UV) tool run pip-audit --requirement .tools/audited.txt --disable-pip --strict

sbom: $(READY)  ## dist/sbom.json: what is installed, as CycloneDX; dist/licences.json: under which licences
	mkdir -p dist
	$(UV) tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml \
		--output-file dist/sbom.json .venv/bin/python
	$(UV) tool run pip-licenses==5.5.5 --python .venv/bin/python --format json --with-urls \
		--output-file dist/licences.json

clean:  ## remove environments and caches; what Tandem and the demo stored stays
	rm -rf .venv .tools .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): $(TOOLS_READY) pyproject.toml uv.lock
	@echo "setting up .venv (the first time this downloads PyTorch: some minutes)"
	@$(UV) sync --frozen --python .tools/bin/python || $(MAKE) --no-print-directory by-pip
	@touch $@

# Where only pip knows the package index, because its configuration names a mirror: the same locked versions. The list
# is whole, and pip may not judge it: it knows nothing of the overrides in pyproject.toml.
.PHONY: by-pip
by-pip:
	@echo "uv cannot get the files that uv.lock names: trying the package index that pip is configured for"
	@$(UV) venv --quiet --clear --offline --python .tools/bin/python .venv
	@$(UV) export --quiet --frozen --offline --no-emit-project --no-hashes --output-file .tools/requirements.txt
	@.tools/bin/python -m pip --python .venv/bin/python install --quiet --no-deps --requirement .tools/requirements.txt
	@.tools/bin/python -m pip --python .venv/bin/python install --quiet --no-deps --editable .

# Debian and Ubuntu ship python3 without ensurepip; there, pip of the system can fill the environment.
$(TOOLS_READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Tandem needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@rm -rf .tools
	@$(PYTHON) -m venv .tools >/dev/null 2>&1 || $(PYTHON) -m venv --without-pip --clear .tools || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@if [ -x .tools/bin/pip ]; then .tools/bin/python -m pip install --quiet "uv==$(UV_VERSION)"; \
		else $(PYTHON) -m pip --python .tools/bin/python install --quiet pip "uv==$(UV_VERSION)"; fi || { \
		echo "could not install uv. Without pip, on Debian and Ubuntu: apt install python3-venv;" \
			"otherwise look at the package index above" >&2; exit 1; }
	@touch $@
