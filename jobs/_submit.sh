# Sourced by the scripts beside it: `submit COMMAND...` runs `cirkd COMMAND...` as a job of a Ray cluster.
#
#   RAY_ADDRESS      the head's dashboard, e.g. http://head:8265 (RAY_API_SERVER_ADDRESS is taken as well)
#   CIRKD_OUT        where runs are written: storage that all nodes see under this path
#   CIRKD_ENV        pip (default: install the package of this checkout on the nodes), image (the nodes' image has what
#                    it depends on) or the path of a runtime environment of your own
#   RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH    of a cluster with token authentication; RAY_AUTH_MODE=token follows from it
#   CIRKD_PYTHON     the python here that has Ray (default: python)
#
# Prints the job's log as it grows and ends with the exit code of the job's own process; 75 when the log broke off while
# the job goes on, and when the head does not answer. Interrupting the script does not stop the job: `ray job stop ID` does.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

runtime_env() {
  local file="$ROOT/jobs/env/${CIRKD_ENV:-pip}.yaml"
  [ -f "$file" ] || file="${CIRKD_ENV:-pip}"
  [ -f "$file" ] || fail "CIRKD_ENV=$file: pip, image or the path of a runtime environment"
  # Ray knows an environment by this text alone: the mark has it made anew when the dependencies change.
  sed "s/@PYPROJECT@/$(cksum <"$ROOT/pyproject.toml" | tr ' ' -)/" "$file"
}

# What goes up with the job is measured before: where that fails, nothing is submitted.
measure() {
  local code=0
  "$1" "$ROOT/jobs/upload.py" "$ROOT" "$2" || code=$?
  [ "$code" -eq 0 ] || exit 2
}

submit() {
  [ -n "${RAY_ADDRESS:-${RAY_API_SERVER_ADDRESS:-}}" ] ||
    fail "set RAY_ADDRESS to the address of the cluster's dashboard, e.g. http://head:8265"
  if [ -n "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
  fi
  local python="${CIRKD_PYTHON:-python}" id
  id="cirkd-$1-$(date +%Y%m%d-%H%M%S)-$(printf '%04x' $RANDOM)" # an id given twice is refused by Ray
  environment="$(mktemp --suffix=.yaml)" # not local: the trap runs after this function
  trap 'rm -f "$environment"' EXIT
  runtime_env >"$environment"
  measure "$python" "$environment"
  "$python" -m ray.scripts.scripts job submit --submission-id "$id" --working-dir "$ROOT" \
    --runtime-env "$environment" -- python -m cirkd_ray "$@" \
    2> >("$python" "$ROOT/jobs/one_line.py") || true # its own code says only that something failed
  "$python" "$ROOT/jobs/exit_code.py" "$id"
}

out() {
  [ -n "${CIRKD_OUT:-}" ] || fail "set CIRKD_OUT to a folder that all nodes see, e.g. /mnt/shared/runs"
  echo "$CIRKD_OUT"
}
