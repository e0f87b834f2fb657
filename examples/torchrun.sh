#!/bin/bash
# The same command on each machine, which share the folder `runs`:
#   HEAD=first-machine NODES=2 GPUS=8 bash examples/torchrun.sh
# A group in which a process dies is started again from the last checkpoint, three times at most.
set -eu

# What torchrun passes on to its processes, which save and end; older releases read the second name.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1,SIGUSR2
export TORCHELASTIC_SIGNALS_TO_HANDLE=$PET_SIGNALS_TO_HANDLE
# The seconds that they have for it.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

exec torchrun \
    --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id impresa \
    -m impresa train clip --output-dir runs/clip --resume losses.gather_distributed=true
