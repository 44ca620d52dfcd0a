# make train            set up, prepare the starter pairs, train, evaluate, draw
# make test             set up, run the tests
# make lint             check style and types
# make judge            check model.py and model.bin as a judge will: Python 3.12, torch 2.3.0 and nothing else
# make trust            kill runs and damage files, KILLS=200 and INPUTS=100000 times: hours
# make model STSB=DIR   model.bin as shipped, and its pictures: half an hour; TEACHERS=FOLDERS takes others as teachers
# make study NAME=sts   results/sts.md: hours, sts without a GPU a day, resumable; sts and compression need STSB=DIR (train.csv,
#                       dev.csv, test.csv), sts also what make small needs, retrieval needs QUESTIONS=FILE
# make general STSB=DIR STS=DIR QUESTIONS=FILE   results/general.md: the shipped model on text of other kinds; STS has
#                       sts2012.csv, sts2013.csv and sts2014.csv
# make small STSB=DIR TEXT=FILES LARGE=DIR   small/ as shipped, the whole encoder without torch: hours, or a quarter of an hour
#                       with DEVICE=cuda; TEXT are files of sentences without labels, LARGE a larger backbone as teacher
#                       (without it the small one teaches)
# make ladder STSB=DIR STS=DIR TEXT=FILES LARGE=DIR   results/small.md: whole encoders of 0 to 6 layers, three seeds
# make bench STSB=DIR   results/speed.md: everything that is said about speed, on an idle machine
# make corpus QUESTIONS=FILE   results/corpus.md: a million sentences encoded and searched, next to what else there is: hours
# make train-retrieval DATASET=FILE   train to find matches; train-tb with TensorBoard; mine for the negatives alone;
#                                     evaluate for the scores of MODEL=FILE on the parts set aside
# make demo             a page in the browser: compare two sentences, rank lines, see the map; installs no torch
# make export           model.bin as a folder for sentence-transformers: exported/
# make clean            remove what was made here, but not model.bin
#
# All of them install what they need into .venv once.

PYTHON ?= python3
RUN := .venv/bin/python
STSB ?= data/stsb
DATASET ?= data/questions.tsv
WORKERS ?= 2

.PHONY: help train test lint check judge trust study model general small ladder bench corpus train-retrieval train-tb evaluate mine demo export clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

INSTALL := .venv/bin/pip install --disable-pip-version-check

.venv/installed: requirements.txt requirements-text.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or later is needed: make PYTHON=python3.12 ...' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv .venv
	$(INSTALL) $(addprefix -r ,$^)
	@touch $@

# What users do not need to train: tests and checks; the page in the browser, in an environment of its own.
.venv/with-tests: requirements-dev.txt requirements-demo.txt | .venv/installed
	$(INSTALL) $(addprefix -r ,$^)
	@touch $@

.venv-demo/installed: requirements-demo.txt requirements-small.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --disable-pip-version-check -r $<
	@touch $@

starter := data/starter

train: .venv/installed
	$(RUN) train.py --data $(starter)/train.tsv --validation $(starter)/dev.tsv --test $(starter)/test.tsv \
		--run_dir runs/starter --out runs/starter/model.bin
	$(RUN) evaluate.py --model runs/starter/model.bin
	$(RUN) visualize_tsne.py --model runs/starter/model.bin --out runs/starter/tsne_map.png

test: .venv/with-tests
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report term

lint: .venv/with-tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

check: .venv/installed
	$(RUN) check_submission.py

# What judges have, in an environment of its own; JUDGE=FOLDER takes one that is there.
JUDGE ?= .judge

judge: $(JUDGE)/bin/python
	$(JUDGE)/bin/python check_submission.py

$(JUDGE)/bin/python:
	@for python in python3.12 $$HOME/.pyenv/versions/3.12*/bin/python; do \
		if $$python -c "" 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "error: no Python 3.12 here, expected python3.12 on PATH or one of pyenv" >&2; exit 2; fi; \
	$$found -m venv $(JUDGE) && \
	$(JUDGE)/bin/pip install --disable-pip-version-check torch==2.3.0 "numpy<2" || { rm -rf $(JUDGE); exit 1; }

# Studies. A run that is done is not repeated.
NAME ?= sts
KINDS := stsb stsb-early stsb-static
SEEDS := 0 1 2
QUESTIONS ?= $(DATASET)
six := runs/6_layers-0/encoder
needs_sts := $(KINDS:%=stores/%/test.store) $(foreach loss,squared cosent,$(SEEDS:%=stores/teacher-$(loss)-%/teacher.json)) \
	$(six)/teacher.json stores/text.txt
needs_compression := stores/stsb-pooled/test.store
needs_retrieval := stores/questions/questions.store

