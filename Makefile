# make train            set up, prepare the starter pairs, train, evaluate, draw
# make test             set up, run the tests
# make lint             check style and types
# make stsb STSB=DIR    every figure of the README, from DIR/train.csv, dev.csv, test.csv; make -j2 uses two cores
# make clean            remove what was made here, but not model.bin
#
# All of them install what they need into .venv once.

PYTHON ?= python3
RUN := .venv/bin/python
STSB ?= data/stsb

.PHONY: help train test lint stsb clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

.venv/installed: requirements.txt requirements-text.txt requirements-dev.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or later is needed: make PYTHON=python3.12 ...' if sys.version_info < (3, 11) else 0)"
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

# The study of the README: two kinds of token embeddings, two recipes, three seeds. A run that is done is not repeated.
STSB_RUNS := $(foreach tokens,stsb stsb-word,$(foreach recipe,published default,$(foreach seed,0 1 2,\
	runs/$(tokens)/$(recipe)-$(seed)/metrics.json)))

stsb: $(STSB_RUNS)
	$(RUN) summarise.py runs/stsb runs/stsb-word --out results/stsb.md
	cp runs/stsb/default-0/training.png results/training.png
	$(RUN) visualize_tsne.py --data stores/stsb/test.store --out results/tsne_map.png

stores/stsb/test.store: | .venv/installed
	$(RUN) prepare_data.py $(STSB)/train.csv $(STSB)/dev.csv $(STSB)/test.csv --out stores/stsb

stores/stsb-word/test.store: | .venv/installed
	$(RUN) prepare_data.py $(STSB)/train.csv $(STSB)/dev.csv $(STSB)/test.csv --out stores/stsb-word --layers=word,-1

# runs/TOKENS/RECIPE-SEED/metrics.json
.SECONDEXPANSION:
runs/stsb%/metrics.json: | $$(dir stores/stsb$$*)test.store
	$(RUN) train.py --preset $(word 1,$(subst -, ,$(notdir $*))) --seed $(word 2,$(subst -, ,$(notdir $*))) \
		--data $(dir stores/stsb$*)train.store --validation $(dir stores/stsb$*)dev.store \
		--test $(dir stores/stsb$*)test.store --run_dir $(@D) --out $(@D)/model.bin

clean:
	rm -rf .venv runs stores data/starter/*.store
