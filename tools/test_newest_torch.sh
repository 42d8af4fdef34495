#!/bin/sh
# The fast tests with the newest torch of the registry, and all else as constraints.txt has it, in an environment of its own: users keep
# the torch they have, so what runs with the pinned one must run with the newest. Without the dense stack, whose operators would have
# to be compiled for it.
# Usage: sh tools/test_newest_torch.sh VENV [TESTS...]
set -eu

venv=$1
shift
python=$venv/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "installing the newest torch into $venv"
pip="$python -m pip --quiet --disable-pip-version-check"
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
grep -Ev '^(torch|torchvision|onedl-[a-z]+)==' constraints.txt >"$pins"
$pip install --constraint "$pins" pip setuptools wheel
$pip install --constraint "$pins" --upgrade torch torchvision
$pip install --constraint "$pins" --no-build-isolation --editable '.[dev]'
$python -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__)'
PATH=$(cd "$venv/bin" && pwd):$PATH OMP_NUM_THREADS=1 $python -m pytest -n "${WORKERS:-2}" --dist loadfile "${@:-tests}"
