#!/usr/bin/env bash
# A job as a Slurm array: prepare it here, run its tasks as SHARDS array tasks, commit when all of them
# have ended well. The spool (and the dataset) must be where every node sees it: a shared file system or
# an object store.
#
#     SPEC=spec.json SPOOL=/shared/spool SHARDS=16 ./submit.sh [sbatch options, for example -p short]
#
# Submitted again, it goes on with the same spool: what has a result is not run again.
set -euo pipefail
: "${SPEC:?a spec, a JSON file}" "${SPOOL:?a folder or an object-store URI}"
export SPOOL SHARDS="${SHARDS:-4}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

lance-tasks inspect "$SPOOL" >/dev/null 2>&1 || lance-tasks prepare "$SPEC" --spool "$SPOOL"
lance-tasks plan "$SPOOL"
array=$(sbatch --parsable --array="0-$((SHARDS - 1))" --export=ALL "$@" "$here/run.sh")
commit=$(sbatch --parsable --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes \
    --export=ALL "$@" "$here/commit.sh")
echo "tasks: job ${array%%;*}, commit: job ${commit%%;*}"
