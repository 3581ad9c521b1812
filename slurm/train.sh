#!/usr/bin/env bash
# sbatch slurm/train.sh CONFIG [key=value ...]: one training on all nodes of the job, one process per GPU, until it has finished.
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 slurm/train.sh configs/koniq10k_resnet50.yaml data.shards=/data/koniq10k
#
# To be submitted from the root of the repository. --cpus-per-task is the cores of a node, for all its processes and their loader
# workers; many sites give one otherwise. The job may be preempted, reach its time limit or lose a node: it goes back into the queue and
# on from its checkpoint, on as many nodes as it then gets (--nodes=1-4). Where train.global_batch does not divide among the processes of
# all of them, it takes fewer, and the log says so.
# These variables change it:
#
#   VENV                the virtual environment (.venv)
#   PROCESSES_PER_NODE  for nodes without GPUs, on which it is one otherwise
#   MAX_RESTARTS        how often the job may start again (100)
#   MAX_LOSSES          after how many losses of a process or a node, without a new checkpoint in between, it does not (5)
#   DIST_TRAIN_SITE     a file of this site's own settings (~/.config/dist_train/site.sh), read by bash when it is there. Such as
#                           module load cuda
#                           export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0     # the interface between the nodes
#                           container=(apptainer exec --nv /images/torch.sif)        # goes before every command
#                           srun_options=(--network=...)                             # goes to srun
#SBATCH --job-name=dist-train
#SBATCH --output=slurm-%x-%j.log
# Every turn of the job writes to the end of the same log.
#SBATCH --open-mode=append
#SBATCH --requeue
# 120 s before the time limit Slurm sends USR1 to this shell alone (B:), up to 60 s earlier than asked for.
#SBATCH --signal=B:USR1@120
set -eo pipefail
# shellcheck source=launch/site_settings.sh
source launch/site_settings.sh
set -u # only now: the functions of many module systems use what they never set

[ $# -ge 1 ] && [ "$1" != --help ] && [ -n "${SLURM_JOB_ID:-}" ] || {
    echo "usage: sbatch slurm/train.sh CONFIG [key=value ...], from the root of the repository; its first lines say more" >&2
    exit 2
}
config=$1
shift
bin=${VENV:-.venv}/bin
# What scontrol calls this job. The number of the last task of an array means the whole array: to requeue that would take all tasks along.
# A job that was submitted from within another has the other's variables, so it is asked whose they are, and how often this one began again.
this_job=$SLURM_JOB_ID
task=${SLURM_ARRAY_JOB_ID:-}_${SLURM_ARRAY_TASK_ID:-}
if [ "$task" != _ ] && [[ $(scontrol show job "$task" 2>/dev/null) == "JobId=$SLURM_JOB_ID "* ]]; then this_job=$task; fi
restarts=${SLURM_RESTART_COUNT:-0}
if [[ $(scontrol show job "$this_job") =~ Restarts=([0-9]+) ]]; then restarts=${BASH_REMATCH[1]}; fi

# USR1, the time is up: a file asks the training to save and to end at its next step. A file reaches every node, while a signal
# would kill torchrun. What stands in the file, the training gives as the reason, which tells it from one by which a person stops the run.
# TERM, `scancel`, Slurm's own requeue or the time limit itself: Slurm has told every process of the job, and the training saves. Nothing is
# left to do here but to stay, so that what becomes of the job is Slurm's decision. Only after the time limit, which a long evaluation
# may miss, Slurm would not requeue, and it kills this shell soon (KillWait): so that is done at once.
# Bash runs these between its commands, and while it is in `wait`.
folder='' time_is_up=no ended_by_slurm=no by="the time limit of job $SLURM_JOB_ID"
# The file gets its name when the reason stands in it: an empty one would be a person's. A run that begins clears .*.part away, hence twice.
ask_to_stop() {
    time_is_up=yes
    if [ -n "$folder" ] && [ ! -e "$folder/stop" ]; then write_stop || write_stop || echo "== cannot write $folder/stop" >&2; fi
}
write_stop() { mkdir -p "$folder" && echo "$by" >"$folder/.stop.part" && mv "$folder/.stop.part" "$folder/stop"; }
end_with_slurm() {
    ended_by_slurm=yes
    if [ "$time_is_up" = yes ] && [[ $(scontrol show job "$this_job") == *Reason=TimeLimit* ]] && note_loss; then requeue || true; fi
}
trap ask_to_stop USR1
trap end_with_slurm TERM

