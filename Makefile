# The commands of the project. Each sets up what it needs first: a virtual environment in .venv,
# made once and made again only when pyproject.toml or constraints.txt change.
#   make run                          execute all lessons, write build/site/index.html
#   make run NOTEBOOK=02_sentiment MODEL=distilbert-base-uncased DATA=...   one lesson, your way
#   make lab                          read the lessons in JupyterLab
#   make test | make check            all tests | those that take under two minutes
#   make notebooks                    execute the lessons and keep the outputs in notebooks/
#   make screenshots                  photograph the explorers for README and lessons (needs Chromium)
#   make bench                        speed beside other ways; DEVICE=cuda, TEXTS=file, PARTS="text"
#   make format                       put code and notebooks into shape
#   make clean                        remove what was built, the environment included

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := lab,bundled,openai,server,ray,dev
NOTEBOOK ?=
RUN_ARGS := $(if $(NOTEBOOK),--only $(NOTEBOOK)) $(if $(MODEL),-p MODEL $(MODEL)) $(if $(DATA),-p DATA $(DATA))

# Threads that wait for work sleep instead of spinning: on a machine that does something else too,
# spinning made a small model several times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: run lab test check notebooks screenshots bench format clean
.DEFAULT_GOAL := run

run: $(READY)
	$(BIN)/python notebooks/build.py $(RUN_ARGS)

notebooks: $(READY)
	$(BIN)/python notebooks/build.py --in-place $(RUN_ARGS)

screenshots: $(READY)
	CI=1 SCREENSHOTS=notebooks/images $(BIN)/python -m pytest tests/browser/test_lessons_in_lab.py

lab: $(READY)
	$(BIN)/jupyter lab notebooks

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow"

bench: $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/bench.py $(PARTS) $(if $(DEVICE),--device $(DEVICE)) $(if $(TEXTS),--texts $(TEXTS))

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

# Written last, so that a set-up that was cut off starts again.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $(READY)
