# What can be done here. `make` alone lists it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHROMIUM = $(or $(PROMPTMILL_CHROMIUM),$(shell command -v chromium || command -v chromium-browser))
NO_BROWSER = There is no Chromium here, so the tests of the pages in a browser are skipped: apt-get install chromium.
DEMO_OUT := out/demo
AUDIT := .venv-audit
RUNS ?= 50
MINUTES ?= 480

.PHONY: help demo test test-gpu lint types format bench chaos soak audit model docs clean

help:  ## list what can be done
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# Made again whenever a dependency or a pin changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "promptmill needs Python 3.11 or newer; say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,training,dev]'
	@touch $@

$(AUDIT)/.installed: Makefile
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

demo: $(VENV)/.installed  ## render examples/prompts.txt end to end into out/demo
	@rm -rf $(DEMO_OUT)
	@PROMPTMILL_HOME=$(CURDIR)/out/home $(BIN)/promptmill render examples/prompts.txt \
		--model demo --seed 32 --again --out $(DEMO_OUT)

# What starts workers of its own runs alone, the rest side by side: a process a core, at most 4.
test: $(VENV)/.installed  ## run the whole test suite
	@test -n "$(CHROMIUM)" || echo "$(NO_BROWSER)"
	$(BIN)/python -m pytest --durations=15 tests/acceptance tests/chaos
	$(BIN)/python -m pytest --durations=15 --ignore=tests/acceptance --ignore=tests/chaos \
		-n auto --maxprocesses=4 --dist=loadscope --no-loadscope-reorder
	@test -n "$(CHROMIUM)" || echo "$(NO_BROWSER)"

test-gpu: $(VENV)/.installed  ## what a GPU does, and the reference tests on it; needs a CUDA build of torch in .venv
	PROMPTMILL_TEST_DEVICE=cuda $(BIN)/python -m pytest --durations=15 tests/gpu tests/reference

lint: $(VENV)/.installed  ## ruff, formatting and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed  ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.installed  ## format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## run a benchmark: make bench NAME=commands
	@test -n "$(NAME)" || { echo "say which: make bench NAME=..., one of:"; ls benchmarks/*.py | xargs -n1 basename -s .py; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)

chaos: $(VENV)/.installed  ## let faults happen to real farms: make chaos RUNS=50 JOBS=200; the last line is JSON
	@$(BIN)/python -m tests.chaos --runs $(RUNS) --jobs $(or $(JOBS),200) $(ARGS)

soak: $(VENV)/.installed  ## two workers, faults every minute, memory watched: make soak MINUTES=480 JOBS=20000
	@$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) --jobs $(or $(JOBS),20000) $(ARGS)

audit: $(AUDIT)/.installed  ## ask the advisory databases about every pinned version
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

model: $(VENV)/.installed  ## train the demo model anew into models/demo: up to 2.5 hours on 2 cores, needs npm
	$(BIN)/python -m training $(ARGS)

docs: $(VENV)/.installed  ## write docs/cli.md anew from --help
	$(BIN)/python -m producer.clidoc docs/cli.md

clean:  ## remove the virtual environment and everything rendered here
	rm -rf $(VENV) $(AUDIT) out
