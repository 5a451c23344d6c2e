#!/bin/sh
# One worker of a scheduler, started again whenever it ends, also while the scheduler is away. SIGTERM and Ctrl-C end it, with code 143.
# Run it in the environment in which jaxvit is installed, on every machine.
# Usage: sh examples/launch/worker.sh tcp://HOST:8786
set -u
trap 'kill -TERM "$child"; wait "$child"; exit 143' TERM INT
while :; do
    dask worker "$1" --nthreads 1 --memory-limit 0 --no-dashboard --local-directory "${TMPDIR:-/tmp}/jaxvit-worker-$$" &
    child=$!
    wait "$child"
    echo "the worker ended with code $?; it is started again" >&2
    sleep 5
done
