#!/usr/bin/env bash
# bash launch/elastic.sh CONFIG [key=value ...]: one training on several hosts without Slurm, which may die and come back.
#
#   FIRST_HOST=node1 HOSTS=1:4 bash launch/elastic.sh configs/koniq10k_resnet50.yaml data.shards=/shared/koniq10k run.folder=/shared/run
#
# To be given on every host, the same line, from the root of the repository; the shards and run.folder are on a file system that
# all hosts share. The training begins as soon as the least number of hosts is there. From then on
#
#   a host that dies     costs the steps since the newest checkpoint; the others go on from there on fewer processes
#   a host that comes    (again) is given the same line: the others save, and go on together with it
#   FIRST_HOST dies      then the others wait until it is given the line again, MAX_RESTARTS times a minute; if it is lost for
#                        good, stop them and give all of them the line with another FIRST_HOST
#   a host falls silent  (its cable is pulled, or it dies while processes start) then the others go on without it after once
#                        or twice run.timeout_minutes
#   Ctrl-C or TERM       takes this host out; the others go on, or wait for it if it is FIRST_HOST or too few are left
#   a file named stop    in run.folder ends the run on all hosts that train, with a checkpoint; the same line goes on later
#
# A run that fails for another reason fails on all hosts, and is not tried again. Where the host of rank 0 was lost, the others watch the
# run folder's lock for 15 s before they go on. The hosts know each other by name, and all ports are open between them: they
# meet at PORT, the processes at one that is free on the host of rank 0. These variables change it:
#
#   FIRST_HOST       where the hosts meet: the name of one of them, which stands for the same address on all, or that address
#   HOSTS            the least and the greatest number of hosts (1:4)
#   PORT             at which they meet on FIRST_HOST (29500)
#   PROCESSES        on each host, the same number on all; otherwise one per GPU, and one where there is none
#   MAX_RESTARTS     how often this host begins again without a new checkpoint in between (20)
#   VENV             the virtual environment (.venv)
#   DIST_TRAIN_SITE  this site's own settings, as slurm/train.sh says (~/.config/dist_train/site.sh); a container sees the host's /tmp
set -eo pipefail
# shellcheck source=launch/site_settings.sh
source launch/site_settings.sh
set -u

[ $# -ge 1 ] && [ -n "${FIRST_HOST:-}" ] || { echo "usage: FIRST_HOST=NAME HOSTS=1:4 bash launch/elastic.sh CONFIG [key=value ...]" >&2; exit 2; }
config=$1
shift
hosts=${HOSTS:-1:4}
[[ $hosts =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] && [ "${hosts%:*}" -le "${hosts#*:}" ] || { echo "elastic.sh: HOSTS=$hosts is not LEAST:GREATEST, such as 1:4" >&2; exit 2; }
python=("${container[@]}" "${VENV:-.venv}/bin/python")
say() { echo "== $HOSTNAME, $(date +%T): $*"; }

# Where data.workers is not set, half of a process's cores read patches ahead, four at most; the others compute.
processes=${PROCESSES:-$("${python[@]}" -c 'import torch; print(torch.cuda.device_count() or 1)')}
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # which otherwise obeys them
share=$((cores > processes ? cores / processes : 1))
workers=$((share < 4 ? 1 : share < 8 ? share / 2 : 4))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > workers ? share - workers : 1))}

# A run must be able to go on with any number of hosts, or the loss of one would end it: each number of processes must divide
# the global batch. That, and whatever else is wrong with the config or the run folder, ends this script here.
worlds=$(seq -s , "$((${hosts%:*} * processes))" "$processes" "$((${hosts#*:} * processes))")
folder=$("${python[@]}" -m dist_train folder --processes "$worlds" "$config" "$@" run.processes=null) || {
    say "not begun, for what is said above; HOSTS=$hosts with $processes process(es) on each would be $worlds processes in all" >&2
    exit 1
}

# TERM and Ctrl-C reach the training through torchrun: it saves and ends. torchrun is in a session of its own (setsid), or Ctrl-C would
# reach it twice. Bash runs this between its commands, and while it is in `wait`.
asked=no agent=
leave() {
    asked=yes
    if [ -n "$agent" ]; then kill -TERM "$agent" 2>/dev/null || true; fi
}
trap leave TERM INT HUP

# A training that is asked to make room for one more host has so long, in seconds, for its last save (torch >= 2.13; before, 30).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300
# On GPUs a rank that is ended while it waits leaves its last 2,000 collectives as run.folder/collectives-RANK, for torchfrtrace.
export TORCH_FR_BUFFER_SIZE=2000 TORCH_FR_DUMP_ON_TIMEOUT=1 TORCH_FR_DUMP_TEMP_FILE=$folder/collectives-

