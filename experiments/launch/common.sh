# shellcheck shell=bash disable=SC2034
# What the launchers share. PATTERN selects experiments, see `python -m experiments names`.

# Reads [--dry-run] PATTERN RUNS [FLAG]... into dry_run, pattern, runs, flags and configs, and checks
# names and types of the flags with the first experiment. A last flag without a value must not take
# --only_check_args for it.
read_arguments() {
  local word words=() names
  dry_run='' configs=()
  for word; do
    case $word in --dry-run) dry_run=1 ;; *) words+=("$word") ;; esac
  done
  pattern=${words[0]-} runs=${words[1]-} flags=("${words[@]:2}")
  while [[ $runs == */ ]]; do runs=${runs%/}; done
  if [[ -z $pattern || -z $runs || $runs == -* ]]; then
    echo "usage: $0 [--dry-run] PATTERN RUNS [FLAG]..." >&2
    exit 2
  fi
  names=$(python -m experiments names "$pattern") || exit
  mapfile -t configs <<<"$names"
  use "${configs[0]}" && "${command[@]:0:3}" --only_check_args "${command[@]:3}" || exit
}

# Sets the training command of an experiment, its work directory, and a name for the cloud, which
# allows neither "_" nor ".". Kubernetes adds up to 14 characters to it, and allows 63. The number at
# its end is different for every RUNS. All hosts share compiled programs, because only process 0
# writes them.
use() {
  local sum
  workdir=$runs/${1#*:}
  command=(python -m experiments.train "--config=$1" "--workdir=$workdir"
    "--compilation-cache=$runs/.compiled" "${flags[@]}")
  name=${runs##*/}-${1#*:}
  sum=$(cksum <<<"$workdir")
  printf -v name '%.44s-%04x' "${name//[_.]/-}" "$((${sum%% *} & 65535))"
}

# check_cloud VARIABLE ADVICE: ends with status 2 unless VARIABLE is set, RUNS is in a bucket, and the
# cloud allows all names.
check_cloud() {
  [ -n "${!1-}" ] || { echo "$1 is not set; $2" >&2; exit 2; }
  if [[ $runs != gs://?*/?* ]]; then
    echo "RUNS is $runs, which is lost with the slice; use a bucket, such as gs://BUCKET/seed0" >&2
    exit 2
  fi
  local config
  for config in "${configs[@]}"; do
    use "$config"
    if ! [[ $name =~ ^[a-z][-a-z0-9]*$ ]]; then
      echo "the cloud does not allow the name $name; the last part of RUNS must start with a" \
        "lower-case letter and have only such letters, digits, '-', '_' and '.'" >&2
      exit 2
    fi
  done
}

# Prints a command such that a shell reads the same words.
quoted() { local text; printf -v text '%q ' "$@"; echo "${text% }"; }
