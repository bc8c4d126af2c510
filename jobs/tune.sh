#!/usr/bin/env bash
# Run a sweep on a Ray cluster. The same line again continues it where it stopped.
#
#   jobs/tune.sh SPACE NAME [arguments of `cirkd tune`, such as --set recipe=... or --export /mnt/shared/runs/best.yaml]
#
# The best configuration is written to $CIRKD_OUT/NAME/best.yaml in any case. --export takes an absolute path on storage
# that outlives the job: a relative one is a place in the job's own working directory.
# `cirkd submit --help` describes RAY_ADDRESS, CIRKD_OUT, CIRKD_ENV and the token.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SPACE NAME [arguments of cirkd tune]" >&2; exit 2; }
exec "${CIRKD:-cirkd}" submit --dir "$(dirname "$0")/.." -- tune "$1" --name "$2" "${@:3}"
