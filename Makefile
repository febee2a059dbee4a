# The commands of the project. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
UV := $(or $(shell command -v uv),.uv/bin/uv)
EXTRAS := serve train load dev
ENV := $(VENV)/.synced

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

env: $(ENV)  ## create .venv from the lock (uv is fetched when missing)

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet uv

$(ENV): requirements/dev.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(PY) --require-hashes requirements/dev.txt
	@touch $@

lock: | $(UV)  ## renew requirements/*.txt from the ranges in pyproject.toml
	@for extra in $(EXTRAS); do \
	  $(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-annotate --python-version 3.11 \
	    --extra $$extra pyproject.toml -o requirements/$$extra.txt || exit 1; done

.PHONY: help env lock
