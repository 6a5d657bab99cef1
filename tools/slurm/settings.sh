# The settings of all four jobs. Copy this file, change it, and submit: tools/slurm/submit.sh my-settings.sh

# What, and where it goes. All nodes must see these paths.
VIDEOS=$HOME/UCF-Crime              # Train/, Validation/, Test/ with <Class>/*.mp4 in each
SHARDS=$PWD/shards                  # Train, Validation and Test are built below it
RUN=$PWD/checkpoints                # of the training
OUTPUT=$PWD/stage1_output           # of the inference
LOGS=$PWD/slurm-logs

# How a job finds the commands: a virtual environment, a module, a container.
enter() { source "$HOME/venv/bin/activate"; }

# For every job: sbatch options such as a partition or an account.
SBATCH_OPTIONS=()

# Build: an array of so many tasks. More tasks than shards (64 MiB each) are of no use.
BUILD_TASKS=16
BUILD_CPUS=4
BUILD_MEMORY=8G
BUILD_TIME=04:00:00
BUILD_OPTIONS=(--sampling uniform)  # of `vidshard build`; no --out, --workers or --task-…
FAILED_VIDEOS=go-on                 # or stop: whether to train although some videos could not be decoded

# Training and inference: nodes × processes. One process for each GPU; without GPUs one for a few cores.
LAUNCHER=torchrun                   # or srun, which needs no agent on each node
TRAIN_NODES=1
TRAIN_PROCESSES=4                   # on each node
TRAIN_CPUS=4                        # for each process
TRAIN_MEMORY=32G                    # on each node
TRAIN_TIME=12:00:00
TRAIN_GPUS=(--gpus-per-node=4)      # () without
TRAIN_OPTIONS=(--epochs 20)         # of `stage1 train`; no --shards, --val-shards, --out or --resume
TRAIN_SHARDS=$SHARDS/Train
VAL_SHARDS=$SHARDS/Validation       # empty: hold some training videos out

INFER_NODES=1
INFER_PROCESSES=4
INFER_CPUS=4
INFER_MEMORY=32G
INFER_TIME=04:00:00
INFER_GPUS=(--gpus-per-node=4)
INFER_OPTIONS=()                    # of `stage1 infer`; no --shards, --checkpoint or --out
INFER_SHARDS=$SHARDS/Test
