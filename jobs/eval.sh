#!/usr/bin/env bash
# Score a trained network on a Ray cluster. The report goes beside the run, as `cirkd eval` puts it.
#
#   jobs/eval.sh RUN WORKERS [arguments of `cirkd eval`]
#
# RUN is a run's name below CIRKD_OUT, or the path of a run or of a weights file that all nodes see.
# The environment variables that it reads are described in jobs/_submit.sh.
. "$(dirname "${BASH_SOURCE[0]}")/_submit.sh"
[ $# -ge 2 ] || fail "usage: jobs/eval.sh RUN WORKERS [arguments of cirkd eval]"
run="$1" workers="$2" folder="$(out)"
shift 2
case "$run" in
  /* | *://*) ;;
  *) run="$folder/$run" ;;
esac
submit eval "$run" --workers "$workers" "$@"
