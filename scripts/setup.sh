#!/usr/bin/env bash
# Brings what the project needs: FFCV's system libraries (by apt, only as root), uv, and .venv from requirements.lock.
# Does nothing when nothing has changed, so every make target calls it. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.ready
FFCV_LOG=$VENV/ffcv.log # of a build that failed
FFCV_PACKAGES="g++ pkg-config libopencv-dev libturbojpeg0-dev"
CONDA_LINE="conda create -n gab -c conda-forge python=3.12 make git compilers pkg-config libjpeg-turbo 'opencv<5'"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" # torch's wheels are large
export UV_PYTHON_DOWNLOADS=never
# Once, here: otherwise the first start does it, or every start where the environment forbids it or cannot be written.
export UV_COMPILE_BYTECODE=1

say() { printf 'setup: %s\n' "$*" >&2; }

stop() {
    say "$*"
    exit 1
}

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        # A version manager's shim can exist and still fail, so each is tried.
        "$name" -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13); print(sys.executable)' 2>/dev/null && return
    done
    stop "needs Python 3.11, 3.12 or 3.13: install one, or name one by PYTHON=/path/to/python3.12."
}

has_headers() {
    "$1" -c 'import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'
}

# What building FFCV takes: a compiler, the interpreter's headers, OpenCV and TurboJPEG as pkg-config sees them.
has_libraries() {
    command -v "${CXX:-g++}" >/dev/null && has_headers "$1" && pkg-config --exists opencv4 libturbojpeg 2>/dev/null
}

has_ffcv() { compgen -G "$VENV/lib/python3.*/site-packages/ffcv" >/dev/null; }

can_apt() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

apt_install() {
    local log
    log=$(mktemp)
    say "apt-get install $* (a minute or two; log in $log)"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 ||
        { tail -n 3 "$log" >&2 && return 1; }
}

headers_package() { # Debian keeps the headers of its own interpreters apart
    "$1" -c 'import sys; base = sys.base_prefix; print("python3.%d-dev" % sys.version_info[1] if base == "/usr" else "")'
}

find_uv() {
    if uv --version >/dev/null 2>&1; then
        command -v uv
        return
    fi
    if [ ! -x .uv/bin/uv ]; then
        "$1" -m pip --version >/dev/null 2>&1 || { can_apt && apt_install python3-pip; } ||
            stop "uv is missing and so is pip to bring it: run \`apt-get install python3-pip\` as root, or install uv."
        # --target: a place of its own, which also works where the system's pip is externally managed (PEP 668).
        "$1" -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --target .uv uv >&2
        echo '*' >.uv/.gitignore
    fi
    echo "$PWD/.uv/bin/uv"
}

build_ffcv() { # --no-cache: a wheel from the cache may be linked to another machine's or environment's OpenCV
    grep '^ffcv==' requirements.lock |
        "$1" pip install --python $VENV/bin/python --no-cache --no-deps --build-constraints requirements.lock \
            --requirements - && $VENV/bin/python -c 'import ffcv'
}

install_ffcv() {
    say "building FFCV (a minute or two; log in $FFCV_LOG)"
    if build_ffcv "$1" >$FFCV_LOG 2>&1; then
        rm $FFCV_LOG
    else
        tail -n 3 $FFCV_LOG >&2
        "$1" pip uninstall --quiet --python $VENV/bin/python ffcv || true
    fi
}

install() {
    local python=$1 uv
    if ! has_libraries "$python" && can_apt; then
        # shellcheck disable=SC2046,SC2086  # lists of words
        apt_install $FFCV_PACKAGES $(headers_package "$python") || say "apt-get failed."
    fi
    uv=$(find_uv "$python")
    [ -x $VENV/bin/python ] || "$uv" venv --clear --python "$python" $VENV
    grep -v '^ffcv==' requirements.lock |
        "$uv" pip install --python $VENV/bin/python --no-deps --requirements - --editable .
    rm -f $FFCV_LOG
    if has_libraries "$python"; then
        install_ffcv "$uv"
    fi
}

# What an installation depends on: where it lies, what was asked for, and whether FFCV could be built.
key() {
    printf '%s\n' "$PWD"
    cat requirements.lock pyproject.toml scripts/setup.sh | sha256sum
    if has_libraries "$1"; then echo "FFCV can be built"; fi
}

python=$VENV/bin/python
[ -x $python ] || python=$(find_python)
if [ ! -x $VENV/bin/python ] || [ "$(cat $STAMP 2>/dev/null)" != "$(key "$python")" ]; then
    install "$python"
    key "$python" >$STAMP
fi
if [ -e $FFCV_LOG ]; then
    say "FFCV could not be built ($PWD/$FFCV_LOG says why), so images come from the slower torch loader (data.loader=torch);" \
        "to try again, run \`rm -rf $VENV\` and this command again."
elif ! has_ffcv; then
    say "FFCV is not installed, so images come from the slower torch loader (data.loader=torch); to have FFCV, run" \
        "\`apt-get install $FFCV_PACKAGES python3-dev\` as root, or without root" \
        "\`$CONDA_LINE && conda activate gab\`, and then \`rm -rf $VENV\` and this command again."
fi
