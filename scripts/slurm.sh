#!/usr/bin/env bash
# One run on every GPU of a SLURM allocation. The output folder must be on a shared file system.
#
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm.sh configs/infinity_2b.yaml prompts=mine.jsonl
#
# Submit it with the environment active, or name its python: PYTHON=.venv/bin/python sbatch …
# Submit it again after a time limit or a dead node, with any number of nodes: the run goes on.
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@60
set -euo pipefail

: "${SLURM_JOB_ID:?submit this script with sbatch}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node must not meet
exec srun --kill-on-bad-exit=0 "${PYTHON:-python3}" -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$port" \
  -m stepvar_patch.cli generate "$@"
