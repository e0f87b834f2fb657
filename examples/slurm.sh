#!/bin/bash
# Two machines with eight GPUs each, one process for each GPU:  sbatch examples/slurm.sh
# Two minutes before the time is over, or when the job is preempted, the run saves and exits with 75; the job then
# queues itself again and goes on from there.
#SBATCH --job-name=impresa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --output=slurm-%j.log

run=runs/clip-$SLURM_JOB_ID # a job that is queued again keeps its number

# The shell gets none of the signals; it waits for the run.
srun impresa train clip --output-dir "$run" --resume \
    losses.gather_distributed=true trainer.devices=auto trainer.logging.save_interval=500
code=$?

if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
