# The commands of the project. Each sets up what it needs first: a virtual environment in .venv,
# made once and made again only when pyproject.toml or constraints.txt change.
#   make run                          execute all lessons, write build/site/index.html
#   make run NOTEBOOK=02_sentiment MODEL=distilbert-base-uncased DATA=...   one lesson, your way
#   make lab                          read the lessons in JupyterLab
#   make test | make check            all tests | those that take under two minutes
#   make site | make slides           pages | reveal.js decks, of the outputs kept in notebooks/
#   make test-yourself                the exercises of all lessons in one notebook, with a score
#   make wheelhouse                   all packages in one folder, for machines without a network
#   make measures                     words, code and terms of each lesson; RUN=1 times them too
#   make notebooks                    execute the lessons and keep the outputs in notebooks/
#   make screenshots                  photograph the explorers for README and lessons (needs Chromium)
#   make bench                        speed beside other ways; DEVICE=cuda, TEXTS=file, PARTS="text"
#   make lowest                       the tests, on the oldest versions that pyproject.toml allows
#   make audit                        known vulnerabilities and licences of all that is installed
#   make format                       put code and notebooks into shape
#   make clean                        remove what was built, the environment included

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := lab,slides,bundled,openai,server,ray,dev
NOTEBOOK ?=
RUN_ARGS := $(if $(NOTEBOOK),--only $(NOTEBOOK)) $(if $(MODEL),-p MODEL $(MODEL)) $(if $(DATA),-p DATA $(DATA))

# Threads that wait for work sleep instead of spinning: on a machine that does something else too,
# spinning made a small model several times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: run lab site slides test-yourself wheelhouse measures test check notebooks screenshots bench \
	lowest audit format clean
.DEFAULT_GOAL := run

run: $(READY)
	$(BIN)/python notebooks/build.py $(RUN_ARGS)

site: $(READY)
	$(BIN)/python notebooks/build.py --kept

slides: $(READY)
	$(BIN)/python notebooks/build.py --slides

test-yourself: $(READY)
	$(BIN)/python notebooks/build.py --test-yourself

# With what builds the project too, so that a folder of its source installs from here as well.
wheelhouse: $(READY)
	rm -rf build/wheelhouse
	$(BIN)/python -m pip wheel --disable-pip-version-check -c constraints.txt -w build/wheelhouse \
		".[$(EXTRAS)]" hatchling editables pip
	@echo 'Take this folder along, and on the other machine: PIP_NO_INDEX=1 PIP_FIND_LINKS=build/wheelhouse make lab'

measures: $(READY)
	$(BIN)/python notebooks/measures.py $(if $(RUN),--run)

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

# uv finds the versions. The oldest transformers opens no image processor without torchvision.
lowest: $(READY)
	$(BIN)/uv venv --clear --python $(BIN)/python build/lowest
	$(BIN)/uv pip install --python build/lowest --resolution lowest-direct -e ".[$(EXTRAS)]" "torchvision>=0.21"
	build/lowest/bin/python -m pytest -m "not slow" -W ignore

# geoindex-rs, which jupyter-scatter needs, names no licence in its metadata.
audit: $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check pip-audit pip-licenses
	-$(BIN)/pip-audit --skip-editable $(shell sed -n 's/^\([^\#][^ ]*\) .*/--ignore-vuln \1/p' .ci/vulnerabilities.txt)
	$(BIN)/pip-licenses --partial-match --order=license --ignore-packages embedkit-lessons geoindex-rs \
		--allow-only="$$(sed -n 's/^\([^\#]*[^\# ]\) *\#.*/\1/p' .ci/licences.txt | paste -sd ';')"

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
