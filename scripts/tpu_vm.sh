#!/usr/bin/env bash
# A training on Cloud TPU hosts, from creation to deletion: docs/tpu_vm.md.
#
#   scripts/tpu_vm.sh [--dry-run] create|install|copy|train|watch|status|delete
#
# Settings come from the environment: NAME, ZONE, TYPE, VERSION, SPOT, PROJECT,
# DISK, DATA and WORKDIR. --dry-run prints the commands instead.
set -euo pipefail

NAME=${NAME:-sextet}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-8}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-1}
PROJECT=${PROJECT:-}
DATA=${DATA:-/mnt/sextet/data}
WORKDIR=${WORKDIR:-/mnt/sextet/runs}

dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi

say() { printf '%s\n' "$*" >&2; }

usage() {
  say 'usage: scripts/tpu_vm.sh [--dry-run] COMMAND'
  say '  create               make the TPU hosts (SPOT=1: the cheaper kind)'
  say '  install              this checkout and its packages, on every host'
  say '  copy FOLDER          a folder of records to DATA, on every host'
  say '  train ARGUMENTS...   train.py on all hosts, again after a preemption'
  say '  watch RUN            follow the log of a run'
  say '  status               whether the hosts are there'
  say '  delete               take them down; this ends the cost'
  exit 2
}

# Runs a command, or prints it.
run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

place=(--zone="$ZONE")
if [ -n "$PROJECT" ]; then place+=(--project="$PROJECT"); fi

tpu() { run gcloud compute tpus tpu-vm "$@" "${place[@]}"; }

# Runs a shell command on every host.
everywhere() { tpu ssh "$NAME" --worker=all --command="$1"; }

create() {
  local kind=()
  if [ "$SPOT" = 1 ]; then kind=(--spot); fi
  tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" \
    "${kind[@]}"
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  run git archive --format=tar.gz --output="$archive" HEAD
  tpu scp "$archive" "$NAME:sextet.tar.gz" --worker=all
  rm -f "$archive"
  everywhere 'mkdir -p sextet && tar -xzf sextet.tar.gz -C sextet &&
    cd sextet && make setup &&
    .venv/bin/pip install --quiet -c constraints.txt "jax[tpu]" gcsfs'
}

copy() {
  [ $# -eq 1 ] || usage
  case $1 in
    gs://*) everywhere "sudo mkdir -p '$DATA' && sudo chown \$USER '$DATA' &&
      gcloud storage rsync --recursive '$1' '$DATA'" ;;
    *) everywhere "sudo mkdir -p '$DATA' && sudo chown \$USER '$DATA'"
      tpu scp --recurse "$1" "$NAME:$DATA" --worker=all ;;
  esac
}

# Starts the same command on all hosts until it has ended everywhere: 0 is
# done, 2 a mistake that trying again cannot fix (75: it may).
train() {
  [ $# -ge 1 ] || usage
  local words code=0
  printf -v words '%q ' "$@"
  while true; do
    code=0
    everywhere "cd sextet && .venv/bin/python train.py $words" || code=$?
    if [ -n "$dry_run" ] || [ "$code" = 0 ] || [ "$code" = 2 ]; then
      return "$code"
    fi
    say "ended with $code; the hosts are $(state); going on in a minute"
    sleep 60
    if [ "$(state)" != READY ]; then
      tpu delete "$NAME" --quiet || true
      until create; do
        say 'no capacity; trying again in five minutes'
        sleep 300
      done
      install
      say "hosts are new: run 'copy' again if the data lay on their disks"
    fi
  done
}

state() {
  gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" \
    --format='value(state)' 2>/dev/null || echo GONE
}

watch() {
  [ $# -eq 1 ] || usage
  case $WORKDIR in  # In a bucket it is written anew with each checkpoint.
    gs://*) while run gcloud storage cat -r -2000 "$WORKDIR/$1/metrics.jsonl"
      [ -z "$dry_run" ]; do sleep 30; done ;;
    *) tpu ssh "$NAME" --worker=0 \
      --command="tail -F '$WORKDIR/$1/metrics.jsonl'" ;;
  esac
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  create | install | copy | train | watch) "$command" "$@" ;;
  status) tpu describe "$NAME" --format='value(state)' ;;
  delete) tpu delete "$NAME" --quiet ;;
  *) usage ;;
esac
