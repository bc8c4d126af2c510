#!/usr/bin/env bash
# Train a recipe on a Ray cluster. The same line again continues the run where it stopped.
#
#   jobs/train.sh RECIPE NAME [arguments of `cirkd train`, such as --set optim.lr=0.01]
#
# `cirkd submit --help` describes RAY_ADDRESS, CIRKD_OUT, CIRKD_ENV and the token.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 RECIPE NAME [arguments of cirkd train]" >&2; exit 2; }
exec "${CIRKD:-cirkd}" submit --dir "$(dirname "$0")/.." -- train "$1" --name "$2" "${@:3}"
