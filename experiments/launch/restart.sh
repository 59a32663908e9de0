# shellcheck shell=bash
# Runs a training command, and runs it again after a loss. The launchers and the pods of a JobSet use it.

# Asks a running command to save and to end. slurm.sbatch has its own.
terminate() { kill -TERM "$1" 2>/dev/null || :; }

# Waits for a process and returns its status. A signal interrupts `wait`, so this repeats it.
join() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || :; done
  wait "$1"
}

# restart WORKDIR COMMAND [ARGUMENT]...
#
# Ends with status 0 when the run in WORKDIR is finished, with 143 after SIGTERM, which it passes on,
# with 1 if it cannot read WORKDIR for five minutes, and with 3 when it gives up: after two attempts in
# a row that saved nothing. It waits for a minute between them, because the network may have failed,
# or a host that is lost is not known yet.
# An attempt with status 75 does not count, because the slice or the connection to it was lost.
restart() {
  local workdir=$1 saved before='' status attempt='' terminated='' failures=0 tries
  shift
  trap 'terminated=1; [ -z "$attempt" ] || terminate "$attempt"' TERM
  while :; do
    tries=0
    until saved=$(python -m experiments.launch.saved "$workdir"); do
      [ -z "$terminated" ] || return 143
      [ "$((tries += 1))" -lt 30 ] || return 1
      sleep 10
    done
    [ "$saved" != finished ] || return 0
    [ -z "$terminated" ] || return 143
    if [ -n "$before" ]; then
      if [ "$saved" != "$before" ] || [ "$status" = 75 ]; then failures=0; else failures=$((failures + 1)); fi
      # In a JobSet, every pod has this loop, and the pod of process 0, which saves, decides.
      if [ "${JOB_COMPLETION_INDEX:-0}" = 0 ] && [ "$failures" = 2 ]; then
        echo "restart: the attempt ended with status $status and saved nothing after step $saved" >&2
        return 3
      fi
      echo "restart: the attempt ended with status $status; again from step $saved" >&2
      if [ "$failures" -gt 0 ]; then
        sleep 60 >/dev/null 2>&1 &
        wait "$!" || :  # SIGTERM interrupts it
        [ -z "$terminated" ] || return 143
      fi
    fi
    before=$saved status=0
    "$@" &
    attempt=$!
    [ -z "$terminated" ] || terminate "$attempt"  # the signal came before the line above
    join "$attempt" || status=$?
    attempt=''
  done
}
