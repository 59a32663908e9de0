# shellcheck shell=bash disable=SC2154
# Creates and deletes TPU slices for tpu_vm.sh, which sets dry_run, and defines create and work.
run() { if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi; }
tpus() { run gcloud compute tpus "$@" "--zone=$ZONE" --quiet; }
retry() { for _ in {1..5}; do "$@" && return; sleep 60; done; return 1; }

# Prints the state of a slice, NONE if it does not exist, and nothing if its state cannot be read.
state() {
  local text
  if text=$(tpus queued-resources describe "$1" '--format=value(state.state)' 2>&1); then
    echo "${text##*[[:space:]]}"  # a warning may come before it
  elif [[ $text == *NOT_FOUND* ]]; then echo NONE; else echo "$text" >&2; fi
}

# Waits for a slice, which it creates, also again after a preemption.
ready() {
  local failures=0
  while [ "$failures" -lt 10 ]; do
    case $(state "$1") in
      ACTIVE) return ;;
      NONE) create "$1" || : $((failures += 1)) ;;
      SUSPENDED) delete "$1" || : $((failures += 1)) ;;
      FAILED) delete "$1" || : ; : $((failures += 1)) ;;
      '') : $((failures += 1)) ;;
    esac
    sleep 30
  done
  return 1
}

# Works on a slice in a process group, of which SIGTERM ends all processes. It does not interrupt the
# creation of a slice, because one that appears later would not be deleted.
attempt() {
  local status=0 group=''
  trap '[ -z "$group" ] || kill -- "-$group"; exit 143' TERM
  ready "$1" || return
  set -m
  work "$@" </dev/null & group=$!
  set +m
  wait "$group" || status=$?
  # The slice was lost, or the connection to it, after which ssh ends with 255. See restart.sh for 75.
  [ "$status" != 255 ] && [ "$(state "$1")" = ACTIVE ] || status=75
  return "$status"
}

# Deletes a slice if it exists. The terminal may be gone, so gcloud prints nothing to it.
delete() {
  local error
  for _ in {1..5}; do
    if [ -z "$dry_run" ] && [ "$(state "$1")" = NONE ]; then return; fi
    if error=$(tpus queued-resources delete "$1" --force 2>&1); then echo "${error:-deleted}"; return; fi
    sleep 60
  done
  echo "$error; THE SLICE MAY STILL EXIST AND COST MONEY. Delete it with this command:" >&2
  quoted gcloud compute tpus queued-resources delete "$1" --force "--zone=$ZONE" >&2
  return 1
}
