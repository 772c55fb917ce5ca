#!/bin/sh
# On each machine, on a network that you trust:
# HOST=ADDRESS_OF_ONE MACHINES=2 GPUS=8 sh torchrun.sh RECIPE --out FOLDER
# FOLDER lies on a disk that all machines share. Prompts and noise are those of one process.
: "${HOST:?must be the address of one of the machines}"
exec torchrun --nnodes "${MACHINES:-1}" --nproc-per-node "${GPUS:-1}" --rdzv-backend c10d \
  --rdzv-endpoint "$HOST:${PORT:-29500}" --rdzv-id "${RUN:-mvczigal}" \
  -m mvczigal_ref train "$@"
