#!/usr/bin/env bash
# sbatch slurm/train.sh CONFIG [key=value ...]: one torchrun per node, one process per GPU.
#
#   sbatch --nodes=2 --gpus-per-node=4 slurm/train.sh configs/koniq10k_resnet50.yaml data.shards=/data/koniq10k
#
# VENV names the virtual environment (default .venv); PROCESSES_PER_NODE overrides the number of GPUs, for CPU nodes.
#SBATCH --job-name=dist-train
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# 120 s before the time limit Slurm sends USR1 to this shell alone (B:); Slurm may be up to 60 s early.
#SBATCH --signal=B:USR1@120
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: sbatch slurm/train.sh CONFIG [key=value ...]" >&2; exit 2; }
bin=${VENV:-.venv}/bin
processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}

# The run folder that CONFIG and the settings name: there the stop file goes, and there status.json tells how it ended.
folder=$("$bin/python" -m dist_train folder "$@")

# All processes meet on the first node. The node list is quoted: unquoted, its brackets would be a file pattern.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((10000 + SLURM_JOB_ID % 50000))

# Tells the training to save and end at its next step. A file reaches every node; a signal would kill torchrun.
time_is_up=no
trap 'time_is_up=yes; mkdir -p "$folder"; touch "$folder/stop"' USR1

# srun does not take over the CPUs per task that sbatch was given.
srun --kill-on-bad-exit=1 --wait=60 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$bin/torchrun" \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$processes" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID" \
    --module dist_train train "$@" "run.processes=$((SLURM_JOB_NUM_NODES * processes))" &
step=$!

# A trapped signal ends `wait` early, so wait again until the step has really ended.
code=0
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done

# status.json tells how it ended, not the exit code: torchrun turns every code into 1. Only a run that ended well because its
# time was up goes on later; one that fails, or that a person stopped, does not. (Preempted jobs are requeued by Slurm itself.)
status=$("$bin/python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$folder/status.json" || echo "failed")
echo "run in $folder: $status"
if [ "$status" = unfinished ] && [ "$time_is_up" = yes ] && [ "$code" -eq 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
case $status in
    finished | "stopped early") exit 0 ;;
    unfinished) exit "$code" ;;
    *) exit "$((code > 0 ? code : 1))" ;;
esac
