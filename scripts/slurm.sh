#!/usr/bin/env bash
# A run on the machines of a SLURM cluster, one launch on each; `make submit` gives it to sbatch:
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/slurm.sh .venv/bin/python <recipe> <config> <gpus> [flags]
#
# Two minutes before its time is up, or when told to (scancel --batch --signal=USR1 <job>), the run
# saves a checkpoint, ends with 75 and goes back to the queue. Cancelled, it saves and does not come
# back. Preempted or requeued without a warning, it goes on from its last checkpoint. Each machine
# writes a log of its own.
#SBATCH --job-name=dpo
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=outputs/slurm/%j.log
set -euo pipefail
python=$1 recipe=$2 config=$3 gpus=$4
shift 4
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
main=$first:$((20000 + SLURM_JOB_ID % 10000)) # one port a job: two may share a machine
cancelled=
# Here the run says that it was asked to stop and has. Its exit code could be that of a machine which
# srun ended since another one was quicker.
export DPO_TOLD_IN=$PWD/outputs/slurm/$SLURM_JOB_ID-told
rm -rf "$DPO_TOLD_IN"
mkdir -p "$DPO_TOLD_IN"

# The machine that fails ends the others, which would wait for it.
srun --kill-on-bad-exit=1 --open-mode=append --output="outputs/slurm/%j-node%n.log" \
  bash -c 'exec "$0" scripts/launch.py --node_rank "$SLURM_NODEID" "$@"' "$python" \
  --recipe "$recipe" --accelerate_config "$config" --gpus "$gpus" \
  --nodes "$SLURM_JOB_NUM_NODES" --main "$main" -- "$@" &
step=$!
trap 'kill -USR1 "$step"' USR1
trap 'cancelled=yes; kill -TERM "$step"' TERM

status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do # the signal ended the wait, not the run
  status=0
  wait "$step" || status=$?
done
left=$(ls "$DPO_TOLD_IN")
rm -r "$DPO_TOLD_IN"
if [[ $left = *left* && $left != *refused* && ! $cancelled ]]; then
  echo "Asked to stop: back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
