#!/bin/sh
# Trainings of 1 B and 8 B Llama shapes with random weights on one GPU, full and LoRA, in packed rows of 4,096 tokens:
# dumbo, a loop without a framework, and TRL where it is installed. Takes under ten minutes on an H200, 35 GB of disk in
# $TMPDIR and 100 GB of GPU memory. `benchmarks/gpu.sh tiny` goes the same way with tiny shapes on a CPU.
#
# Results go to benchmarks/results/gpu.json and gpu.png; $OUTPUT names another file, $PYTHON another Python.
set -eu
cd "$(dirname "$0")/.."
SHAPES=${1:-gpu}
[ $# -eq 0 ] || shift
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || PYTHON=python3
[ "$SHAPES" = tiny ] && OUTPUT=${OUTPUT:-build/gpu_tiny.json}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" benchmarks/sft.py --set "$SHAPES" --repeat 1 --output "${OUTPUT:-benchmarks/results/gpu.json}" "$@"
