# Sourced by quickstart.sh and test.sh: makes the virtual environment, once, and enters it.
# usage: . infra/environment.sh EXTRA    (from the repository's root)

set -euo pipefail

refocus_environment() {
    local extra="$1" python="${PYTHON:-python3}" venv="${REFOCUS_VENV:-.venv}" wanted installed
    "$python" - <<'PY' || { echo "Refocus needs Python 3.11 or later with venv; set PYTHON=/path/to/python3.11" >&2; return 1; }
import sys, venv
raise SystemExit(sys.version_info < (3, 11))
PY
    wanted="$extra $(cat pyproject.toml infra/constraints.txt | cksum)"
    installed="$(cat "$venv/.refocus-installed" 2>/dev/null || true)"
    # The development extra holds all the others: what it installed serves the quickstart too.
    if [ "$installed" != "$wanted" ] && [ "$installed" != "dev ${wanted#* }" ]; then
        echo "Installing refocus[$extra] into $venv (pinned by infra/constraints.txt) ..."
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar off \
            --constraint infra/constraints.txt torch==2.13.0 --editable ".[$extra]"
        echo "$wanted" > "$venv/.refocus-installed"
    fi
    PATH="$(cd "$venv/bin" && pwd):$PATH"
    export PATH
}

refocus_environment "$1"
