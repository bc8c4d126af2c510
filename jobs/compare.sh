#!/usr/bin/env bash
# Compare methods over seeds on a Ray cluster. The same line again continues it; a higher --seeds adds runs.
#
#   jobs/compare.sh NAME RECIPE [RECIPE...] [arguments of `cirkd compare`, such as --seeds 5]
#
# The environment variables that it reads are described in jobs/_submit.sh.
. "$(dirname "${BASH_SOURCE[0]}")/_submit.sh"
[ $# -ge 2 ] || fail "usage: jobs/compare.sh NAME RECIPE [RECIPE...] [arguments of cirkd compare]"
name="$1" folder="$(out)"
shift
submit compare "$@" --out "$folder" --name "$name"
