#!/usr/bin/env bash
# A training on machines of a SLURM cluster, one torchrun on each. From the root of the checkout:
#
#   sbatch tools/train_slurm.sh --config-file projects/SSL/configs/prw.yaml SOLVER.IMS_PER_BATCH 16 SOLVER.BASE_LR 0.008
#
# Submitted again with --resume it goes on from the last checkpoint. Shortly before the time is over the training is
# asked to stop: it finishes its iteration and saves. All machines need the same OUTPUT_DIR and data.
#
#SBATCH --job-name=person_search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:${PORT:-29500}" \
    train_net.py "$@"
