#!/usr/bin/env bash
# Run a sweep on a Ray cluster. The same line again continues it where it stopped.
#
#   jobs/tune.sh SPACE NAME [arguments of `cirkd tune`, such as --set recipe=... or --export best.yaml]
#
# The environment variables that it reads are described in jobs/_submit.sh.
. "$(dirname "${BASH_SOURCE[0]}")/_submit.sh"
[ $# -ge 2 ] || fail "usage: jobs/tune.sh SPACE NAME [arguments of cirkd tune]"
space="$1" name="$2" folder="$(out)"
shift 2
submit tune "$space" --out "$folder" --name "$name" "$@"
