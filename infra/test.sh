#!/usr/bin/env bash
# Installs what the tests need and runs them; further arguments go to pytest.
cd "$(dirname "$0")/.."
. infra/environment.sh dev
ruff check .
ruff format --check .
mypy
lint-imports
# A later -m wins: infra/test.sh -m slow runs the long ones alone.
exec python -m pytest -m "not slow" "$@"
