#!/usr/bin/env bash
# A run on a TPU VM slice of one or many machines, with gcloud:
#
#   launch/tpu_vm.sh create NAME                      rents the slice
#   launch/tpu_vm.sh setup NAME                       installs msfl and mounts the bucket as ~/bucket, on every machine
#   launch/tpu_vm.sh run NAME pretrain --config ...   starts `msfl pretrain ...` on every machine, in the background
#   launch/tpu_vm.sh status NAME                      state of the slice, exit codes of the run, last lines of its log
#   launch/tpu_vm.sh stop NAME                        asks the run to save and stop
#   launch/tpu_vm.sh resume NAME pretrain --config .. after a preemption: rents again where needed, sets up, runs the same command
#   launch/tpu_vm.sh delete NAME                      gives the slice back
#
# From the environment:
#
#   ZONE         as europe-west4-b
#   ACCELERATOR  as v5litepod-16
#   VERSION      of the machines' image, as v2-alpha-tpuv5-lite
#   WHEEL        msfl_jax-*.whl, made by `pip wheel --no-deps .`
#   BUCKET       name of a bucket for checkpoints and data, without gs://
#   SPOT         1 rents what may be taken away at any time
#
# Inside the slice paths begin with bucket/ : relative to the home directory, in which the run starts.
set -euo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

require() { # name, value, pattern, what is expected
  [[ $2 =~ ^$3$ ]] || refuse "$1 is '$2'; expected $4"
}

setting() { # name of a variable, pattern, what is expected
  require "$1" "${!1:-}" "$2" "$3"
}

check_arguments() {
  [[ $# -gt 0 ]] || refuse "no arguments for msfl; expected: launch/tpu_vm.sh run NAME pretrain --config NAME --workdir bucket/DIR ..."
  local argument
  for argument in "$@"; do
    require ARGUMENT "$argument" '[A-Za-z0-9_./:=,@%+-]+' "letters, digits and _./:=,@%+- alone; rename it"
  done
}

check_create() {
  setting ACCELERATOR '[a-z0-9-]+' "a type of slice, as v5litepod-16"
  setting VERSION '[a-z0-9.-]+' "a version of the machines' image, as v2-alpha-tpuv5-lite"
}

check_setup() {
  setting WHEEL '[A-Za-z0-9_./+-]+\.whl' "the wheel of msfl_jax, made by: pip wheel --no-deps ."
  [[ -f $WHEEL ]] || refuse "WHEEL is '$WHEEL'; no such file, make it with: pip wheel --no-deps ."
  setting BUCKET '[a-z0-9][a-z0-9_.-]*' "the name of a bucket, without gs://"
}

slice() { # command of gcloud, more arguments
  local command=$1
  shift
  gcloud compute tpus tpu-vm "$command" "$name" --zone "$ZONE" "$@"
}

everywhere() { # shell command
  slice ssh --worker=all --command "$1"
}

state() { # READY, PREEMPTED, ... or MISSING
  slice describe --format 'value(state)' 2>/dev/null || echo MISSING
}

create() {
  local spot=()
  [[ ${SPOT:-} != 1 ]] || spot=(--spot)
  slice create --accelerator-type "$ACCELERATOR" --version "$VERSION" "${spot[@]}"
}

setup() {
  gcloud compute tpus tpu-vm scp "$WHEEL" "$name:" --zone "$ZONE" --worker=all
  # The images have Python 3.10; Ubuntu has 3.11 beside it.
  everywhere "set -e
    command -v gcsfuse >/dev/null || {
      echo \"deb https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
    }
    sudo apt-get update -qq
    sudo apt-get install -qqy gcsfuse python3.11-venv
    [ -d venv ] || python3.11 -m venv venv
    venv/bin/pip install -q '$(basename "$WHEEL")[tpu]'
    mkdir -p bucket
    mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit 1000000 '$BUCKET' bucket"
}

run() {
  local words
  words=$(printf '%q ' "$@")
  # The log and the exit code stay on each machine; `stop` signals the run itself, not the shell around it.
  everywhere "[ ! -f run.pid ] || ! kill -0 \$(cat run.pid) 2>/dev/null || { echo 'error: a run is there already; stop it first' >&2; exit 2; }
    rm -f run.exit
    export MSFL_XLA_PRESET='${MSFL_XLA_PRESET:-tpu}'
    nohup setsid sh -c 'venv/bin/msfl $words >>run.log 2>&1 & echo \$! >run.pid; wait \$!; echo \$? >run.exit' >/dev/null 2>&1 </dev/null &"
}

status() {
  state
  [[ $(state) == READY ]] || return 0
  everywhere "echo \"\$(hostname): exit code \$(cat run.exit 2>/dev/null || echo none yet)\""
  slice ssh --worker=0 --command 'tail -n 5 run.log'
}

resume() {
  local found
  found=$(state)
  case $found in
    READY) ;;
    MISSING) create ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED)
      slice delete --quiet
      create
      ;;
    *) refuse "the slice is $found; expected READY, PREEMPTED or none: wait, or delete it" ;;
  esac
  setup
  run "$@"
}

[[ $# -ge 2 ]] || refuse "expected: launch/tpu_vm.sh create|setup|run|status|stop|resume|delete NAME ..."
action=$1 name=$2
shift 2
require NAME "$name" '[a-z]([a-z0-9-]{0,61}[a-z0-9])?' "small letters, digits and -"
setting ZONE '[a-z0-9-]+' "a zone, as europe-west4-b"
require MSFL_XLA_PRESET "${MSFL_XLA_PRESET:-tpu}" '[a-z]+' "the name of a preset, as tpu"
case $action in
  create)
    check_create
    create
    ;;
  setup)
    check_setup
    setup
    ;;
  run)
    check_arguments "$@"
    run "$@"
    ;;
  resume)
    check_arguments "$@"
    check_create
    check_setup
    resume "$@"
    ;;
  status) status ;;
  stop) everywhere "kill -TERM \$(cat run.pid)" ;;
  delete) slice delete --quiet ;;
  *) refuse "'$action' is nothing to do; expected create, setup, run, status, stop, resume or delete" ;;
esac
