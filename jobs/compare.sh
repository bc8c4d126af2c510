#!/usr/bin/env bash
# Compare methods over seeds on a Ray cluster. The same line again continues it; a higher --seeds adds runs.
#
#   jobs/compare.sh NAME RECIPE [RECIPE...] [arguments of `cirkd compare`, such as --seeds 5]
#
# `cirkd submit --help` describes RAY_ADDRESS, CIRKD_OUT, CIRKD_ENV and the token.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 NAME RECIPE [RECIPE...] [arguments of cirkd compare]" >&2; exit 2; }
exec "${CIRKD:-cirkd}" submit --dir "$(dirname "$0")/.." -- compare --name "$1" "${@:2}"
