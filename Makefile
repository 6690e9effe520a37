# Everything starts here: each target sets up .venv by itself when it must.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo ensemble test test-slow test-full bench tpu-check \
  lint format clean

# ---- Settings: make ensemble DATA=/data/poses SIZE=64 ----------------------
DATA ?=
export DATA
RUNS ?= runs/ensemble
MODELS ?= miniconvnext tinyvit tinyvit_mae tinyvit_ssl efficientnetv2 \
  convnextv2_small convnextv2_base
# Small machines: VARIANT=short takes one short stage instead of the full
# recipe, SIZE the side of an image in pixels, EPOCHS the length of a recipe.
VARIANT ?=
SIZE ?=
EPOCHS ?=
# Further fields for every train.py: ARGS='--config.data.answers=labels.csv'
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
BUILT := $(VENV)/.built
DEMO := runs/demo

help:
	@echo 'make demo      train small models on digits, stack them (minutes)'
	@echo 'make test      lint and tests; make test-slow runs the long ones,'
	@echo '               make test-full those of every sibling model'
	@echo 'make ensemble DATA=/data/poses   the whole competition, resumable'
	@echo '               SIZE=64 EPOCHS=30 VARIANT=short for small machines'
	@echo 'make bench     beside PyTorch, into docs/performance.md (an hour)'
	@echo 'make tpu-check  all steps compiled for TPUs that are not here, into'
	@echo '               docs/tpu_vm.md and docs/scaling.md (an hour)'
	@echo 'make setup     only make $(VENV);  make clean  remove it'

# ---- Set-up -----------------------------------------------------------------
setup: $(BUILT)

# The first Python on this machine that Sextet is tested with. A name alone
# does not tell: version managers leave names behind that do not run.
$(READY): requirements.txt constraints.txt stacking/requirements.txt
	@python=; for name in python3 python3.12 python3.11; do \
	  if $$name -c 'import sys; sys.exit(sys.version_info[:2] not in \
	    ((3, 11), (3, 12)))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'error: Sextet needs Python 3.11 or 3.12; install one' >&2; \
	  exit 2; \
	fi; \
	echo "setting up $(VENV) with $$($$python --version) (a few minutes)"; \
	if ! $$python -m venv $(VENV); then \
	  echo 'error: Python has no venv module; apt install python3-venv' >&2; \
	  exit 2; \
	fi
	@$(PY) -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -c constraints.txt
	@touch $@
	@echo '$(VENV) is ready'

# C++ for this processor, kept in the user's cache. What does not compile is
# printed, and everything runs without it.
LIBRARIES := jax_models.cpu_kernels.dispatch:CODE \
  input_pipeline.backends.cpp:CODE
CPP := $(wildcard $(foreach folder,jax_models/cpu_kernels \
  input_pipeline/backends,$(folder)/*.cc $(folder)/*.h))

$(BUILT): $(READY) $(CPP) core/native_build.py
	@$(PY) -m core.native_build $(LIBRARIES)
	@touch $@

# Stacks the models in folder $(1) that have logits into $(2), unless that is
# newer than all of them. The report is the last thing that stacking writes.
define stack
if [ -e '$(2)/report.html' ] && [ -z "$$(find $(patsubst \
  %,'$(1)/%',$(MODELS)) -path '*/logits/*' -newer '$(2)/report.html')" ]; then \
  echo 'stacked already: $(2)/report.html (make it again by deleting it)'; \
else \
  $(PY) -m stacking --runs $(patsubst %,'$(1)/%',$(MODELS)) --out '$(2)'; \
fi
endef

# ---- The demo: digits, small models, one stacked answer ----------------------
demo: $(BUILT)
	@for model in $(MODELS); do \
	  echo "== $$model"; \
	  $(PY) train.py --config=configs/$$model.py:demo \
	    --workdir=$(DEMO)/$$model || exit $$?; \
	done
	@$(call stack,$(DEMO),$(DEMO))

# ---- The real thing: stop it and start it again as you like ------------------
ensemble: $(BUILT)
	@if [ -z "$$DATA" ]; then \
	  echo 'error: say where the photos are: make ensemble DATA=FOLDER' >&2; \
	  exit 2; \
	fi
	@for model in $(MODELS); do \
	  echo "== $$model"; \
	  $(PY) train.py --config=configs/$$model.py$(if $(VARIANT),:$(VARIANT)) \
	    --workdir=$(RUNS)/$$model --config.data.root="$$DATA" \
	    $(if $(SIZE),--config.image_size=$(SIZE)) \
	    $(if $(EPOCHS),--config.epochs=$(EPOCHS)) $(ARGS) || exit $$?; \
	done
	@$(call stack,$(RUNS),$(RUNS)/stack)

# ---- Checks -----------------------------------------------------------------
lint: $(READY)
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet . || \
	  { echo 'error: run make format' >&2; exit 1; }
	@imports=$$($(VENV)/bin/lint-imports --no-cache --no-logo) || \
	  { echo "$$imports" >&2; exit 1; }

format: $(READY)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# A file's tests share fixtures, so they stay together. Four processes at most:
# each holds a JAX of its own, 3 GB in the end.
PYTEST := $(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test: lint $(BUILT)
	@$(PYTEST) -m 'not slow and not full'

test-slow: $(BUILT)
	@$(PYTEST) -m slow

# Every model of every size: hours on two cores.
test-full: $(BUILT)
	@$(PY) -m pytest -q -m full

# ---- Beside PyTorch: tables into docs/performance.md -------------------------
# BENCHES are scripts of benchmarks/, each the owner of one section there. They
# need both sides in one environment; BENCH_PY names one that you have already.
BENCHES ?= train_step inference segmentation_step kernels step_growth startup \
  input_operations input_pipeline input_growth \
  starvation $(if $(shell command -v nvidia-smi),accelerator)
BENCH_VENV := .venv-bench
BENCH_PY ?= $(BENCH_VENV)/bin/python

bench: $(if $(filter $(BENCH_VENV)/%,$(BENCH_PY)),$(BENCH_VENV)/.ready)
	@for bench in $(BENCHES); do \
	  echo "== $$bench"; \
	  $(BENCH_PY) benchmarks/$$bench.py --write || exit $$?; \
	done

$(BENCH_VENV)/.ready: $(READY) requirements-torch.txt
	@echo 'setting up $(BENCH_VENV), with PyTorch (a few minutes)'
	@$(PY) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet \
	  --disable-pip-version-check -r requirements.txt \
	  -r requirements-torch.txt -c constraints.txt
	@touch $@

# ---- Compiled for TPUs that are not here --------------------------------------
# Needs libtpu, 200 MB: the script says which. Or: TPU_PY=python of another venv.
TPU_PY ?= $(PY)

tpu-check: $(READY)
	@$(TPU_PY) benchmarks/tpu_check.py --write

clean:
	rm -rf $(VENV) $(BENCH_VENV)
