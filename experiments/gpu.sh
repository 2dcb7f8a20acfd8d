#!/usr/bin/env bash
# A short time on one GPU, in parts of at most 9 minutes each, in the order of their worth:
#
#   experiments/gpu.sh tests OUT                the GPU tests, and the loss at 4,096 to 1,048,576 pairs
#   experiments/gpu.sh step OUT                 pairs/s of the training step: ResNet-50 at 224 px with a profile, then the
#                                               encoders and image sizes of the scales below, which tells their cost
#   experiments/gpu.sh rows OUT DATA [SCALE]    rows of Table 1 at --scale=SCALE, one seed, then Figure 7 from the same
#                                               runs. Given again with the same OUT, it goes on where the time ended.
#
# Scales in the order of their worth: gpu (the default; CIFAR-10, ResNet-18), gpu_tiny_imagenet, gpu_resnet50,
# gpu_tiny_imagenet_resnet50. DATA holds the images as class folders; `python -m experiments.table1 --scale=SCALE
# --dry_run` says how to get them. Half an hour is enough for tests, step and one or two times rows at the first scale.
#
# Results are written into OUT as they come. Add each to experiments/results with its command, commit and device.
set -uo pipefail
part=${1:-} out=${2:-} data=${3:-} scale=${4:-gpu}

refuse() {
  echo "gpu.sh: $1" >&2
  exit 2
}

case $part in
  tests | step | rows) ;;
  *) refuse "the part must be tests, step or rows, found '$part'" ;;
esac
[ -n "$out" ] || refuse "give a folder for the results after '$part'"
if [ "$part" = rows ]; then
  case $scale in
    gpu | gpu_tiny_imagenet | gpu_resnet50 | gpu_tiny_imagenet_resnet50) ;;
    *) refuse "the scale must be gpu, gpu_tiny_imagenet, gpu_resnet50 or gpu_tiny_imagenet_resnet50, found '$scale'" ;;
  esac
  [ -d "$data" ] || refuse "rows needs the folder of the images, found '$data'"
  data=$(realpath "$data")
fi
mkdir -p "$out" || exit 2
out=$(realpath "$out")
cd "$(dirname "$0")/.." || exit 2
deadline=$((SECONDS + 530))

# Runs a command with the rest of the nine minutes; a failure does not keep the next one from running.
within() {
  local log=$1 left=$((deadline - SECONDS))
  shift
  if [ "$left" -lt 20 ]; then
    echo "no time left for: $*"
    return
  fi
  echo "+ $*"
  timeout "$left" "$@" 2> >(tee -a "$out/$log.err" >&2) | tee -a "$out/$log" || echo "status $? of: $*"
}

{
  git rev-parse --short HEAD
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
} >> "$out/machine.txt" 2>&1

case $part in
  tests)
    DCJAX_TEST_PLATFORM=gpu within tests.txt python -m pytest -m gpu -n 0 -q
    within loss_gpu.jsonl python -m experiments.benchmarks.loss --sizes 4096 32768 --dims 128 --repeats 3 --no-torch
    within loss_gpu.jsonl python -m experiments.benchmarks.loss --sizes 1048576 --dims 128 --repeats 1 --no-torch \
      --block_size 4096
    ;;
  step)
    within step_gpu.jsonl python -m experiments.benchmarks.step --batch_size 256 --profile "$out/profile"
    within step_gpu.jsonl python -m experiments.benchmarks.step --batch_size 128 --parts --peers flax_conv torch \
      torch_compile
    within step_gpu.jsonl python -m experiments.benchmarks.step --batch_size 512
    within step_gpu.jsonl python -m experiments.benchmarks.step --batch_size 512 --config.model.remat=True
    for images in cifar10 tiny_imagenet; do
      config=configs/directclr.py:$images
      within step_gpu.jsonl python -m experiments.benchmarks.step --config=$config --batch_size 512
      within step_gpu.jsonl python -m experiments.benchmarks.step --config=$config --batch_size 512 \
        --config.model.name=resnet50 --config.model.remat=True --config.projector.d0=360
    done
    ;;
  rows)
    places=(--data "$data" --work "$out/work" --results "$out")
    within rows.txt python -m experiments.table1 --scale="$scale" --seeds 1 --rows direct none mlp linear "${places[@]}"
    within rows.txt python -m experiments.figure7 --scale="$scale" --seeds 1 --rows direct none "${places[@]}"
    ;;
esac
