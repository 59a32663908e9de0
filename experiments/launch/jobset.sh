#!/usr/bin/env bash
# Trains experiments on TPU slices of Google Kubernetes Engine, each in a JobSet, see jobset.yaml.
# Run it in the root of a clone, with the environment activated:
#
#     IMAGE=... bash experiments/launch/jobset.sh [--dry-run] PATTERN RUNS [FLAG]...
#
# PATTERN selects experiments, such as 'nonlocal_*_cityscapes', see `python -m experiments names`.
# The run of an experiment is in RUNS/NAME, where RUNS is in a bucket, such as gs://BUCKET/seed0.
# Each FLAG is passed to `experiments.train`. IMAGE contains a clone with its environment. The other
# variables describe the slice: the default is v5e:2x4 on two nodes with four chips each.
set -euo pipefail
source experiments/launch/common.sh
read_arguments "$@"
check_cloud IMAGE 'use IMAGE=ADDRESS with the container image'
export IMAGE
export ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} TOPOLOGY=${TOPOLOGY:-2x4}
export HOSTS=${HOSTS:-2} CHIPS=${CHIPS:-4} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}

for config in "${configs[@]}"; do
  use "$config"
  jobset=$(NAME=$name python -c 'import json, os, string, sys
template = string.Template(open("experiments/launch/jobset.yaml").read())
print(template.substitute(os.environ, ARGUMENTS=json.dumps(sys.argv[1:])))' "$workdir" "${command[@]}")
  if [ -n "$dry_run" ]; then
    printf "kubectl apply --filename=- <<'END'\n%s\nEND\n" "$jobset"
  else
    kubectl apply --filename=- <<<"$jobset" || status=1
  fi
done
exit "${status-0}"
