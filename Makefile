# The commands of the project. Each sets up what it needs first, in a virtual environment in .venv:
# once, and again only when pyproject.toml, constraints.txt or .ci/install.py change.
#   make run                          write build/site/index.html, then execute all lessons
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
EXTRAS := lab,slides,bundled,openai,server,ray,dev
# Two files of tests run side by side, in the order that tests/conftest.py gives them. On a machine
# with more cores and 3 GB of memory for each, WORKERS="-n 4 --dist loadfile" is quicker; WORKERS= runs
# them one by one.
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
NOTEBOOK ?=
RUN_ARGS := $(if $(NOTEBOOK),--only $(NOTEBOOK)) $(if $(MODEL),-p MODEL $(MODEL)) $(if $(DATA),-p DATA $(DATA))

# Threads that wait for work sleep instead of spinning: on a machine that does something else too,
# spinning made a small model several times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: run lab site slides test-yourself wheelhouse measures test check notebooks screenshots bench \
	lowest audit format clean
.DEFAULT_GOAL := run

run: $(VENV)/.lessons
	@$(BIN)/python notebooks/build.py $(RUN_ARGS)

site: $(VENV)/.lessons
	$(BIN)/python notebooks/build.py --kept

slides: $(VENV)/.slides
	$(BIN)/python notebooks/build.py --slides

test-yourself: $(VENV)/.lessons
	$(BIN)/python notebooks/build.py --test-yourself

wheelhouse:
	@rm -rf build/wheelhouse
	@$(PYTHON) .ci/install.py slides --wheels build/wheelhouse
	@echo 'Take this folder along, and on the other machine: PIP_NO_INDEX=1 PIP_FIND_LINKS=build/wheelhouse make lab'

measures: $(VENV)/.lessons
	$(BIN)/python notebooks/measures.py $(if $(RUN),--run)

notebooks: $(VENV)/.lessons
	$(BIN)/python notebooks/build.py --in-place $(RUN_ARGS)

screenshots: $(VENV)/.tests
	CI=1 SCREENSHOTS=notebooks/images $(BIN)/python -m pytest tests/browser/test_lessons_in_lab.py

lab: $(VENV)/.lessons
	$(BIN)/jupyter lab notebooks

test: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(WORKERS)

check: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/bench.py $(PARTS) $(if $(DEVICE),--device $(DEVICE)) $(if $(TEXTS),--texts $(TEXTS))

# uv finds the versions. The oldest transformers opens no image processor without torchvision.
lowest: $(VENV)/.tests
	$(BIN)/uv venv --clear --python $(BIN)/python build/lowest
	$(BIN)/uv pip install --python build/lowest --resolution lowest-direct -e ".[$(EXTRAS)]" "torchvision>=0.21"
	build/lowest/bin/python -m pytest -m "not slow" -W ignore

# geoindex-rs, which jupyter-scatter needs, names no licence in its metadata.
audit: $(VENV)/.tests
	$(BIN)/python -m pip install -q --disable-pip-version-check pip-audit pip-licenses
	-$(BIN)/pip-audit --skip-editable $(shell sed -n 's/^\([^\#][^ ]*\) .*/--ignore-vuln \1/p' .ci/vulnerabilities.txt)
	$(BIN)/pip-licenses --partial-match --order=license --ignore-packages embedkit-lessons geoindex-rs \
		--allow-only="$$(sed -n 's/^\([^\#]*[^\# ]\) *\#.*/\1/p' .ci/licences.txt | paste -sd ';')"

format: $(VENV)/.tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

# The marks of what is installed: for the lessons, the slides, the tests, the benchmarks.
$(VENV)/.%: pyproject.toml constraints.txt .ci/install.py
	@$(PYTHON) .ci/install.py $*
