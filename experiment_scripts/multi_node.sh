#!/usr/bin/env bash
# Train on several machines: `sbatch experiment_scripts/multi_node.sh [FLAGS]`, or by hand, on each machine:
# `NNODES=2 HEAD=first-machine experiment_scripts/multi_node.sh [FLAGS]` (see docs/training.md).
#SBATCH --job-name=prismatic
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

NNODES=${NNODES:-${SLURM_JOB_NUM_NODES:-1}}
NGPU=${NGPU:-${SLURM_GPUS_ON_NODE:-8}}
PORT=${PORT:-29500}
JOB=${JOB:-${SLURM_JOB_ID:-prismatic}}
PYTHON=${PYTHON:-python}
# The machine where the others find each other: the first of the allocation.
if [[ -z "${HEAD:-}" && -n "${SLURM_JOB_NODELIST:-}" ]]; then
    HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
HEAD=${HEAD:-localhost}

# Under SLURM one task a machine, each an agent of torchrun; by hand this is the agent of this machine.
agent=()
if [[ -n "${SLURM_JOB_ID:-}" ]]; then
    agent=(srun --kill-on-bad-exit=1)
fi
agent+=("$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --nproc-per-node "$NGPU" --max-restarts "${RESTARTS:-3}")
agent+=(--rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "$JOB")

"${agent[@]}" scripts/pretrain.py --model.type one-stage+7b --model.finetune_train_strategy fsdp-hybrid \
    --dataset.type webvid --checkpoint_interval 500 "$@"
