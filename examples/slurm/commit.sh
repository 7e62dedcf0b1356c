#!/usr/bin/env bash
# Commit a spool's job, after its tasks; exactly once, however often this runs.
#SBATCH --job-name=lance-tasks-commit
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=00:30:00
#SBATCH --requeue
set -euo pipefail
exec lance-tasks commit "$SPOOL" --retries 5
