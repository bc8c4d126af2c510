#!/usr/bin/env bash
# Train a recipe on a Ray cluster. The same line again continues the run where it stopped.
#
#   jobs/train.sh RECIPE NAME [arguments of `cirkd train`, such as --set optim.lr=0.01]
#
# The environment variables that it reads are described in jobs/_submit.sh.
. "$(dirname "${BASH_SOURCE[0]}")/_submit.sh"
[ $# -ge 2 ] || fail "usage: jobs/train.sh RECIPE NAME [arguments of cirkd train]"
recipe="$1" name="$2" folder="$(out)"
shift 2
submit train "$recipe" --out "$folder" --name "$name" --resume "$@"