study: $(needs_$(NAME)) | .venv/installed
	$(RUN) study.py studies/$(NAME).yaml

stores/questions/questions.store: | .venv/installed
	mkdir -p $(@D)/text && cp $(QUESTIONS) $(@D)/text/questions.tsv
	$(RUN) prepare_data.py $(@D)/text/questions.tsv --out $(@D)

stores/stsb-pooled/test.store: | .venv/installed
	$(RUN) prepare_data.py $(STSB)/train.csv $(STSB)/dev.csv $(STSB)/test.csv --out $(@D) --pooled

stores/text.txt:
	mkdir -p $(@D) && cat $(TEXT) > $@.new && mv $@.new $@

layers_of_stsb := 2,-1
layers_of_stsb-early := 0,2
layers_of_stsb-static := word

stores/%/test.store: | .venv/installed
	$(RUN) prepare_data.py $(STSB)/train.csv $(STSB)/dev.csv $(STSB)/test.csv --out stores/$* --layers=$(layers_of_$*)

# Of teachers and small encoders: cuda for a GPU.
DEVICE ?= cpu
fine_tune = $(RUN) teacher.py --data $(STSB)/train.csv --validation $(STSB)/dev.csv --device $(DEVICE) --resume --out $(@D)

stores/teacher-squared-%/teacher.json: | .venv/installed
	$(fine_tune) --loss squared --seed $*

stores/teacher-cosent-%/teacher.json: | .venv/installed
	$(fine_tune) --loss cosent --epochs 4 --seed $*

# The model that ships: taught by the whole encoder that ships, which is better on other text and counts twice, and by its own
# backbone fine-tuned.
TEACHERS ?= small small stores/teacher-squared-0

model: stores/stsb/test.store $(patsubst %,%/teacher.json,$(filter stores/%,$(TEACHERS)))
	$(RUN) train.py --data stores/stsb/train.store --validation stores/stsb/dev.store --test stores/stsb/test.store \
		--preset imitation --teacher $(TEACHERS) --run_dir runs/model --out model.bin
	cp runs/model/training.png results/training.png
	$(RUN) visualize_tsne.py --data stores/stsb/test.store --out results/tsne_map.png
	$(RUN) evaluate.py --data stores/stsb/test.store --validation stores/stsb/dev.store --plot results/predictions.png

# The model that ships on text of other kinds.
STS ?= data/sts
years := sts2012 sts2013 sts2014

general: stores/stsb/test.store stores/general/sts2014.store stores/questions/questions.store
	$(RUN) evaluate.py --data stores/stsb/test.store $(years:%=stores/general/%.store) stores/questions/questions.store \
		--meaning --out results/general.md

stores/general/sts2014.store: | .venv/installed
	$(RUN) prepare_data.py $(years:%=$(STS)/%.csv) --out $(@D)

# The whole encoder: six layers taught by fine-tuned backbones, and from them the encoders with fewer layers.
LARGE ?= all-MiniLM-L6-v2
TEXT ?= data/text/*.txt
teachers := stores/large-squared stores/large-cosent stores/teacher-cosent-1
# A run that Ctrl-C stops resumes: make must not delete what it has written.
.PRECIOUS: runs/ladder/6_layers-%/encoder.onnx runs/ladder/3_layers-%/encoder.onnx runs/ladder/2_layers-%/encoder.onnx \
	runs/ladder/1_layer-%/encoder.onnx runs/ladder/static-%/encoder.onnx runs/6_layers-%/encoder/teacher.json \
	runs/first_3_layers-%/encoder/teacher.json runs/first_2_layers-%/encoder/teacher.json

# $(call shrink,NAME) makes runs/ladder/NAME-SEED, the encoder, and runs/NAME-SEED, the run with its weights in float32.
shrink = $(RUN) shrink.py --text $(TEXT) --data $(STSB)/train.csv --validation $(STSB)/dev.csv --test $(STSB)/test.csv \
	--device $(DEVICE) --cache_dir stores --resume --seed $* --run_dir runs/$1-$* --out runs/ladder/$1-$*
with_edits := --variants 3 --pair_variants 12 --pair_text 256 --pair_epochs 3
from_six = $(call shrink,$1) $(with_edits) --relu --text_batch 512 --backbone $(six) --teacher $(six) $(teachers) --train_words
# Two and three layers learn again, in smaller batches and from the six layers alone.
first = $(call from_six,first_$1) --out runs/first_$1-$*/small
again = $(call shrink,$1) $(with_edits) --backbone runs/first_$1-$*/encoder --layers all --train_words --token_weight 0 \
	--teacher $(six) --text_batch 128 --text_epochs 3 --text_learning_rate 6e-4

stores/large-squared/teacher.json: | .venv/installed
	$(fine_tune) --backbone $(LARGE) --bfloat16 --loss squared --epochs 4 --learning_rate 5e-5 --seed 3

