# What slurm/train.sh and slurm/doctor.sh, which source this, make of the allocation of their job.
#
#   processes     on each node: one per GPU, or PROCESSES_PER_NODE
#   cores         of a node, all that the job has there
#   hosts, first  the names of the nodes, one a line, and the first of them, on which this shell runs
#   meeting       where all processes meet: HOST:PORT, the host being the address of the first node where only one can be meant
#
# and take_nodes N, which sets
#
#   world         the number of processes in all, when N nodes are taken
#   one_per_node  the options of srun for one launcher on each of the first N nodes, with all that the job has of it

# shellcheck shell=bash disable=SC2034,SC2154 # what is set here is for those scripts, which have set container
details=$(scontrol show job --details "$SLURM_JOB_ID") || true # a controller that is restarting ends no job
# A job without GPUs keeps the number of the job from which it was submitted.
if [[ $details =~ GRES= ]] && ! [[ $details =~ GRES=[^[:space:]]*gpu ]]; then unset SLURM_GPUS_ON_NODE; fi
processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
# Each node runs as many processes as the first, so each needs its GPUs; sbatch --gpus=8 may give one node 5 and another 3.
if [[ $details =~ TresPerJob=[^\ ]*gpu[^\ ]*:([0-9]+) ]] &&
    [ "${BASH_REMATCH[1]}" -ne $((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-0})) ]; then
    echo "error: the ${BASH_REMATCH[1]} GPUs of job $SLURM_JOB_ID are not spread evenly, ${SLURM_GPUS_ON_NODE:-0} are on the first of" \
        "$SLURM_JOB_NUM_NODES nodes; ask for them with sbatch --gpus-per-node" >&2
    exit 1
fi
# Of nodes with different numbers of cores the least: 8(x2),4 is two nodes of 8 and one of 4.
cores=$(tr ',' '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-1}" | sed 's/(.*//' | sort --numeric-sort | sed -n 1p)
if [ "$cores" -lt $((2 * processes)) ]; then
    echo "== job $SLURM_JOB_ID: $cores core(s) of a node are little for $processes process(es) and their loader workers; sbatch --cpus-per-task asks for more" >&2
fi

# The node list is quoted: unquoted, its brackets would be a file pattern.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*} # no `head`: it would end before a long list does, and this script with it

# An address, because other nodes may know the first by another of its addresses than that at which it listens.
address=$first
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    address=$("${container[@]}" "${VENV:-.venv}/bin/python" -m dist_train.addresses "$first") || address=$first
fi
# Ports from 32768 on are those that the kernel gives away. Where somebody listens already, torchrun would wait for an answer for ever.
port=$((10000 + SLURM_JOB_ID % 20000))
bare=${address//[\[\]]/} # bash wants an IPv6 address without brackets
while (exec 3<>"/dev/tcp/localhost/$port" || exec 3<>"/dev/tcp/$first/$port" || exec 3<>"/dev/tcp/$bare/$port") 2>/dev/null; do
    echo "== job $SLURM_JOB_ID: port $port of $first is taken, so the next one is tried" >&2
    port=$((port + 1))
done
meeting=$address:$port

# srun takes from the environment how sbatch was asked, also that of another job from which this one was submitted, and refuses some of it
# for a step of one task per node. This one has all cores, memory and GPUs of the job, whatever they were asked by, and this environment,
# whatever sbatch was told to hand on (--export=NONE).
unset SLURM_CPUS_PER_GPU SLURM_CPU_BIND SLURM_GPUS SLURM_GPUS_PER_TASK SLURM_GPUS_PER_SOCKET SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_TRES \
    SLURM_NTASKS_PER_NODE SLURM_TRES_PER_TASK SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE
export SLURM_EXPORT_ENV=ALL
take_nodes() {
    world=$(($1 * processes))
    # It is srun that is told, not sbatch: there --ntasks-per-node would make one node of --nodes=1-4.
    one_per_node=(--nodes="$1" --relative=0 --ntasks="$1" --ntasks-per-node=1 --cpus-per-task="$cores" --mem=0
        ${SLURM_GPUS_ON_NODE:+--gpus-per-node="$SLURM_GPUS_ON_NODE"})
}
