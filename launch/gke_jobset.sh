#!/usr/bin/env bash
# Prints the JobSet of one run on Google Kubernetes Engine, from launch/gke_jobset.yaml; starts nothing:
#
#   launch/gke_jobset.sh tpu NAME IMAGE BUCKET pretrain --config mimic_vit_b16 --workdir /bucket/runs/b16 ... | kubectl apply -f -
#   launch/gke_jobset.sh gpu NAME IMAGE BUCKET pretrain ...
#
# The bucket is seen as /bucket by every pod. From the environment:
#
#   HOSTS            pods, one per machine; default 4 (tpu), 2 (gpu)
#   CHIPS            chips or GPUs per machine; default 4 (tpu), 8 (gpu)
#   ACCELERATOR      label of the node pool; default tpu-v5p-slice, nvidia-h100-80gb
#   TOPOLOGY         of the slice, HOSTS times CHIPS chips; default 2x2x4
#   SERVICE_ACCOUNT  of Kubernetes, which may use the bucket; default msfl
set -euo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

require() { # name, value, pattern, what is expected
  [[ $2 =~ ^$3$ ]] || refuse "$1 is '$2'; expected $4"
}

[[ $# -ge 5 ]] || refuse "expected: launch/gke_jobset.sh tpu|gpu NAME IMAGE BUCKET ARGUMENTS of msfl ..."
pool=$1 name=$2 image=$3 bucket=$4
shift 4
case $pool in
  tpu) document=0 hosts=${HOSTS:-4} chips=${CHIPS:-4} accelerator=${ACCELERATOR:-tpu-v5p-slice} ;;
  gpu) document=1 hosts=${HOSTS:-2} chips=${CHIPS:-8} accelerator=${ACCELERATOR:-nvidia-h100-80gb} ;;
  *) refuse "'$pool' is no kind of node pool; expected tpu or gpu" ;;
esac
topology=${TOPOLOGY:-2x2x4}
service_account=${SERVICE_ACCOUNT:-msfl}

label='[a-z0-9]([a-z0-9-]*[a-z0-9])?'
require NAME "$name" "[a-z]([a-z0-9-]{0,38}[a-z0-9])?" "up to 40 small letters, digits and -"
require IMAGE "$image" '[A-Za-z0-9][A-Za-z0-9_./:@-]*' "an image, as in europe-docker.pkg.dev/PROJECT/REPOSITORY/msfl:1"
require BUCKET "$bucket" '[a-z0-9][a-z0-9_.-]*' "the name of a bucket, without gs://"
require HOSTS "$hosts" '[1-9][0-9]*' "a number"
require CHIPS "$chips" '[1-9][0-9]*' "a number"
require ACCELERATOR "$accelerator" "$label" "the label of a node pool"
require TOPOLOGY "$topology" '[1-9][0-9]*(x[1-9][0-9]*)+' "chips along each axis, as in 2x2x4"
require SERVICE_ACCOUNT "$service_account" "$label" "the name of a Kubernetes service account"
if [[ $pool == tpu ]]; then
  [[ $((${topology//x/*})) -eq $((hosts * chips)) ]] ||
    refuse "TOPOLOGY is $topology, $((${topology//x/*})) chips; expected HOSTS times CHIPS, $hosts times $chips"
fi

arguments=""
for argument in "$@"; do
  require ARGUMENT "$argument" '[A-Za-z0-9_./:=,@%+-]+' "letters, digits and _./:=,@%+- alone; rename it"
  arguments+="${arguments:+, }\"$argument\""
done

text=$(awk -v want="$document" '/^---$/ { found++; next } found + 0 == want' "$(dirname "$0")/gke_jobset.yaml")
fill() { # placeholder, value
  text=${text//"\${$1}"/"$2"}
}
fill NAME "$name"
fill IMAGE "$image"
fill BUCKET "$bucket"
fill HOSTS "$hosts"
fill CHIPS "$chips"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill SERVICE_ACCOUNT "$service_account"
fill ARGUMENTS "[$arguments]"
printf '%s\n' "$text"
