#!/usr/bin/env bash
# Makes .venv with everything that the demo, the tests and the linters need, at the versions of constraints.txt.
# Safe to repeat: a .venv that is there already is brought up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

# Prints the first Python that is new enough.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or newer is on PATH. Install one, for example:" >&2
    echo "  Debian, Ubuntu:  sudo apt-get install -y python3 python3-venv" >&2
    echo "  Fedora, RHEL:    sudo dnf install -y python3.11" >&2
    echo "  macOS:           brew install python@3.12" >&2
    echo "or name yours: make PYTHON=/path/to/python3" >&2
    return 1
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make virtual environments. On Debian and Ubuntu:" >&2
        echo "  sudo apt-get install -y python3-venv" >&2
        exit 1
    fi
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt)
# torch first and alone: resolved together with others, a CUDA build of several GB may be taken instead
echo "installing torch, some minutes the first time"
"${pip[@]}" torch
echo "installing sparknet and what it needs"
"${pip[@]}" -e '.[dev]'
