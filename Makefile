# make demo    the whole way on the embedded demo world
# make test    the whole suite
# make ablations   the paper's ablations on the demo cache
# make segment extract train DATASET=ma52 CACHE=caches/ma52 PRESET=base WEIGHTS=/data/weights
# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.

PYTHON  ?= python3
DATASET ?= demo
CACHE   ?= build/demo/cache
SEED    ?= 0
RUN     ?= runs/$(DATASET)-seed$(SEED)

ifeq ($(DATASET),demo)
PRESET  ?= demo
HEAD    ?= bmoe_demo
else
PRESET  ?= base
HEAD    ?= bmoe_b768
endif

# WEIGHTS=DIR: folder with the files of presets that are not embedded.
# What users give is quoted: it may hold blanks.
OPTIONS = --dataset "$(DATASET)" --cache "$(CACHE)"
BUILD   = $(OPTIONS) --preset "$(PRESET)" $(if $(WEIGHTS),--weights "$(WEIGHTS)")

VENV  := .venv
BMOE  := $(VENV)/bin/bmoe-cache
READY := $(VENV)/ready

.PHONY: setup demo test check segment extract train ablations demo-weights clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BMOE) demo --out build/demo

test: $(READY)
	$(VENV)/bin/python -m pytest

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest

segment: $(READY) $(if $(filter demo,$(DATASET)),demo-dataset)
	$(BMOE) segment $(BUILD)

extract: $(READY)
	$(BMOE) extract $(BUILD)

train: $(READY)
	$(BMOE) train $(OPTIONS) --head "$(HEAD)" --seed "$(SEED)" --run "$(RUN)"

# Tables 3 and 4 and figures 5 and 6 of the paper, three seeds, and a page about them; finished runs are kept.
RUNS    ?= build/ablations/$(DATASET)-$(HEAD)
ABLATE   = $(OPTIONS) --head "$(HEAD)" --seeds 3 --runs "$(RUNS)"

ablations: $(READY) $(if $(filter demo,$(DATASET)),demo-cache)
	$(BMOE) ablate streams $(ABLATE)
	$(BMOE) ablate experts $(ABLATE)
	$(BMOE) ablate experts $(ABLATE) --no-retrain
	$(BMOE) explain attention "$(RUNS)/full" --out "$(RUNS)/attention.csv"
	$(BMOE) compare "$(RUNS)/full" "$(RUNS)/motion_only" --out "$(RUNS)/compare.png"
	$(BMOE) report "$(RUNS)/full" "$(RUNS)/semantic_only" "$(RUNS)/motion_only" --cache "$(CACHE)" --out "$(RUNS)/report.html"

# The demo world renders itself; every other dataset is imported by its user.
.PHONY: demo-cache demo-dataset
demo-cache: $(READY)
	test -e "$(CACHE)/builds/demo.json" || $(BMOE) demo --out build/demo

demo-dataset: $(READY)
	$(BMOE) demo --out build/demo --world-only
	$(BMOE) dataset import demo --root build/demo/world --cache "$(CACHE)"

demo-weights: $(READY)
	$(VENV)/bin/python -m pipeline.demo.train_weights

clean:
	rm -rf build
