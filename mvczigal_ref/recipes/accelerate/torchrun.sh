#!/bin/sh
# On each machine R = 0, 1, ...; HOST is machine 0, on a network that you trust:
# HOST=ADDRESS MACHINES=2 MACHINE=R GPUS=8 sh torchrun.sh RECIPE --out FOLDER
# FOLDER lies on a disk that all machines share. Prompts and noise are those of one process.
# Without GPUs set GLOO_SOCKET_IFNAME, too, to this machine's interface to that network.
: "${HOST:?must be the address of machine 0}"
[ "${MACHINES:-1}" = 1 ] || : "${MACHINE:?must be 0 on the machine HOST, 1, 2, ... on the others}"
exec torchrun --nnodes "${MACHINES:-1}" --node-rank "${MACHINE:-0}" \
  --nproc-per-node "${GPUS:-1}" --master-addr "$HOST" --master-port "${PORT:-29500}" \
  -m mvczigal_ref train "$@"
