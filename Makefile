# make demo   the whole road on the embedded model and texts: runs/demo/report.html
# make test   lint, types and tests (offline once the cache is filled)
#
# Tests run in two processes with one thread each: two that share two cores with two threads each wait for each other.
#
# Both create .venv, install the tested versions of constraints.txt, and fetch the embedded model and benchmark once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check install clean

demo: install
	$(BIN)/brd demo

test: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

install: $(VENV)/.installed
	@$(BIN)/python -m brd.embedded

$(VENV)/.installed: pyproject.toml constraints.txt install-torch.sh
	$(PYTHON) -m venv $(VENV)
	sh install-torch.sh $(BIN)/python constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[corpora,distill,llamacpp,lm-eval,lora,ray,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
