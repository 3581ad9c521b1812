# shellcheck shell=bash disable=SC2034 # what is set here is for the scripts that source this: those of slurm/, and elastic.sh
# A site's own settings: what its file does (slurm/train.sh says what may stand there), and two arrays that it may fill.
container=() srun_options=()
site=${DIST_TRAIN_SITE:-$HOME/.config/dist_train/site.sh}
# shellcheck source=/dev/null
if [ -n "${DIST_TRAIN_SITE:-}" ] || [ -e "$site" ]; then source "$site" || echo "== note: the last command of $site gave $?" >&2; fi
