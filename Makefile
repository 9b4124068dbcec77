# `make` lists the targets. Nothing is needed but Python, make and the network.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo
STUDY := runs/digits-study
# A process for each core, and one thread in each: the tests' arrays are small, and two BLAS libraries that each take
# every core slow each other down.
# Tests start hundreds of processes: each would compile every module again where Python keeps nothing of it.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --dist worksteal

# The newest NumPy for Python 3.10 has other types than the code is written for: there is nothing of ours to mend there.
TYPES = @if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then echo $(BIN)/mypy; $(BIN)/mypy; \
	else echo "mypy is left out: NumPy for Python 3.10 has older types; take 3.11 or later"; fi

.DEFAULT_GOAL := help
.PHONY: help demo study test test-slow test-cov notebooks docs packages lock setup format lint clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.demo-ready ## Adapt the shipped model to the digits, by LoRA and by a linear probe, and compare them
	@rm -rf $(DEMO)
	$(BIN)/mlx-peft train quickstart --out $(DEMO)/lora
	$(BIN)/mlx-peft train quickstart method.name=linear --out $(DEMO)/linear
	$(BIN)/mlx-peft report $(DEMO)

study: $(VENV)/.demo-ready ## A small study of the digits: learning rates chosen, three seeds, its report; a stopped one goes on
	$(BIN)/mlx-peft sweep digits-study --out $(STUDY) --jobs 2
	$(BIN)/mlx-peft report $(STUDY) --out $(STUDY)/report

test: $(VENV)/.dev-ready ## The tests, but for the slow ones
	$(PYTEST)

test-slow: $(VENV)/.dev-ready ## The slow tests
	$(PYTEST) -m slow

test-cov: $(VENV)/.dev-ready ## The tests, with the lines they do not reach
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-report=html

notebooks: $(VENV)/.dev-ready ## The notebooks, from top to bottom
	$(BIN)/python -m pytest -m 'slow or not slow' tests/notebooks

docs: $(VENV)/.docs-ready ## The site, in build/site; a broken link is an error
	$(BIN)/python -m mkdocs build --strict --site-dir build/site

packages: $(VENV)/.dev-ready ## The sdist and the wheel, built and tried in clean environments of each Python that is there
	$(BIN)/python -m pytest -m 'slow or not slow' tests/packages

lock: $(VENV)/.dev-ready ## uv.lock again, of pyproject.toml; `uv sync --all-extras` installs what it says
	$(BIN)/uv lock

setup: $(VENV)/.dev-ready ## A virtual environment with everything, and the hooks for git
	$(BIN)/pre-commit install

format: $(VENV)/.dev-ready ## Put the code in its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.dev-ready ## Everything that can be checked without running the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TYPES)
	$(BIN)/lint-imports

clean: ## Remove the virtual environment, caches and build outputs; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .coverage htmlcov build dist

# Stamps: installing again only where pyproject.toml changed. pip, because it finds wheels that lie at hand, and all at
# once, because torch and torchvision must match.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14) and "Python 3.10 to 3.13 is needed, this is %s: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-ready: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.docs-ready: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(VENV)/.dev-ready: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.demo-ready $(VENV)/.docs-ready
