#!/bin/sh
# One machine with several GPUs, or a CPU with many cores: a worker for each GPU. "local:2" on two GPUs.
# Usage: sh examples/launch/one_machine.sh 2 --preset demo --out runs/demo
set -eu
workers=$1
shift
python -m experiments.reproduce "$@" --cluster "local:$workers" --doctor
exec python -m experiments.reproduce "$@" --cluster "local:$workers"
