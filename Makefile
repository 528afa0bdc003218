# Each target says what it runs; `make setup` first is never needed, they all do it.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin
# Slow tests are shared out by the clusters that they start (tests/conftest.py): more workers starve them.
WORKERS ?= 2
PARALLEL := -n $(WORKERS)

# On a bare machine the python that is there: PYTHON=python3 make gpu
GPU_PYTHON := $(if $(wildcard $(VENV)/.ready),$(RUN)/python,$(PYTHON))

.PHONY: help setup demo check test drill bench gpu format lock schemas clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(VENV)/.ready ## the pinned Python environment in .venv

$(VENV)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

SPEAKS := $(shell command -v espeak-ng 2>/dev/null)

demo: setup ## real speech to a TWIST model, its scores and report (AUDIO=/path/to/wavs for your own)
	$(RUN)/python recipes/demo_material.py --to material $(if $(AUDIO),--audio '$(AUDIO)')
	$(if $(SPEAKS),$(RUN)/python -m recipes.suite_material --to material/suites,@echo 'no espeak-ng on PATH (apt-get install espeak-ng): no suites, perplexity alone')
	$(RUN)/orchestrator submit recipes/$(if $(AUDIO),twist-demo-own,twist-demo).yaml --cluster cluster_configs/local.yaml $(if $(SPEAKS),,--set 'evaluate.suites=null') --watch

check: setup ## ruff, mypy, unit and golden tests
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/pytest -q $(PARALLEL) tests/unit tests/golden

test: setup ## everything but the drills
	./apt-packages.sh || echo 'WARNING: without these packages the tests that need them are skipped'
	$(MAKE) check
	$(RUN)/pytest --durations=15 $(PARALLEL) tests --ignore=tests/unit --ignore=tests/golden

drill: setup ## the long kills and faults; figures go to benchmarks/drills.md
	./apt-packages.sh
	$(RUN)/pytest tests/slurm tests/slurm/long_faults.py tests/slurm/corpora_runs.py tests/slurm/backends.py
	$(RUN)/pytest tests/slurm/site_runs.py
	$(RUN)/pytest tests/integration/launched_ray.py tests/integration/autoscaling.py
	$(RUN)/pytest tests/slurm/limited_sites.py
	$(RUN)/pytest tests/integration/azure.py tests/integration/pool_nodes.py tests/integration/notices.py tests/integration/hanging_mounts.py tests/integration/moves.py
	$(RUN)/python -m tests.chaos.points
	$(RUN)/python -m tests.chaos.ray_daemons
	$(RUN)/python -m tests.chaos.ray_cluster
	$(RUN)/python -m tests.chaos.hearing
	$(RUN)/python -m tests.chaos.lost_mount
	$(RUN)/python -m tests.chaos.verb
	$(RUN)/python -m tests.chaos.drill

bench: setup ## ratios, interleaved
	$(RUN)/python -m benchmarks.encoding
	$(RUN)/python -m benchmarks.kmeans
	$(RUN)/python -m benchmarks.corpus_scale
	$(RUN)/python -m benchmarks.step_time
	$(RUN)/python -m benchmarks.checkpoint_stall

gpu: ## what this code does on one CUDA device, in 9 minutes, with torch and transformers alone (JSON=file, AUDIO=file.npz)
	status=0; \
	if $(GPU_PYTHON) -c 'import pytest' 2>/dev/null; \
	then timeout 100 $(GPU_PYTHON) -m pytest -q -p no:cacheprovider -W default -m 'not slow' tests/gpu || status=1; \
	else echo 'tests/gpu: skipped: no pytest'; fi; \
	$(GPU_PYTHON) -m benchmarks.gpu $(if $(JSON),--json '$(JSON)') $(if $(AUDIO),--audio '$(AUDIO)') || status=1; \
	exit $$status

format: setup ## rewrite the code in the house format
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

lock: setup ## write the versions of .venv into requirements.lock
	$(RUN)/pip freeze --exclude-editable > requirements.lock

schemas: setup ## write the JSON Schemas that editors complete recipes with
	$(RUN)/python -m orchestrator.spec.schema

clean: ## remove the store and the demo's material
	rm -rf store material
