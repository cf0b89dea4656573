# The whole course needs Python 3.11 or newer and make; everything else goes into .venv.
# Another interpreter: make course PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The user's own pip settings hold: the project names no index and no host.
# On a terminal pip shows its progress; in a log only what goes wrong.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install $(if $(MAKE_TERMOUT),,--quiet)

# A .venv that was moved here, cut off half-way or lost its interpreter is made again.
VENV_WORKS := $(shell [ "$$(cat $(VENV)/here 2>/dev/null)" = "$(CURDIR)" ] && \
	$(BIN)/python -c 'import pip' 2>/dev/null && echo yes)

.DEFAULT_GOAL := help
.PHONY: help course chat test check chain release same lab notebooks student slides claims doctor browser clean FORCE

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

course: $(VENV)/course-installed  ## Set up, check the released chain, execute the notebooks into build/course
	@$(BIN)/llama2 course

chat: $(VENV)/course-installed  ## Talk to the released chat model
	@$(BIN)/llama2 chat

chain: $(VENV)/course-installed  ## Train the whole chain anew, and set its numbers beside the released ones
	@$(BIN)/llama2 chain

release: $(VENV)/course-installed  ## Replace data/release by the chain that this code trains
	@$(BIN)/llama2 release

test: $(VENV)/dev-installed  ## Set up, then every test there is (notebooks and browser included)
	@.ci/parts all

check: $(VENV)/dev-installed  ## Format, lint, types, floors and unit tests: before every commit
	@.ci/parts check

same: $(VENV)/course-installed  ## Prove that the working tree trains what commit REV does, byte for byte
	@$(BIN)/python .ci/same $(or $(REV),$(error make same needs a commit: make same REV=<commit>))

lab: $(VENV)/course-installed  ## Open a working copy of the notebooks in JupyterLab; PROJECTOR=1: large letters
	@$(BIN)/python -m llama2_lib.teaching.lessons lab $(if $(PROJECTOR),--projector)

notebooks: $(VENV)/course-installed  ## Build and execute notebooks/*.ipynb from notebooks/src
	@$(BIN)/python -m llama2_lib.teaching.lessons build

student: $(VENV)/course-installed  ## Write the student copies, with blanks where one builds and for the exercises
	@$(BIN)/python -m llama2_lib.teaching.lessons student

slides: $(VENV)/course-installed build/assets/installed  ## Write the slide decks (npm fetches reveal.js once)
	@$(BIN)/python -m llama2_lib.teaching.lessons slides

build/assets/installed: llama2_lib/teaching/lessons/slides.py
	@command -v npm >/dev/null || { echo "Slide decks need reveal.js and MathJax, which npm fetches" \
		"once. Install Node.js with npm (on Debian: apt install npm) and try again." >&2; exit 2; }
	@npm install --silent --no-audit --no-fund --prefix $(@D) $$($(BIN)/python -c \
		'from llama2_lib.teaching.lessons.slides import PACKAGES; print(PACKAGES)')
	@touch $@

claims: $(VENV)/course-installed  ## Measure the paper's claims and print the ledger
	@$(BIN)/llama2 claims

doctor: $(VENV)/course-installed  ## Check this machine and estimate how long everything takes
	@$(BIN)/llama2 doctor

browser:  ## Install Chromium for the browser tests (Debian and its kin, as root)
	@.ci/browser

clean:  ## Remove .venv, build and caches (finished artifacts stay)
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Stamps: a second call starts at once; a changed requirement installs again.
$(VENV)/dev-installed: $(VENV)/course-installed pyproject.toml constraints.txt
	@echo "Installing what the tests need ..."
	@$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/course-installed: $(VENV)/here pyproject.toml constraints.txt
	@echo "Installing the pinned packages into $(VENV) (first time: a few minutes) ..."
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/here: $(if $(VENV_WORKS),,FORCE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "The course needs Python 3.11 or newer; '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>/dev/null || echo 'not installed')." \
			"Install a newer one, or name it: make PYTHON=python3.12 ..." >&2; exit 2; }
	@rm -rf $(VENV)
	@echo "Creating $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || { \
		echo "Python could not create a virtual environment (on Debian: apt install python3-venv)." >&2; \
		rm -rf $(VENV); exit 2; }
	@printf '%s' "$(CURDIR)" > $@
