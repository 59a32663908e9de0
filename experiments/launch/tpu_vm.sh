#!/usr/bin/env bash
# Trains experiments on Cloud TPU slices, one slice each. Run it on your machine, in the root of a
# clone, with the environment activated:
#
#     ZONE=us-west4-a bash experiments/launch/tpu_vm.sh [--dry-run] PATTERN RUNS [FLAG]...
#
# PATTERN selects experiments, such as 'nonlocal_*_cityscapes', see `python -m experiments names`.
# The run of an experiment is in RUNS/NAME, where RUNS is in a bucket, such as gs://BUCKET/seed0.
# Each FLAG is passed to `experiments.train`. TYPE and RUNTIME describe the slice. QUEUE_FLAGS has
# more options of `queued-resources create`, such as '--spot --service-account=...'. ARCHIVE_FLAGS
# adds files to the copy of the last commit, such as '--add-file=resnet50_v1c.pth'.
set -euo pipefail
source experiments/launch/common.sh
read_arguments "$@"
: "${ZONE:?is not set; use ZONE=us-west4-a, or the zone of your quota}"
read -ra options <<<"${QUEUE_FLAGS-}"
read -ra files <<<"${ARCHIVE_FLAGS-}"
code=nonlocal_jax.tar.gz
# Ends an earlier attempt, which may save for two minutes, and makes an environment with Python 3.11.
setup="pkill -f '[e]xperiments.train'; for _ in \$(seq 120); do pgrep -f '[e]xperiments.train' >/dev/null || break; sleep 1; done; \
pkill -KILL -f '[e]xperiments.train'; mkdir -p nonlocal_jax && tar -xzf $code -C nonlocal_jax && \
cd nonlocal_jax && python3 -m pip install -q --user uv && export PATH=~/.local/bin:\$PATH && \
{ test -x .venv/bin/python || uv venv -q --python=3.11; } && uv pip install -q -r requirements.txt -e '.[all,gcs,tpu]'"

run() { if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi; }
tpus() { run gcloud compute tpus "$@" "--zone=$ZONE" --quiet; }
state() { [ -n "$dry_run" ] || tpus queued-resources describe "$1" '--format=value(state.state)' 2>/dev/null || :; }
delete() { tpus queued-resources delete "$1" --force; }

# Runs a command on all hosts of a slice. Creates the slice, also again after a preemption.
attempt() {
  local state
  state=$(state "$1")
  if [ "$state" != ACTIVE ]; then
    [ -z "$state" ] || delete "$1"
    tpus queued-resources create "$1" "--node-id=$1" "--accelerator-type=${TYPE:-v5litepod-8}" \
      "--runtime-version=${RUNTIME:-v2-alpha-tpuv5-lite}" "${options[@]}" || return
    until [ -n "$dry_run" ] || [[ $(state "$1") =~ ACTIVE|FAILED|SUSPENDED ]]; do sleep 30; done
  fi
  tpus tpu-vm scp "$code" "$1:" --worker=all && tpus tpu-vm ssh "$1" --worker=all "--command=$setup" &&
    tpus tpu-vm ssh "$1" --worker=all "--command=cd nonlocal_jax && . .venv/bin/activate && $(quoted "${@:2}")"
}

run git archive "--output=$code" "${files[@]}" HEAD
running=()
for config in "${configs[@]}"; do
  use "$config"
  if [ -n "$dry_run" ]; then attempt "$name" "${command[@]}"; delete "$name"; continue; fi
  {
    status=0
    restart "$workdir" attempt "$name" "${command[@]}" || status=$?
    [ -z "$(state "$name")" ] || delete "$name" || status=$?
    exit "$status"
  } > >(sed "s/^/$name: /") 2>&1 &
  running+=($!)
done
trap 'kill "${running[@]}"' INT TERM
for slice in "${running[@]}"; do wait "$slice" || wait "$slice" || status=$?; done
exit "${status-0}"
