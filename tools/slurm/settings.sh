# The settings of all four jobs. Copy this file, change it, and submit: tools/slurm/submit.sh my-settings.sh

# Inputs and outputs. All nodes must see these paths.
VIDEOS=$HOME/UCF-Crime              # Train/, Validation/, Test/ with <Class>/*.mp4 in each
SHARDS=$PWD/shards                  # Train, Validation and Test are built below it
RUN=$PWD/checkpoints                # training output
OUTPUT=$PWD/stage1_output           # inference output
LOGS=$PWD/slurm-logs

# How a job finds the commands: a virtual environment, a module, a container.
enter() { source "$HOME/venv/bin/activate"; }
# On several nodes with GPUs, NCCL may need to be told the network: export NCCL_SOCKET_IFNAME=ib0 in `enter`, and
# NCCL_DEBUG=INFO to see what it chose.
# What each command is started with: (apptainer exec --nv --bind /data vidshard.sif), for example; see tools/images.
CONTAINER=()

# For every job: sbatch options such as a partition or an account.
SBATCH_OPTIONS=()

# Build: number of array tasks. More tasks than shards (64 MiB each) have no benefit.
BUILD_TASKS=16
BUILD_AT_ONCE=16                    # tasks that run at a time, so that they do not overload a file system
BUILD_CPUS=4
BUILD_MEMORY=8G
BUILD_TIME=04:00:00
FINALIZE_MEMORY=4G
FINALIZE_TIME=01:00:00
BUILD_OPTIONS=(--sampling uniform)  # for `vidshard build`, except --out, --workers and --task-…
FAILED_VIDEOS=go-on                 # or stop: whether to train if some videos could not be decoded

# Training and inference: nodes × processes. One process per GPU; without GPUs, one per few cores.
LAUNCHER=torchrun                   # or srun, which needs no agent on each node
TRAIN_NODES=1
TRAIN_PROCESSES=4                   # on each node
TRAIN_CPUS=4                        # for each process
TRAIN_MEMORY=32G                    # on each node
TRAIN_TIME=12:00:00
TRAIN_GPUS=(--gpus-per-node=4)      # () without
TRAIN_OPTIONS=(--epochs 20)         # for `stage1 train`, except --shards, --val-shards, --out and --resume
TRAIN_SHARDS=$SHARDS/Train
VAL_SHARDS=$SHARDS/Validation       # empty: hold some training videos out

INFER_NODES=1
INFER_PROCESSES=4
INFER_CPUS=4
INFER_MEMORY=32G
INFER_TIME=04:00:00
INFER_GPUS=(--gpus-per-node=4)
INFER_OPTIONS=()                    # for `stage1 infer`, except --shards, --checkpoint and --out
INFER_SHARDS=$SHARDS/Test
