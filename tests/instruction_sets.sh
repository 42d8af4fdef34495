#!/bin/sh
# The tests whose numbers depend on the processor (marker `isa`), as other processors would run them, as far as switches reach:
# PyTorch's own kernels, MKL's (on Intel), oneDNN's; and two threads. What is promised where: backbones/products.py.
#
# usage: [PYTHON=python] sh tests/instruction_sets.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."

under() {
    echo "== $1"
    shift
    env "$@"
}

for settings in \
    "ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1" \
    "ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1" \
    "MKL_CBWR=AUTO OMP_NUM_THREADS=2"
do
    # shellcheck disable=SC2086  # several settings
    under "$settings" $settings "${PYTHON:-python}" -m pytest -m "isa and not slow" "$@" $(grep -rl "mark.isa" tests --include="test_*.py")
done
