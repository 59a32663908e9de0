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
source experiments/launch/restart.sh
source experiments/launch/slices.sh
read_arguments "$@"
check_cloud ZONE 'use ZONE=us-west4-a, or the zone of your quota'
read -r -d '' -a options <<<"${QUEUE_FLAGS-}" || :
read -r -d '' -a files <<<"${ARCHIVE_FLAGS-}" || :
code=nonlocal_jax.tar.gz batch=-oBatchMode=yes  # ssh would wait for a passphrase
# Ends an earlier attempt, which may save for two minutes. The shell of this line does not match "^".
stop="t='^python -m experiments.train'; pkill -f \"\$t\"; \
for _ in \$(seq 120); do pgrep -f \"\$t\" >/dev/null || break; sleep 1; done; \
pkill -KILL -f \"\$t\""
# Makes an environment with Python 3.11.
setup="$stop; mkdir -p nonlocal_jax && tar -xzf $code -C nonlocal_jax && cd nonlocal_jax && \
python3 -m pip install -q --user uv && export PATH=~/.local/bin:\$PATH && \
{ test -x .venv/bin/python || uv venv -q --python=3.11; } && uv pip install -q -r requirements.txt -e '.[all,gcs,tpu]'"

create() {
  tpus queued-resources create "$1" "--node-id=$1" "--accelerator-type=${TYPE:-v5litepod-8}" \
    "--runtime-version=${RUNTIME:-v2-alpha-tpuv5-lite}" "${options[@]}"
}
# Runs a command on all hosts. gcloud repeats it after a lost connection, so it ends the one before.
work() {
  retry tpus tpu-vm scp "$directory/$code" "$1:" --worker=all "--scp-flag=$batch" &&
    retry tpus tpu-vm ssh "$1" --worker=all "--command=$setup" "--ssh-flag=$batch" &&
    tpus tpu-vm ssh "$1" --worker=all "--command=$stop; cd nonlocal_jax && . .venv/bin/activate && $(quoted "${@:2}")" \
      "--ssh-flag=$batch" --ssh-flag=-oServerAliveInterval=60
}

# Slices that are created again get the same archive, whatever other launchers do.
if [ -z "$dry_run" ]; then directory=$(mktemp -d) && trap 'rm -r "$directory"' EXIT; fi
run git archive "--output=${directory=.}/$code" "${files[@]}" HEAD
trap '' INT HUP PIPE && running=()  # the processes below delete their slices also without a terminal
for config in "${configs[@]}"; do
  use "$config"
  if [ -n "$dry_run" ]; then create "$name"; work "$name" "${command[@]}"; delete "$name"; continue; fi
  {
    status=0
    restart "$workdir" attempt "$name" "${command[@]}" || status=$?
    delete "$name" || status=1
    exit "$status"
  } > >(sed -u "s/^/$name: /") 2>&1 &
  running+=($!)
done
trap 'kill "${running[@]}" 2>/dev/null || :' INT TERM HUP
for slice in "${running[@]}"; do join "$slice" || status=$?; done
exit "${status-0}"