# The run folder that CONFIG and the settings name: there the stop file goes, and there status.json tells how it ended.
# A wrong config ends the job here.
folder=$("${container[@]}" "$bin/python" -m dist_train folder "$config" "$@")
status_file=$folder/status.json
before=$(stat --printf='%i %y' "$status_file" 2>/dev/null || true)
# Whether a job, of this number, is still there, or Slurm cannot say.
is_running() {
    local said
    said=$(scontrol show job "$1" 2>&1) || true
    [[ ! $said =~ JobState=|"Invalid job id" || $said =~ JobState=(RUNNING|COMPLETING|SUSPENDED|STOPPED) ]]
}
# A turn that was killed may have left its stop file, of this job or of one that has ended since.
take_back() {
    if [[ $(cat "$folder/stop" 2>/dev/null) =~ ^the\ time\ limit\ of\ job\ ([0-9]+)$ ]] &&
        { [ "${BASH_REMATCH[1]}" = "$SLURM_JOB_ID" ] || ! is_running "${BASH_REMATCH[1]}"; }; then rm "$folder/stop"; fi
}
take_back
if [ "$time_is_up" = yes ]; then ask_to_stop; fi # it came before the folder had a name

# What was lost may be lost each time anew, as a process that needs too much memory is: so only so often without a new checkpoint in
# between. A line per loss tells of the job and of the checkpoints that there are, not of the newest step: after a damaged checkpoint it
# is an earlier one. Fails when that was the last loss, or when another job has the folder.
note_loss() {
    local loss losses=$folder/slurm-losses
    # A run that has not begun takes no folder with a stranger's file, and clears this one away.
    if [ ! -e "$status_file" ]; then mkdir -p "$folder" && losses=$folder/.slurm-losses.part; fi
    if is_of_another_job; then
        echo "== job $SLURM_JOB_ID: not put back into the queue, for the run folder is another job's ($(cat "$folder/lock"))" >&2
        return 1
    fi
    loss="$SLURM_JOB_ID $({ find "$folder/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f %i %T@\n' 2>/dev/null || true; } | sort | cksum)"
    echo "$loss" >>"$losses"
    if [ "$(grep -cxF "$loss" "$losses")" -lt "${MAX_LOSSES:-5}" ]; then return 0; fi
    echo "== job $SLURM_JOB_ID: so many losses without a new checkpoint are enough (MAX_LOSSES); the same sbatch line goes on"
    return 1
}
# Whether the folder's lock is another's. One of a Slurm job that has ended is stale, and nobody's.
is_of_another_job() {
    local other
    if [ ! -e "$folder/lock" ] || grep -qw "Slurm job $SLURM_JOB_ID" "$folder/lock"; then return 1; fi
    other=$(sed -n 's/.*Slurm job \([0-9]*\).*/\1/p' "$folder/lock" 2>/dev/null || true)
    [ -z "$other" ] || is_running "$other"
}
# Fails when the job has started often enough, or Slurm refuses; a controller that does not answer may only be restarting, so it is asked
# for a minute. (A `return` without a number would, in a trap, give what came before it.)
requeue() {
    local try said why="$restarts restarts are enough (MAX_RESTARTS)"
    if [ "$restarts" -lt "${MAX_RESTARTS:-100}" ]; then
        for ((try = 0; try < 12; try++)); do
            if said=$(scontrol requeue "$this_job" 2>&1); then return 0; fi
            echo "$said" >&2
            [[ $said == *"contact slurm controller"* ]] || break
            sleep 5
        done
        why="it could not be put back into the queue, for what scontrol says above"
    fi
    echo "== job $SLURM_JOB_ID: $why; the same sbatch line goes on"
    return 1
}
# What this turn's processes have written to the log, where they say why they fail.
this_turn() { if [ -f "$log" ]; then tail --bytes="+$((log_before + 1))" "$log"; fi; }
# Whether all errors that they tell of are of processes that are gone, silent or have not come (srun --label puts numbers before them), or
# there is none but torchrun's own: of launchers that have not met, or of a process that was killed.
lost_a_process() {
    local errors cause losses='\(the processes have not met\)|run\.timeout_minutes is how long nothing may move|error: lost another process'
    if errors=$(this_turn | grep -E '^([0-9]+: )?error: '); then
        if grep -qvE "$losses" <<<"$errors"; then return 1; fi
    else
        cause=$(grep -A 8 'Root Cause' <<<"$(this_turn)" || true)
        grep -qE 'exitcode *: -9 ' <<<"$cause" || not_met
    fi
}
not_met() { grep -qE '\(the processes have not met\)|Rendezvous(Timeout|Connection)Error' <<<"$(this_turn)"; }
# The nodes that have not said that they are here.
silent_nodes() {
    local here
    here=$(this_turn | sed -nE 's/^([0-9]+: )?== (.*) is here$/\2/p')
    { grep -vxF "$here" <<<"$hosts" || true; } | paste -sd ' '
}

