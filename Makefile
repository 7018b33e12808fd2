PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
ARGS ?=

.PHONY: venv search test lint test-slow test-faults test-cluster soak bench
venv: $(READY)

# Installed again only when what is to be installed has changed.
$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about 9 GB and 5 minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

search: $(READY)
	@echo "Searching the embedded data set: 9 to 15 minutes on 2 cores."
	$(BIN)/python -m dcml_tune.search emoji --space wide --nb-epochs 4 --force-full-embedding-epoch 3 --num-samples 12 \
		--scheduler asha-epochs --confirm 0 --ablate 2 --controls published --final-seeds 3 $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Each fault that a long search meets, with the real parts.
test-faults: $(READY)
	$(BIN)/python -m pytest tests/faults -m "fault or fast"

# Clusters whose nodes differ, come late, lack something, or die. Some need rights to make mount namespaces.
test-cluster: $(READY)
	$(BIN)/python -m pytest tests/cluster -m "cluster or fast"

soak: $(READY)
	$(BIN)/python benchmarks/soak.py $(ARGS)

# About an hour on 2 cores. benchmarks/gpu.py needs a GPU and cluster PostgreSQL; division, objective, pruning and search train for
# hours; samplers reads the table of objective.
bench: $(READY)
	for part in losses images clustering evaluation epoch start overhead tracking memory scaling night; do \
		$(BIN)/python benchmarks/$$part.py || exit 1; \
	done
