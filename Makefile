# make smoke   install, write the tiny world, fine-tune and evaluate a tiny BEiT-3 on every task, print the leaderboard
# make test    install and run the tests (SLOW=1: the slow ones too)
# make test-isa  parity with the official code and the rows of a run under other instruction sets and numbers of threads
# make lint    style, formatting and types
# make device  checks and figures on a CUDA card (PIECES= some of them); tests/device.sh also runs where there is no network, with
#              the wheels that `make device-wheels` fetches here
# make clean   remove what the others made (not the virtual environment: rm -r .venv)
#
# EXTRAS=      leave the dense stack out (mmsegmentation; its operators compile for 7 minutes): ade20k-seg then shows as
#              "not installed" in the table

PYTHON ?= python3
VENV   ?= .venv
SLOW   ?=
EXTRAS ?= dense
PIECES ?=
DEVICE_REPORT ?= build/device
DEVICE_PYTHON ?= 3.12
comma  := ,
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: install smoke test test-isa lint device device-wheels clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 6 GB, mostly torch$(if $(EXTRAS),; mmcv compiles for 7 minutes (EXTRAS= leaves it out))"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools wheel
	$(PIP) torch torchvision ninja
	$(PIP) --no-build-isolation --editable '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	touch $@

smoke: install
	sh tests/smoke.sh smoke

test: install
	$(BIN)/python -m pytest $(if $(SLOW),-m "slow or not slow")

test-isa: install
	PYTHON=$(BIN)/python sh tests/instruction_sets.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p beit3_bench

device: install
	PYTHON=$(BIN)/python sh tests/device.sh $(DEVICE_REPORT) $(PIECES)

# For Python $(DEVICE_PYTHON) on Linux x86-64: what an image with torch, torchvision, timm and transformers lacks.
device-wheels: install
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest build/device-wheels \
	    --python-version $(DEVICE_PYTHON) --implementation cp $(foreach v,2_28 2_27 2_17,--platform manylinux_$(v)_x86_64) \
	    $(shell grep -E '^(click|tqdm|pycocotools|faster-coco-eval)==' constraints.txt)

clean:
	rm -rf smoke build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