# shellcheck source=slurm/allocation.sh
source slurm/allocation.sh

# Where data.workers is not set, half of a process's cores read patches ahead, four at most; the others compute.
share=$((cores > processes ? cores / processes : 1))
workers=$((share < 4 ? 1 : share < 8 ? share / 2 : 4))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > workers ? share - workers : 1))}

# On GPUs a rank that is ended while it waits leaves its last 2,000 collectives as run.folder/collectives-RANK, for
# torchfrtrace to say which rank was missing.
export TORCH_FR_BUFFER_SIZE=2000 TORCH_FR_DUMP_ON_TIMEOUT=1 TORCH_FR_DUMP_TEMP_FILE=$folder/collectives-
# After TERM torchrun kills its processes in 30 s; Slurm's own KillWait or GraceTime decides how long a last save may take.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300

# Of the nodes that it was given (--nodes=1-4) the job takes as many as can share a global batch; the result is the same on any number. When
# the answer cannot be had, the training itself says why.
nodes=$SLURM_JOB_NUM_NODES taken=$SLURM_JOB_NODELIST
if [ "$nodes" -gt 1 ]; then
    nodes=$("${container[@]}" "$bin/python" -m dist_train nodes --at-most "$nodes" --processes-per-node "$processes" "$config" "$@") || nodes=$SLURM_JOB_NUM_NODES
    if [ "$nodes" -lt "$SLURM_JOB_NUM_NODES" ]; then
        echo "== job $SLURM_JOB_ID: only $nodes of $taken do something, for what is said above, with $processes process(es) on each"
        hosts=$(sed "${nodes}q" <<<"$hosts")
        taken=$(scontrol show hostlist "$(paste -sd , <<<"$hosts")")
    fi
fi
take_nodes "$nodes"
echo "== job $SLURM_JOB_ID, restart $restarts: $world processes, $processes on each of $taken;" \
    "$share core(s) and $OMP_NUM_THREADS thread(s) each; run folder $folder"

