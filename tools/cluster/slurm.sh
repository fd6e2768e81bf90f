#!/usr/bin/env bash
# sbatch tools/cluster/slurm.sh EXPERIMENT.yaml RUN_DIR [key.path=value …]    See slurm.md beside this file.
#SBATCH --job-name=serl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=serl-%j.log

set -euo pipefail
experiment="$1" run_dir="$2"
shift 2

cpus="${SLURM_CPUS_PER_TASK:-1}"
gpus="${SLURM_GPUS_ON_NODE:-0}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
host="$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname -I | awk '{print $1; exit}')"
# Jobs that share a node have other ports.
port="$((20000 + SLURM_JOB_ID % 20000))"

# Who knows the token may run anything in the cluster: it lies where only this user can read it.
mkdir -p "$run_dir"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$run_dir/.ray-token"
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

# The signals that end a run are for its driver: it saves a checkpoint, for which everybody else must live.
start_ray() {
    local node="$1"
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" env --block-signal=TERM,HUP \
        ray start "$@" --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block &
}

start_ray "${nodes[0]}" --head --node-ip-address="$host" --port="$port" --include-dashboard=false
for node in "${nodes[@]:1}"; do
    start_ray "$node" --address="$host:$port"
done
python -m tools.cluster.wait_for_nodes "$host:$port" "${#nodes[@]}"

stopped=false driver=
trap 'stopped=true; [ -z "$driver" ] || kill -TERM "$driver"' TERM
serl-run "$experiment" --address "$host:$port" --resume-or-start "$run_dir" "$@" &
driver=$!
if "$stopped"; then
    kill -TERM "$driver"
fi
status=0
# A signal ends `wait`, not the driver.
while kill -0 "$driver" 2>/dev/null; do
    status=0
    wait "$driver" || status=$?
done

if "$stopped" && [ "$status" -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
