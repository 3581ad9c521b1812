#!/usr/bin/env bash
# One training per split and seed, as one job array: task t trains split t / SEEDS with seed t % SEEDS, as slurm/train.sh does.
#
#   bash slurm/sweep.sh CONFIG [key=value ...]                        lists the tasks, and how to submit them
#   sbatch --array=0-29 --gpus-per-node=1 --cpus-per-task=8 slurm/sweep.sh CONFIG [key=value ...]
#
# Each has a run folder of its own, SPLIT-seed-SEED in the run.folder of CONFIG. The same line once more goes on with what is
# unfinished; what has finished ends at once. `python -m dist_train compare` compares what came out.
#
#   SPLITS  the names of split tables (all of data.shards but those that end in -no-val, which are for another protocol)
#   SEEDS   the seeds (0 1 2)
#
# and those of slurm/train.sh. An array may leave tasks out (--array=3,7) or run a few at a time (--array=0-29%4).
#SBATCH --job-name=sweep
#SBATCH --output=slurm-%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -eo pipefail
# shellcheck source=launch/site_settings.sh
source launch/site_settings.sh
set -u

[ $# -ge 1 ] && [ "$1" != --help ] || {
    echo "usage: bash slurm/sweep.sh CONFIG [key=value ...], from the root of the repository; its first lines say more" >&2
    exit 2
}
python=("${container[@]}" "${VENV:-.venv}/bin/python")

folder=$("${python[@]}" -m dist_train folder "$@")
names=$("${python[@]}" -c '
import sys
from pathlib import Path
from dist_train.config import load_config
from shards.manifest import Shards, ShardError

given, config, *settings = sys.argv[1:]
data = load_config(Path(config), settings).data
if data.sets:
    sys.exit("sweep.sh: data.sets gives each data set a split of its own, so there is none to sweep over: submit slurm/train.sh for each choice of them")
if not given and data.shards is None:
    sys.exit("sweep.sh: needs data.shards, or SPLITS")
try:
    print(given or " ".join(name for name in Shards(data.shards).split_names() if not name.endswith("-no-val")))
except ShardError as error:
    sys.exit(f"error: {error}")' "${SPLITS:-}" "$@")
read -r -a splits <<<"$names"
read -r -a seeds <<<"${SEEDS:-0 1 2}"
tasks=$((${#splits[@]} * ${#seeds[@]}))

if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    for ((task = 0; task < tasks; task++)); do
        echo "$task: $folder/${splits[task / ${#seeds[@]}]}-seed-${seeds[task % ${#seeds[@]}]}"
    done
    for name in SPLITS SEEDS VENV PROCESSES_PER_NODE MAX_RESTARTS MAX_LOSSES DIST_TRAIN_SITE; do
        if [ -n "${!name:-}" ]; then printf '%s=%q ' "$name" "${!name}"; fi
    done
    printf 'sbatch --array=0-%d slurm/sweep.sh' "$((tasks - 1))"
    printf ' %q' "$@"
    echo
    exit
fi
if [ "$SLURM_ARRAY_TASK_ID" -ge "$tasks" ]; then
    echo "sweep.sh: ${#splits[@]} splits and ${#seeds[@]} seeds are tasks 0 to $((tasks - 1)); there is no task $SLURM_ARRAY_TASK_ID" >&2
    exit 2
fi
split=${splits[SLURM_ARRAY_TASK_ID / ${#seeds[@]}]}
seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}
exec bash slurm/train.sh "$@" "data.split=$split" "run.seed=$seed" "run.folder=$folder/$split-seed-$seed"
