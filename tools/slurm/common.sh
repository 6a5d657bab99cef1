# Shared by the jobs: each sources this file, which sources the settings.
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT JOB_COMPLETION_INDEX # set by the submitting shell, perhaps
source "${SETTINGS:?submit this by submit.sh SETTINGS}"
enter

# Run a command. When SLURM announces the end of this job (USR1: the time limit, or pre-emption), let the command shut
# down gracefully (TERM), requeue the job, and stop: the next run resumes from what this one saved.
run_or_requeue() {
  local code=0 again=""
  "$@" &
  local child=$!
  # Do not signal srun itself: it would kill the processes at once.
  case $1 in srun) signal_it() { scancel --signal=TERM "$SLURM_JOB_ID"; } ;; *) signal_it() { kill -TERM "$child"; } ;; esac
  trap 'again=yes; signal_it || true' USR1
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # the trap interrupted `wait`, not the command
    code=0
    wait "$child" || code=$?
  done
  trap - USR1
  if [ -n "$again" ] && [ "$code" != 0 ]; then
    echo "interrupted (exit code $code): requeued"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # SLURM ends this script
  fi
  return "$code"
}

# Run a command of stage1 as SLURM_NTASKS processes on all nodes of the job. The first node coordinates the run.
launch() {
  local first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_ADDR=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
  MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000)) # a different one each time
  export MASTER_ADDR MASTER_PORT
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
  local per_node=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
  case $LAUNCHER in
    torchrun)
      run_or_requeue srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --cpus-per-task=$((per_node * SLURM_CPUS_PER_TASK)) --kill-on-bad-exit=1 \
        ${CONTAINER[@]+"${CONTAINER[@]}"} \
        torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$per_node" --max-restarts=0 \
        --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-conf=read_timeout=15 \
        --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --no-python "$@" ;;
    srun)
      run_or_requeue srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 bash -c \
        'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' rank \
        ${CONTAINER[@]+"${CONTAINER[@]}"} "$@" ;;
    *) echo "LAUNCHER is $LAUNCHER, expected torchrun or srun" >&2; return 1 ;;
  esac
}
