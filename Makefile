# make train   set up, prepare the starter pairs, train, evaluate, draw
# make test    set up, run the tests
# Both install what they need into .venv once.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: help install train test lint clean

help:
	@sed -n 's/^# //p' Makefile

install: .venv/installed

.venv/installed: requirements.txt requirements-text.txt requirements-dev.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=python3.12 train')"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check $(addprefix -r ,$^)
	@touch $@

train: .venv/installed
	$(RUN) train.py
	$(RUN) evaluate.py --model runs/starter/model.bin
	$(RUN) visualize_tsne.py --model runs/starter/model.bin --out runs/starter/tsne_map.png

test: .venv/installed
	$(RUN) -m pytest

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv runs stores data/starter/*.store
