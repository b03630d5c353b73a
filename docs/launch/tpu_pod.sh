#!/usr/bin/env bash
# Trains on every host of a TPU slice; run it again and the run goes on.
#
#   NAME=my-slice ZONE=us-central1-a RUN=/mnt/shared/runs/ddpm_cifar10 docs/launch/tpu_pod.sh
#
# Before the first time, on all hosts likewise: mount the shared disk that holds RUN, clone the
# repository to ~/gen_jax, and in it `pip install -e '.[tf,tpu]'`. The first host prepares the data
# beside RUN; TFDS_DATA_DIR names another place on that disk.
# More flags of main.py may follow: docs/launch/tpu_pod.sh --mode=evaluate
set -euo pipefail

printf -v flags '%q ' \
  --config="${CONFIG:-configs/ddpm_cifar10.py}" \
  --workdir="${RUN:?the folder of the run, on a disk that all hosts mount}" \
  --config.data.tfds_dir="${TFDS_DATA_DIR:-$(dirname "$RUN")/tfds}" \
  --coordinator=auto \
  "$@"

exec gcloud compute tpus tpu-vm ssh "${NAME:?the name of the TPU slice}" \
  --zone="${ZONE:?its zone}" \
  --worker=all \
  --command="cd ~/gen_jax && python3 -u main.py $flags"
