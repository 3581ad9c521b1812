#!/usr/bin/env bash
# sbatch --array=1-N slurm/build_shards.sh OPTIONS: N tasks build one shard folder together. OPTIONS are those of
# `python -m shards build`.
#
#   sbatch --array=1-16 --cpus-per-task=8 slurm/build_shards.sh --dataset koniq10k --root /data/KonIQ-10k --out /data/koniq10k
#
# Task i of N writes the shards of share i/N, and whichever task finds that all shards are there finishes the folder: there
# is no last job that would wait in the queue, or wait for ever because one task failed. Two that end together may both
# finish it; they write the same bytes. Should the last task be killed before it has finished, or a file server be slow to
# show it the others' files, give the same line again, or run the same `python -m shards build` by hand: what is complete
# is not written again. So too after a bad picture was mended, or with another number of tasks.
#
# VENV names the virtual environment (default .venv); what this site needs stands where slurm/train.sh says.
#SBATCH --job-name=build-shards
#SBATCH --ntasks=1
#SBATCH --output=slurm-%x-%A-%a.log
#SBATCH --open-mode=append
# A task may be killed at any moment, so Slurm may put it back into the queue as it likes.
#SBATCH --requeue
# Before the time limit Slurm sends USR1 to this shell alone (B:), up to 60 s earlier than asked for.
#SBATCH --signal=B:USR1@30
set -eo pipefail
# shellcheck source=launch/site_settings.sh
source launch/site_settings.sh
set -u

# With gaps in the array the shares of the missing tasks would be written by nobody.
if [ $# -eq 0 ] || [ "${SLURM_ARRAY_TASK_MIN:-}" != 1 ] || [ "$SLURM_ARRAY_TASK_MAX" != "$SLURM_ARRAY_TASK_COUNT" ]; then
    echo "usage: sbatch --array=1-N slurm/build_shards.sh OPTIONS, those of \`python -m shards build\`; the array begins with 1 and has no gaps" >&2
    exit 2
fi
bin=${VENV:-.venv}/bin
cores=${SLURM_CPUS_PER_TASK:-1}

# A share that takes longer than the time limit goes on in another turn; Slurm ends this one. (SLURM_JOB_ID of the last task means the
# whole array.)
if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    trap 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' USR1
fi

export SLURM_EXPORT_ENV=ALL # this environment, whatever sbatch was told to hand on
# An option --workers of the user comes last and wins.
srun --ntasks=1 --cpus-per-task="$cores" "${srun_options[@]}" "${container[@]}" "$bin/python" -m shards build \
    --share "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers "$cores" "$@" &
step=$!

# A trapped signal ends `wait` early, so wait again until the step has really ended.
code=0
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done
exit "$code"
