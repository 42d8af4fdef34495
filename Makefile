# make install into .venv, a line every half minute: 3 minutes, and once per machine and torch 7 more, in which mmcv is compiled
# make smoke   `beit3-bench demo` (a tiny world, a tiny BEiT-3 on every task, other families, the leaderboard), and what it must reach
# make test    install and run the tests (SLOW=1: the slow ones too; WORKERS=N: in so many processes)
# make test-newest-torch  the fast tests with the newest torch of the registry, in an environment of its own
# make test-isa  parity with the official code and the rows of a run under other instruction sets and numbers of threads
# make lint    style, formatting and types
# make docs    the pages of docs/ into build/docs; a broken link is an error
# make device  checks and figures on a CUDA card (PIECES= some of them); tests/device.sh also runs where there is no network, with
#              the wheels that `make device-wheels` fetches here
# make clean   remove what the others made (not the virtual environment: rm -r .venv)
#
# EXTRAS=      leave the dense stack out (mmsegmentation with mmcv): ade20k-seg then shows as "not installed" in the table
# WHEELS=DIR   where the compiled mmcv is kept (see tools/install.sh)

PYTHON ?= python3
VENV   ?= .venv
SLOW   ?=
EXTRAS ?= dense
PIECES ?=
WORKERS ?= 2
NEWEST ?= build/newest-torch
DEVICE_REPORT ?= build/device
DEVICE_PYTHON ?= 3.12
comma  := ,
BIN    := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: install smoke test test-newest-torch test-isa lint docs device device-wheels clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh tools/install.sh "$(VENV)" "dev,docs$(if $(EXTRAS),$(comma)$(EXTRAS))"
	@touch $@

smoke: install
	$(BIN)/beit3-bench demo --output smoke --overwrite
	$(BIN)/python tests/smoke_check.py smoke

# A process per core, each with one thread: the tests of a file run in one process and share what they make.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(if $(SLOW),-m "slow or not slow")

test-newest-torch:
	@PYTHON="$(PYTHON)" WORKERS="$(WORKERS)" sh tools/test_newest_torch.sh "$(NEWEST)"

test-isa: install
	PYTHON=$(BIN)/python sh tests/instruction_sets.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p beit3_bench

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

device: install
	PYTHON=$(BIN)/python sh tests/device.sh $(DEVICE_REPORT) $(PIECES)

# For Python $(DEVICE_PYTHON) on Linux x86-64: what an image with torch, torchvision, timm and transformers lacks.
device-wheels: install
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest build/device-wheels \
	    --python-version $(DEVICE_PYTHON) --implementation cp $(foreach v,2_28 2_27 2_17,--platform manylinux_$(v)_x86_64) \
	    $(shell grep -E '^(click|tqdm|pycocotools|faster-coco-eval|msgspec)==' constraints.txt)

clean:
	rm -rf smoke build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