# How the run stands: status.json's status and the first line of its reason.
read_status() {
    local about
    about=$("${python[@]}" -c '
import json, sys
about = json.load(open(sys.argv[1]))
print(about["status"], about["reason"].splitlines()[0], sep="\n")' "$folder/status.json") || about=$'failed\nstatus.json cannot be read, as said above'
    status=${about%%$'\n'*} reason=${about#*$'\n'}
}
# Whether a process here has refused to begin. What may be said for a host that was lost, or for this run's own lock, which a host that is
# gone may still hold, is no refusal.
refused() { grep -qrh '"error: ' "$errors" && ! grep -qrwE "torchelastic run $id|the processes have not met|run.timeout_minutes is how long" "$errors"; }
stamp() { stat --printf='%i %y' "$folder/status.json" 2>/dev/null || true; }
# Which checkpoints there are; the newest step alone would not do, because after a damaged one it is an earlier one.
checkpoints() { { find "$folder/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f %i %T@\n' 2>/dev/null || true; } | sort; }

# The others may end the run while this host is coming.
leave_a_run_that_has_ended() {
    [ -e "$folder/status.json" ] || return 0
    read_status
    case $status in finished | "stopped early") say "run $status ($reason) already"; exit 0 ;; esac
}
leave_a_run_that_has_ended

# Who is there already listens at PORT as a key-value store, which answers. Any other program there would keep torchrun waiting for ever. A
# store that is just ending does not answer either: that is why it is asked twice.
port=${PORT:-29500}
# shellcheck disable=SC2016 # the other bash reads $0 and $1
listens() { timeout 10 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$FIRST_HOST" "$port" 2>/dev/null; }
is_a_store() {
    "${python[@]}" -c '
import os, sys, threading
from datetime import timedelta
from torch.distributed import TCPStore
threading.Timer(10, os._exit, [1]).start()  # where nothing is answered its own timeout does not help
TCPStore(sys.argv[1], int(sys.argv[2]), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
os._exit(0)' "$FIRST_HOST" "$port" 2>/dev/null
}
meeting_is_free() { ! listens || is_a_store; }
meeting_is_free || { sleep 5 && meeting_is_free; } || {
    say "not begun: another program listens at port $port of $FIRST_HOST; give all hosts the line with another PORT" >&2
    exit 1
}

# The name of the group of hosts keeps runs apart that meet at the same port. Each process leaves here why it failed, if it was the first.
id=$(cksum <<<"$folder $FIRST_HOST:$port" | cut -d ' ' -f 1)
errors=$(mktemp -d)
trap 'rm -rf "$errors"' EXIT
saved=$(checkpoints) restarts=0
say "$processes process(es), $share core(s) and $OMP_NUM_THREADS thread(s) each; $hosts hosts meet at $FIRST_HOST; run folder $folder"
while [ "$asked" = no ]; do
    before=$(stamp)
    leave_a_run_that_has_ended
    rm -rf "${errors:?}"/*
    # torchrun on FIRST_HOST keeps the list of the hosts. Once the least number is there it waits 5 s for more (last_call_timeout), and
    # one that comes later makes every torchrun start its processes anew. It starts nothing anew by itself after a failure
    # (--max-restarts=0): what follows from one is decided below, alike whether a process, a host or FIRST_HOST was lost.
    setsid "${container[@]}" "${VENV:-.venv}/bin/torchrun" --nnodes="$hosts" --nproc-per-node="$processes" --max-restarts=0 \
        --rdzv-backend=bound_c10d --rdzv-endpoint="$FIRST_HOST:$port" --rdzv-id="$id" --rdzv-conf=last_call_timeout=5 --log-dir="$errors" \
        --module dist_train train --fail-if-unfinished "$config" "$@" run.processes=null &
    agent=$!
    if [ "$asked" = yes ]; then leave; fi # it came before torchrun had a number

    # A trapped signal ends `wait` early, so wait again until torchrun has really ended.
    while kill -0 "$agent" 2>/dev/null; do wait "$agent" || true; done
    agent=

    # status.json tells how it ended, not the exit code: torchrun turns every code into 1. One that has not been touched meanwhile is of
    # an earlier session: the hosts or the processes have not met, or this one was not needed, or a process here has refused to begin.
    status=unfinished reason="the training has not begun"
    if [ "$(stamp)" != "$before" ]; then
        read_status
    elif refused; then
        status=failed reason="before it began; the error above says why"
    fi
    say "run $status ($reason)"
    case "$status: $reason" in
        finished:* | "stopped early":* | unfinished:*"the file \`stop\`"*) exit 0 ;;
        failed:*) exit 1 ;;
    esac

    if [ "$(checkpoints)" != "$saved" ]; then restarts=0 saved=$(checkpoints); fi
    if [ "$restarts" -ge "${MAX_RESTARTS:-20}" ]; then
        say "$restarts restarts without a new checkpoint are enough (MAX_RESTARTS)" >&2
        exit 1
    fi
    restarts=$((restarts + 1))
    if [ "$asked" = no ]; then sleep 3 & wait $! || true; fi # for the others' torchrun to end too
done
say "asked to leave; the same line comes back"
