PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST_ARGS ?= -m "not slow"

.PHONY: demo test lint format clean

demo: $(READY)            ## set up, then all five experiments on the embedded default model
	$(BIN)/loramix run demo

test: $(READY)            ## set up, then the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)            ## formatting, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) results

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
