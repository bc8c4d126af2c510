#!/usr/bin/env bash
# Run a sweep on a Ray cluster. The same line again continues it where it stopped.
#
#   jobs/tune.sh SPACE NAME [arguments of `cirkd tune`, such as --set recipe=... or --export /mnt/shared/runs/best.yaml]
#
# The best configuration is written to $CIRKD_OUT/NAME/best.yaml in any case. --export takes an absolute path on storage
# that outlives the job: a relative one is a place in the job's own working directory.
#
# The environment variables that it reads are described in jobs/_submit.sh.
. "$(dirname "${BASH_SOURCE[0]}")/_submit.sh"
[ $# -ge 2 ] || fail "usage: jobs/tune.sh SPACE NAME [arguments of cirkd tune]"
space="$1" name="$2" folder="$(out)"
shift 2
submit tune "$space" --out "$folder" --name "$name" "$@"
