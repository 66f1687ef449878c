.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lock gallery

RUN := .venv/bin/python
# One torch thread in each test process: otherwise the processes fight for the cores.
TEST_PROCESSES ?= 2
ARGS ?=

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## bring FFCV's libraries (as root), uv and .venv; every target below does this first
	@scripts/setup.sh

demo: setup  ## train a small ViT with GAB on handwritten digits, evaluate it, draw its figures
	@$(RUN) scripts/demo.py $(ARGS)

test: setup  ## run the tests, without the slow ones; ARGS="-m ''" runs all
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder $(ARGS)

lint: setup  ## check format, lint and types
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

gallery: setup  ## train small networks, and make the figures of docs/gallery.md anew
	@$(RUN) scripts/gallery.py

lock: setup  ## write requirements.lock anew from pyproject.toml; ARGS=--upgrade for newer versions
	@$(RUN) -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest \
		--no-emit-index-url --no-annotate --custom-compile-command 'make lock' --quiet --output-file requirements.lock $(ARGS)
