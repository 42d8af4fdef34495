#!/bin/sh
# The fast tests of models and tasks with the newest torch of the registry, and the newest of everything else that pyproject.toml
# allows, in an environment of its own; constraints.txt holds the versions that all other tests run with. Without the dense stack.
# Usage: sh tools/test_newest_torch.sh VENV
set -eu

venv=$1
python=$venv/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "installing the newest torch into $venv"
$python -m pip install --quiet --disable-pip-version-check --upgrade pip
$python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[dev]'
$python -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__)'
OMP_NUM_THREADS=1 $python -m pytest -n "${WORKERS:-2}" --dist loadfile tests/backbones tests/tasks tests/api
