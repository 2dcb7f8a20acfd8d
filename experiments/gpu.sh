#!/usr/bin/env bash
# A short time on one GPU, in parts of at most 9 minutes each, in the order of their worth:
#
#   experiments/gpu.sh tests OUT          the GPU tests, and the loss at 4,096 to 1,048,576 pairs
#   experiments/gpu.sh step OUT           pairs/s of the ResNet-50 step at 224 px in bfloat16, with a profile
#   experiments/gpu.sh rows OUT DATA      rows of Table 1 at --scale=gpu; DATA holds CIFAR-10 as class folders.
#                                         Given again with the same OUT, it goes on where the time ended.
#
# Results are written into OUT as they come. Add each to experiments/results with its command, commit and device.
set -uo pipefail
part=${1:?tests, step or rows} out=${2:?a folder for the results}
if [ "$part" = rows ]; then : "${3:?the folder of the images}"; fi
mkdir -p "$out"
out=$(realpath "$out") data=$(realpath "${3:-.}")
cd "$(dirname "$0")/.."
deadline=$((SECONDS + 530))

# Runs a command with what is left of the nine minutes; a failure does not keep the next one from running.
within() {
  local log=$1 left=$((deadline - SECONDS))
  shift
  if [ "$left" -lt 20 ]; then echo "no time left for: $*"; return; fi
  echo "+ $*"
  timeout "$left" "$@" 2> >(tee -a "$out/$log.err" >&2) | tee -a "$out/$log" || echo "status $? of: $*"
}

{ git rev-parse --short HEAD; nvidia-smi --query-gpu=name,driver_version --format=csv,noheader; } >> "$out/machine.txt" 2>&1

case $part in
  tests)
    DCJAX_TEST_PLATFORM=gpu within tests.txt python -m pytest -m gpu -n 0 -q
    within loss_gpu.jsonl python -m experiments.benchmarks.loss --sizes 4096 32768 --dims 128 --repeats 3 --no-torch
    within loss_gpu.jsonl python -m experiments.benchmarks.loss --sizes 1048576 --dims 128 --repeats 1 --no-torch \
      --block_size 4096
    ;;
  step)
    within step_gpu.jsonl python -m experiments.benchmarks.pretrain_step --batch_size 256 --profile "$out/profile"
    within step_gpu.jsonl python -m experiments.benchmarks.pretrain_step --batch_size 512
    within step_gpu.jsonl python -m experiments.benchmarks.pretrain_step --batch_size 512 --config.model.remat=True
    within step_gpu.jsonl python -m experiments.benchmarks.pretrain_step --config=configs/directclr.py:cifar10 \
      --batch_size 512
    ;;
  rows)
    within rows.txt python -m experiments.table1 --scale=gpu --seeds 1 --rows direct none linear mlp \
      --data "$data" --work "$out/work" --results "$out"
    ;;
  *) echo "gpu.sh: unknown part '$part'; known: tests, step, rows" >&2; exit 2 ;;
esac
