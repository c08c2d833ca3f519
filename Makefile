SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
PYTHON ?= python3

GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
NUM_RANKS ?= $(if $(filter 0,$(GPUS)),2,$(GPUS))

# ninja and deepspeed are looked up on the PATH by DeepSpeed itself, with or without an activated environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# DeepSpeed builds an operator for the torch that asks first; environments that share the place build it over and over.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
ifeq ($(GPUS),0)
export DS_ACCELERATOR := cpu
# Every rank starts its own OpenMP pool; more threads than cores make two ranks slower than one.
export OMP_NUM_THREADS ?= 1
endif

TRAIN := deepspeed --num_gpus $(NUM_RANKS) launchers/train.py
PYTEST_ARGS ?=

.PHONY: install quickstart quickstart-grpo test test-avx2 test-oldest test-all models lint clean

install: $(STAMP)

# torch goes first: it decides which of the other packages' builds fit.
$(STAMP): setup.py constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q "$$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)" -c constraints.txt
	$(VENV)/bin/python -m pip install -q -e '.[test]' -c constraints.txt
	touch $@

quickstart: install
	$(TRAIN) --config configs/quickstart_base.yaml
	$(TRAIN) --config configs/quickstart.yaml
	python -m dyme.report runs/quickstart

# The same time (DyME needs 4 to 5 minutes) with GRPO alone, and both runs in one report.
quickstart-grpo: install | runs/quickstart/DONE
	$(TRAIN) --config configs/quickstart.yaml method=grpo run.dir=runs/quickstart-grpo run.max_minutes=5
	python -m dyme.report runs/quickstart runs/quickstart-grpo --out runs/report

runs/quickstart/DONE:
	$(MAKE) quickstart

test: install lint
	python -m pytest -m "not slow and not gpu" $(PYTEST_ARGS)

# The same tests with the oldest versions of torch, transformers and triton that are supported, and with torchvision.
test-oldest: $(OLDEST_STAMP)
	PATH="$(CURDIR)/$(OLDEST)/bin:$$PATH" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(OLDEST)/torch_extensions" \
		python -m pytest -m "not slow and not gpu" $(PYTEST_ARGS)

$(OLDEST_STAMP): setup.py constraints.txt constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	grep -Ev '^(torch|torchvision|transformers|triton|huggingface_hub)[=<>]' constraints.txt | cat constraints-oldest.txt - > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -q "$$(sed -n 's/^\(torch==.*\)/\1/p' constraints-oldest.txt)" -c $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -q -e '.[test]' torchvision -c $(OLDEST)/constraints.txt
	touch $@

# Tests marked gpu skip themselves where there is no GPU.
test-all: install lint
	python -m pytest $(PYTEST_ARGS)
	$(MAKE) test-avx2
	$(MAKE) test-oldest

# The same tests as on a processor without AVX-512, whose libraries add in another order.
test-avx2: install
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
		python -m pytest -m "not slow and not gpu" $(PYTEST_ARGS)

# The table of docs/models.md, from what the tests say; a failing test makes a "no" in it.
models: install
	-python -m pytest -m feature --features docs/models.json $(PYTEST_ARGS) tests/families tests/engine/test_lora.py
	python docs/make_models.py

lint: install
	ruff check .
	mypy
	lint-imports --no-cache

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
