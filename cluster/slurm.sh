#!/usr/bin/env bash
# One search on several nodes of a SLURM cluster: a Ray head on the first, a worker on each other one.
#
#   sbatch --nodes=4 cluster/slurm.sh STUDY.yaml RESULTS
#
# RESULTS: a folder that every node sees, or a URL (s3://BUCKET/FOLDER). Before the time limit, and
# when the job is preempted, SLURM sends SIGTERM: finished trials are kept, and the job is queued
# again and resumes. `safemerge` and `ray` must be on PATH (`source .venv/bin/activate`), the home
# folder shared, and ~/.ray/auth_token there (cluster/README.md, "The token").
#SBATCH --job-name=safemerge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ "$#" -ne 2 ]; then
  echo "slurm.sh: needs STUDY.yaml and RESULTS; got $# arguments." >&2
  exit 2
fi
study=$1 results=$2
export RAY_AUTH_MODE=token # a node without the token refuses to start
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -f "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
  echo "slurm.sh: needs Ray's token; got no file. Make it: ray get-auth-token --generate" >&2
  exit 2
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address_of_head=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
address_of_head=${address_of_head%% *}
# Jobs that share a node must not share a port.
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$address_of_head:$port"

driver= steps=()
end() {
  trap - TERM
  echo "slurm.sh: SIGTERM: ending the search, to resume when the job is scheduled again."
  if [ -n "$driver" ]; then
    kill -TERM "$driver" 2>/dev/null || true
    wait "$driver" || true
  fi
  stop
  scontrol requeue "$SLURM_JOB_ID"
  exit 143
}
stop() {
  for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
}
trap end TERM

# --block ends with the job; the search's own node counts no GPU less for it.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$address_of_head" --port="$port" \
  --dashboard-host=127.0.0.1 &
steps+=("$!")
if [ "${#nodes[@]}" -gt 1 ]; then
  srun --overlap --nodes="$((${#nodes[@]} - 1))" --ntasks="$((${#nodes[@]} - 1))" \
    --exclude="$head" bash -c "until ray start --address=$RAY_ADDRESS --block; do sleep 5; done" &
  steps+=("$!")
fi
tries=60
until ray status >/dev/null 2>&1; do
  tries=$((tries - 1))
  if [ "$tries" -eq 0 ]; then
    echo "slurm.sh: the head on $head must answer at $RAY_ADDRESS; got nothing in 5 minutes." >&2
    stop
    exit 1
  fi
  sleep 5 & wait $! # a trap runs between the two, and not within a plain sleep
done

safemerge search "$study" --results "$results" --resume &
driver=$!
code=0
wait "$driver" || code=$?
stop
exit "$code"
