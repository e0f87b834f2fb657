#!/bin/bash
# The same command on each machine, which share the folder `runs`:
#   HEAD=first-machine NODES=2 GPUS=8 bash examples/torchrun.sh
# A group in which a process dies is started again from the last checkpoint, three times at most.
set -eu

# What torchrun passes on to its processes: they save, and end.
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1,SIGUSR2

exec torchrun \
    --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id impresa \
    -m impresa train clip --output-dir runs/clip --resume losses.gather_distributed=true
