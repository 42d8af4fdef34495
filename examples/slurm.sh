#!/bin/sh
# One evaluation of runs.toml per task of a job array, a card each; those that fail do not stop the others.
#
#   sbatch --array=1-5 examples/slurm.sh            (as many as runs.toml has [[run]] tables)
#   sbatch --array=1-5 examples/slurm.sh my.toml
#
# A job that runs out of time is told so by SIGTERM, stores its rows and exits with 143: send it again, and it goes on from there.
#SBATCH --job-name=beit3-bench
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=48G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --output=logs/%x-%A-%a.out
set -eu

runs=${1:-examples/runs.toml}
index=${SLURM_ARRAY_TASK_ID:?send this with sbatch --array=1-N}

[ -f .venv/bin/activate ] && . .venv/bin/activate

# Progress is a line every 30 s in the log. `exec`: the signal reaches the program itself.
exec srun beit3-bench run --config "$runs" --index "$index"
