#!/usr/bin/env bash
# sbatch slurm/doctor.sh CONFIG [key=value ...]: are the nodes of this job fit for the training? Exit status 0 yes, 1 no; the log says why.
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 slurm/doctor.sh configs/koniq10k_resnet50.yaml data.shards=/data/koniq10k
#
# To be asked for the same nodes as slurm/train.sh, from the root of the repository, with the same settings. It trains nothing. A
# training that begins only if the nodes are fit, on the same ones:
#
#   nodes=(--nodes=2 --gpus-per-node=4 --cpus-per-task=32 --nodelist='node[1-2]')
#   doctor=$(sbatch --parsable "${nodes[@]}" slurm/doctor.sh CONFIG)
#   sbatch --dependency="afterok:$doctor" --kill-on-invalid-dep=yes "${nodes[@]}" slurm/train.sh CONFIG
#
# The variables are those of slurm/train.sh, and one more:
#
#   PATIENCE  seconds in which all nodes must come (120)
#SBATCH --job-name=doctor
#SBATCH --output=slurm-%x-%j.log
#SBATCH --no-requeue
set -eo pipefail
# shellcheck source=launch/site_settings.sh
source launch/site_settings.sh
set -u

[ $# -ge 1 ] && [ "$1" != --help ] && [ -n "${SLURM_JOB_ID:-}" ] || {
    echo "usage: sbatch slurm/doctor.sh CONFIG [key=value ...], from the root of the repository; its first lines say more" >&2
    exit 2
}
patience=${PATIENCE:-120}
# shellcheck source=slurm/allocation.sh
source slurm/allocation.sh
take_nodes "$SLURM_JOB_NUM_NODES"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

# As in slurm/train.sh. Each node says that it is there, so that one which hangs is known by its silence.
code=0
# shellcheck disable=SC2016 # each node's own shell reads $SLURMD_NODENAME
srun "${one_per_node[@]}" --kill-on-bad-exit=1 --wait=60 "${srun_options[@]}" "${container[@]}" \
    bash -c 'echo "== $SLURMD_NODENAME is here" >&2 && exec "$@"' here \
    "${VENV:-.venv}/bin/torchrun" --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$processes" \
    --rdzv-backend=bound_c10d --rdzv-endpoint="$meeting" --rdzv-id="$SLURM_JOB_ID.doctor" \
    --rdzv-conf="join_timeout=$patience" --module dist_train doctor "$@" --wait "$patience" || code=$?
if [ "$code" -ne 0 ]; then
    echo "== job $SLURM_JOB_ID: not fit, as said above. Without a verdict not all of $SLURM_JOB_NODELIST came within $patience s:" \
        "look for the node that has not said it is here" >&2
fi
exit "$((code > 0))"