# One launcher per node; all meet on the first, at one address (bound_c10d is dist_train/rendezvous.py). When one fails the others end
# too (--kill-on-bad-exit), and when one has ended well they have a minute. The turn is part of the meeting's name, so that nothing left
# over from the last one can come to it. Each node says that it is there: one that hangs before its ranks can speak is known by its silence.
log=/proc/$$/fd/2
log_before=$(stat --dereference --printf=%s "$log")
# shellcheck disable=SC2016 # each node's own shell reads $SLURMD_NODENAME
srun "${one_per_node[@]}" --kill-on-bad-exit=1 --wait=60 "${srun_options[@]}" "${container[@]}" \
    bash -c 'echo "== $SLURMD_NODENAME is here" >&2 && exec "$@"' here "$bin/torchrun" --nnodes="$nodes" --nproc-per-node="$processes" \
    --rdzv-backend=bound_c10d --rdzv-endpoint="$meeting" --rdzv-id="$SLURM_JOB_ID.$restarts" --rdzv-conf="join_timeout=600,read_timeout=600" \
    --module dist_train train "$config" "$@" &
step=$!

# A trapped signal ends `wait` early, so wait again until the step has really ended.
code=0
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done
trap : USR1
take_back # it may have come after the last step

# status.json tells how it ended, not the exit code: torchrun turns every code into 1. One that this turn has not touched is of
# an earlier turn: either it had ended well and there was nothing to do, or this turn did not begin.
status=failed reason="the training did not begin; the log says why"
status_and_reason() {
    "${container[@]}" "$bin/python" -c '
import json, sys
about = json.load(open(sys.argv[1]))
print(about["status"], about["reason"].splitlines()[0], sep="\n")' "$status_file" || printf 'failed\nstatus.json cannot be read, as said above'
}
if grep -q "another job is writing here" <<<"$(this_turn)"; then
    reason="the run folder is another job's; the log says whose"
elif [ "$(stat --printf='%i %y' "$status_file" 2>/dev/null || true)" != "$before" ]; then
    about=$(status_and_reason)
    status=${about%%$'\n'*} reason=${about#*$'\n'}
elif [ "$code" -eq 0 ] && [[ $(status_and_reason) =~ ^(finished|stopped) ]]; then
    status=finished reason="in an earlier job"
elif [[ $(scontrol show job "$this_job") =~ PreemptTime=[0-9] ]]; then # for this turn; otherwise it is None
    status=unfinished reason="asked to stop by SIGTERM, a preemption, before it began"
elif lost_a_process; then
    status=unfinished reason="it lost a process before it began; the log says why"
    if not_met; then
        silent=$(silent_nodes)
        reason="the processes have not met${silent:+, and these nodes have not said that they are here: $silent}"
        if [ -z "$silent" ]; then reason+="; the log says why"; fi
    fi
fi
echo "== job $SLURM_JOB_ID, restart $restarts: run $status ($reason)"

# What goes on later, if Slurm has not decided already (TERM came here too): a run that was asked to stop by the time limit or by a
# preemption (with a grace time, that sends TERM to the training alone); and one that lost a process, or that waited in vain for a silent
# one, or for one that never came. Slurm itself requeues when it finds a node lost, but that may be later (SlurmdTimeout). One that fails
# otherwise does not go on, nor one that a person stopped, whatever else asked it to stop. One that should go on and cannot has failed.
goes_on=no
case "$status: ${reason//"the file \`stop\` in the run folder ($by)"/$by}" in
    unfinished:*"the file \`stop\`"*) goes_on=never ;;
    unfinished:*"$by"* | unfinished:*SIGTERM*) goes_on=yes ;;
    unfinished:*"asked to stop"*) ;;
    unfinished:*) goes_on=perhaps ;;
esac
if [ "$ended_by_slurm" = yes ]; then
    trap : TERM
    if [ "$goes_on" = never ]; then scancel "$this_job" || true; fi # which Slurm may have put back into the queue
elif [ "$goes_on" = yes ] || { [ "$goes_on" = perhaps ] && note_loss; }; then
    if requeue; then exit 0; fi
    code=$((code > 0 ? code : 1))
fi
case $status in
    finished | "stopped early") rm -f "$folder/slurm-losses" && exit 0 ;;
    unfinished) exit "$code" ;;
    *) exit "$((code > 0 ? code : 1))" ;;
esac