stores/large-cosent/teacher.json: | .venv/installed
	$(fine_tune) --backbone $(LARGE) --bfloat16 --loss cosent --epochs 4 --seed 1

runs/ladder/6_layers-%/encoder.onnx runs/6_layers-%/encoder/teacher.json: | $(teachers:%=%/teacher.json)
	$(call shrink,6_layers) $(with_edits) --relu --text_batch 512 --layers all --token_weight 0 --vocabulary 23000 --train_words \
		--teacher $(teachers) --text_epochs 5 --text_learning_rate 6e-4 --pair_learning_rate 5e-5

runs/first_3_layers-%/encoder/teacher.json: | $(six)/teacher.json
	$(call first,3_layers) --layers 0,2,4 --intermediate_size 1344 --text_epochs 6 --text_learning_rate 6e-4

runs/first_2_layers-%/encoder/teacher.json: | $(six)/teacher.json
	$(call first,2_layers) --layers 0,3 --intermediate_size 1472 --text_epochs 4 --text_learning_rate 1e-3

runs/ladder/3_layers-%/encoder.onnx: | runs/first_3_layers-%/encoder/teacher.json
	$(call again,3_layers)

runs/ladder/2_layers-%/encoder.onnx: | runs/first_2_layers-%/encoder/teacher.json
	$(call again,2_layers)

runs/ladder/1_layer-%/encoder.onnx: | $(six)/teacher.json
	$(call from_six,1_layer) --layers 0 --intermediate_size 1344 --text_epochs 4 --text_learning_rate 6e-4

runs/ladder/static-%/encoder.onnx: | $(six)/teacher.json
	$(call shrink,static) --layers none --backbone $(six) --teacher $(six) --text_epochs 5 --text_batch 128 \
		--text_learning_rate 2e-3 --pair_epochs 5 --pair_learning_rate 5e-4

runs/ladder/model.bin_and_its_backbone-0/encoder.onnx: | .venv/installed
	$(RUN) export.py --onnx --out $(@D)

small: runs/ladder/6_layers-0/encoder.onnx
	cp -r $(<D) small.new && rm -rf small && mv small.new small

OTHERS ?= .others
rungs := 6_layers 3_layers 2_layers 1_layer static

ladder: $(foreach rung,$(rungs),$(SEEDS:%=runs/ladder/$(rung)-%/encoder.onnx)) runs/ladder/model.bin_and_its_backbone-0/encoder.onnx $(OTHERS)/bin/python
	$(RUN) benchmarks/ladder.py --stsb $(STSB) --sts $(STS) --others $(OTHERS)/bin/python

# sentence-transformers with its ONNX backend, and model2vec, which need an older transformers.
$(OTHERS)/bin/python:
	$(PYTHON) -m venv $(OTHERS)
	$(OTHERS)/bin/pip install --disable-pip-version-check -r benchmarks/requirements-others.txt || { rm -rf $(OTHERS); exit 1; }

bench: stores/stsb/test.store .venv/with-tests $(JUDGE)/bin/python
	$(INSTALL) -r benchmarks/requirements.txt
	$(RUN) benchmarks/run.py --stsb stores/stsb --judge $(JUDGE)/bin/python --out results/speed.md

corpus: .venv/with-tests
	$(INSTALL) -r benchmarks/requirements.txt
	$(RUN) benchmarks/corpus_speed.py --questions $(QUESTIONS) --ray --out results/corpus.md

MODEL ?= model.bin

KILLS ?= 200
INPUTS ?= 100000

trust: .venv/installed
	$(RUN) benchmarks/trust/kill_and_resume.py --kills $(KILLS)
	$(RUN) benchmarks/trust/fuzz.py --inputs $(INPUTS)

train-retrieval: .venv/installed
	$(RUN) train_retrieval.py --dataset $(DATASET)

train-tb: .venv/with-tests
	$(RUN) train_retrieval.py --dataset $(DATASET) --tensorboard

evaluate: .venv/installed
	$(RUN) train_retrieval.py --dataset $(DATASET) --evaluate $(MODEL)

mine: .venv/installed
	$(RUN) mine_negatives.py --data $(DATASET) --out negatives.tsv

# Where people already work: the browser, sentence-transformers.
EXPORTED ?= exported

demo: .venv-demo/installed
	.venv-demo/bin/python demo.py

results/demo.png: .venv/with-tests
	DEMO_PICTURE=$@ $(RUN) -m pytest tests/commands/test_demo.py -k browser

export: .venv/installed
	$(RUN) export.py --model $(MODEL) --out $(EXPORTED)

clean:
	rm -rf .venv .venv-demo .judge .others runs stores exported data/starter/*.store
