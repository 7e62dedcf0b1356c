#!/usr/bin/env bash
# One shard of a spool's tasks; submit.sh submits it as an array.
#SBATCH --job-name=lance-tasks-run
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail

# Half of the memory that Slurm gives: what Lance holds beside it is not counted. 0 = find out.
budget=$((${SLURM_MEM_PER_NODE:-0} * 1024 * 1024 / 2))
status=0
srun lance-tasks run "$SPOOL" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" \
    --jobs "${SLURM_CPUS_PER_TASK:-0}" --memory-budget "$budget" || status=$?

# 75: stopped by a signal (preemption, the time limit) or by storage that failed for a while. The
# results so far are in the spool.
if [ "$status" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
