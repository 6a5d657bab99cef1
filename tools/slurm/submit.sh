#!/usr/bin/env bash
# Submit build array → finalize → train → infer, each after the previous one has succeeded:
#
#   submit.sh SETTINGS                 all four
#   submit.sh SETTINGS --array=2,5     the same with only these tasks of the build, as `vidshard finalize` names them
#   submit.sh SETTINGS --from=train    begin at finalize, train or infer
#
# Finished work is not repeated.
set -euo pipefail
usage() { sed -n '4,6s/^#  *//p' "$0" >&2; exit 1; }
[ $# -ge 1 ] && [ -f "$1" ] || usage
SETTINGS=$(realpath -- "$1"); shift
HERE=$(dirname "$(realpath -- "$0")")
export SETTINGS HERE # not by name in --export, where a comma in a path would end it
source "$SETTINGS"
array=0-$((BUILD_TASKS - 1)) from=build
for argument; do
  case $argument in
    --array=?*) array=${argument#--array=} ;;
    --from=build | --from=finalize | --from=train | --from=infer) from=${argument#--from=} ;;
    *) echo "unknown argument $argument" >&2; usage ;;
  esac
done
mkdir -p "$LOGS"

after="" # the job that the next one waits for
submit() { # NAME sbatch-option…
  local name=$1; shift
  after=$(sbatch --parsable --job-name="$name" --export=ALL \
    ${after:+--dependency="$after"} --kill-on-invalid-dep=yes ${SBATCH_OPTIONS[@]+"${SBATCH_OPTIONS[@]}"} "$@" \
    "$HERE/$name.sbatch")
  echo "$name $after"
}

case $from in build)
  largest=$(scontrol show config | awk '$1 == "MaxArraySize" { print $3 }')
  if [ "$BUILD_TASKS" -gt "${largest:-1001}" ]; then
    echo "BUILD_TASKS is $BUILD_TASKS, but this cluster's MaxArraySize allows $largest; set BUILD_TASKS=$largest or less" >&2
    exit 1
  fi
  submit build --array="$array%${BUILD_AT_ONCE:-$BUILD_TASKS}" --cpus-per-task="$BUILD_CPUS" --mem="$BUILD_MEMORY" --time="$BUILD_TIME" \
    --output="$LOGS/build-%A_%a.out"
  after=afterany:$after # if a task failed for good, finalize names it and fails, which stops the rest
esac
case $from in build | finalize)
  submit finalize --mem="${FINALIZE_MEMORY:-4G}" --time="${FINALIZE_TIME:-01:00:00}" --output="$LOGS/finalize-%j.out"
  after=afterok:$after
esac
case $from in build | finalize | train)
  submit train --nodes="$TRAIN_NODES" --ntasks-per-node="$TRAIN_PROCESSES" --cpus-per-task="$TRAIN_CPUS" \
    --mem="$TRAIN_MEMORY" --time="$TRAIN_TIME" ${TRAIN_GPUS[@]+"${TRAIN_GPUS[@]}"} --output="$LOGS/train-%j.out"
  after=afterok:$after
esac
submit infer --nodes="$INFER_NODES" --ntasks-per-node="$INFER_PROCESSES" --cpus-per-task="$INFER_CPUS" \
  --mem="$INFER_MEMORY" --time="$INFER_TIME" ${INFER_GPUS[@]+"${INFER_GPUS[@]}"} --output="$LOGS/infer-%j.out"
