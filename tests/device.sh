#!/bin/sh
# Figures and checks from a CUDA card, where there is no network: numerics, speed, a tiny world evaluated and trained, memory, a card
# that fails; with $PHOTOS, a folder of *.JPEG, also what feeds the card and the dense probe.
# Usage: sh tests/device.sh FOLDER [PIECE ...]     (default: every piece; see tests/device/report.py)
#
# What is missing there is taken from build/device-wheels, which `make device-wheels` fills ($WHEELS names another folder).
# $DEVICE: the device (default cuda).  $QUICK=1: the smallest sizes, which only show that the script works.
set -eu

out=$1
shift
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
if ! "$python" -c 'import beit3_bench.harness, click, pycocotools, sentencepiece, timm; from importlib.metadata import version; version("beit3-bench")' 2>/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    install="$python -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target $site"
    wheels=${WHEELS:-$root/build/device-wheels}
    # shellcheck disable=SC2086
    [ ! -d "$wheels" ] || $install "$wheels"/*.whl
    mkdir "$site/source" # a build leaves folders in the tree it is run in
    (cd "$root" && cp -r beit3_bench backbones tasks harness results pyproject.toml README.md LICENSE "$site/source")
    # shellcheck disable=SC2086
    $install --no-build-isolation "$site/source"
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    export PATH="$site/bin:$PATH"
fi
"$python" "$root/tests/device/report.py" --device "${DEVICE:-cuda}" ${QUICK:+--quick} "$out" "$@"
