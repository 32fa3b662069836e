#!/bin/bash
# Train one seed of a run under SLURM:
#
#     cd .scales/paper && sbatch --nodes=2 replication/train/launch/slurm.sh qwen2_vl_runs grace_int4 0
#
# Nodes times GPUs a node must be train.launch.processes of params.yaml; the launch configuration is
# read there too. Killed by the time limit, the job is queued again and goes on from its checkpoint.
#SBATCH --job-name=grace
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail

if [ "$#" -ne 3 ]; then
    echo "usage: sbatch replication/train/launch/slurm.sh <group> <run> <seed>" >&2
    exit 2
fi
PYTHON=${PYTHON:-python}
read -r CONFIG PROCESSES < <("$PYTHON" -c '
from replication.settings.checks import load_params
launch = load_params("params.yaml").train.launch
print(launch.config, launch.processes)')
NODES=${SLURM_JOB_NUM_NODES:-1}
if [ $((PROCESSES % NODES)) -ne 0 ]; then
    echo "error: train.launch.processes is $PROCESSES, which $NODES nodes cannot share evenly" >&2
    exit 2
fi
export MAIN_IP PORT CONFIG PROCESSES NODES PYTHON
MAIN_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 bash -c '
    exec "$PYTHON" -m accelerate.commands.launch --config_file "$CONFIG" \
        --num_processes "$PROCESSES" --num_machines "$NODES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MAIN_IP" --main_process_port "$PORT" \
        --module replication.train.launch "$@"' launch "$@" &
wait $!
