#!/usr/bin/env bash
# Installs what the tests need and runs them; further arguments go to pytest.
cd "$(dirname "$0")/.."
. infra/environment.sh dev
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "$@"
