# shellcheck shell=bash disable=SC2034
# What the launchers share. PATTERN selects experiments, see `python -m experiments names`.

# Reads [--dry-run] PATTERN RUNS [FLAG]... into dry_run, pattern, runs, flags and configs.
read_arguments() {
  dry_run='' configs=()
  if [ "${1-}" = --dry-run ]; then dry_run=1 && shift; fi
  if [ $# -lt 2 ]; then
    echo "use: $0 [--dry-run] PATTERN RUNS [FLAG]..." >&2
    exit 2
  fi
  pattern=$1 runs=${2%/} flags=("${@:3}")
  local names
  names=$(python -m experiments names "$pattern") || exit
  mapfile -t configs <<<"$names"
}

# Sets the training command of an experiment, its work directory, and a name for the cloud, which
# allows neither "_" nor ".". All hosts share compiled programs, because only process 0 writes them.
use() {
  workdir=$runs/${1#*:}
  command=(python -m experiments.train "--config=$1" "--workdir=$workdir"
    "--compilation-cache=$runs/.compiled" "${flags[@]}")
  name=$(basename "$runs")-${1#*:}
  name=${name//[_.]/-}
}

# Prints a command such that a shell reads the same words.
quoted() {
  local text
  printf -v text '%q ' "$@"
  echo "${text% }"
}

# Runs a training command, and runs it again after a loss: restart WORKDIR COMMAND [ARGUMENT]...
#
# Ends with status 0 when the run in WORKDIR is finished, with 143 after SIGTERM, which it passes on,
# and with the status of the command when an attempt saved no further step.
restart() {
  local workdir=$1 saved before='' status attempt='' terminated=''
  shift
  trap 'terminated=1; kill -TERM $attempt 2>/dev/null || :' TERM INT
  while :; do
    saved=$(python -m experiments.launch.saved "$workdir") || return
    [ "$saved" != finished ] || return 0
    [ -z "$terminated" ] || return 143
    # In a JobSet, every pod has this loop, and the pod of process 0, which saves, decides.
    if [ "$saved" = "$before" ] && [ "${JOB_COMPLETION_INDEX:-0}" = 0 ]; then
      echo "restart: the attempt ended with status $status and saved nothing after step $saved" >&2
      return "$((status ? status : 1))"
    fi
    [ -z "$before" ] || echo "restart: the attempt ended with status $status; again from step $saved" >&2
    before=$saved status=0
    "$@" &
    attempt=$!
    # A signal interrupts the first wait. The second returns the status in both cases.
    wait "$attempt" || wait "$attempt" || status=$?
  done
}
