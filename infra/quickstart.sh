#!/usr/bin/env bash
# The whole chain on this machine: store, ingest, train, promote, serve, refocus an image.
# usage: infra/quickstart.sh [--data FOLDER] [--out FOLDER]      see infra/quickstart.py --help
cd "$(dirname "$0")/.."
. infra/environment.sh serve,train
exec python infra/quickstart.py "$@"
