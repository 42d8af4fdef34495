#!/bin/sh
# Install this checkout into a virtual environment, with a line every half minute; what pip says is kept in VENV/install.log.
# Usage: sh tools/install.sh VENV EXTRAS     (EXTRAS: of pyproject.toml, comma-separated)
#
# mmcv (of the extra `dense`) is a source package on the registry, whose C++ operators compile for minutes. The wheel is kept in
# $WHEELS (default: below ~/.cache), in a folder per Python and torch: other checkouts, and a second call, compile nothing.
# Pip's own cache would not do: it gives a wheel that was built for another torch.
# $MAX_JOBS: compilers at a time (default: one a core; each takes about 1 GB of memory).
set -eu

venv=$1
extras=$2
python=$venv/bin/python
log=$venv/install.log
wheels=${WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/beit3-bench/wheels}
interval=30
begun=$(date +%s)
pip="$python -m pip --disable-pip-version-check"

say() {
    printf '[%3d s] %s\n' $(($(date +%s) - begun)) "$*"
}

# state: how far the step in the log is: files compiled, else what pip did last
state() {
    compiled=$(grep -Eo '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 | tr -d ' []')
    if [ -n "$compiled" ]; then
        echo "${compiled%/*} of ${compiled#*/} files compiled"
    else
        grep -v '^WARNING' "$log" | tail -n 1 | cut -c 1-100
    fi
}

# step TITLE COMMAND...: run a command, its output going to the log
step() {
    title=$1
    shift
    say "$title"
    : >"$log"
    "$@" >"$log" 2>&1 &
    job=$!
    trap 'kill $job 2>/dev/null; exit 130' INT TERM
    waited=0
    while kill -0 $job 2>/dev/null; do
        sleep 1
        waited=$((waited + 1))
        [ $((waited % interval)) -ne 0 ] || say "$title: $(state)"
    done
    trap - INT TERM
    if ! wait $job; then
        tail -n 25 "$log" >&2
        echo "error: $title failed; the whole output is in $log" >&2
        exit 1
    fi
}

# wheel_of_mmcv: say in which folder the wheel for this Python and torch is, after building it where it is not there yet
wheel_of_mmcv() {
    version=$(sed -n 's/^onedl-mmcv==//p' constraints.txt)
    key=$($python -c 'import sys, torch
card = "cuda" if torch.cuda.is_available() else "cpu"
print("cp%d%d-torch-%s-%s" % (*sys.version_info[:2], torch.__version__, card))')
    mmcv=$wheels/$key
    if ls "$mmcv/onedl_mmcv-$version-"*.whl >/dev/null 2>&1; then
        say "mmcv: the wheel in $mmcv"
        return
    fi
    mkdir -p "$wheels"
    building=$(mktemp -d "$wheels/building.XXXXXX")
    # shellcheck disable=SC2086
    step "compiling mmcv, for minutes" env MAX_JOBS="${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}" CFLAGS="${CFLAGS:-} -g0" \
        $pip wheel --verbose --no-deps --no-cache-dir --no-build-isolation --wheel-dir "$building" "onedl-mmcv==$version"
    mkdir -p "$mmcv"
    mv "$building"/*.whl "$mmcv"
    rmdir "$building"
}

if [ ! -x "$python" ]; then
    say "a virtual environment in $venv"
    "${PYTHON:-python3}" -m venv "$venv"
fi
# shellcheck disable=SC2086
step "pip, setuptools" $pip install --constraint constraints.txt pip setuptools wheel
# shellcheck disable=SC2086
step "torch, about 3 GB" $pip install --constraint constraints.txt torch torchvision ninja
mmcv=
case ",$extras," in
*,dense,*) wheel_of_mmcv ;;
esac
# shellcheck disable=SC2086
step "beit3-bench and what it needs" \
    $pip install --constraint constraints.txt ${mmcv:+--find-links "$mmcv"} --no-build-isolation --editable ".[$extras]"
say "installed in $venv"
