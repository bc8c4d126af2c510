#!/usr/bin/env bash
# Score a trained network on a Ray cluster. The report goes beside the run, as `cirkd eval` puts it.
#
#   jobs/eval.sh RUN WORKERS [arguments of `cirkd eval`]
#
# RUN is a run's name below CIRKD_OUT, or the path or URL of a run or of a weights file that all nodes see.
# `cirkd submit --help` describes RAY_ADDRESS, CIRKD_OUT, CIRKD_ENV and the token.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 RUN WORKERS [arguments of cirkd eval]" >&2; exit 2; }
run=$1
case $run in
  /* | *://*) ;;
  *) run=${CIRKD_OUT:?set it to storage that all nodes see, or give the whole path of the run}/$run ;;
esac
exec "${CIRKD:-cirkd}" submit --dir "$(dirname "$0")/.." -- eval "$run" --workers "$2" "${@:3}"
