#!/bin/sh
# The same line on all machines: the one whose address is FIRST also runs the scheduler. Then, on any of them, the study:
#   python -m experiments.reproduce ... --cluster tcp://FIRST:8786
# Usage: sh examples/launch/machines.sh FIRST    FIRST: address of the first machine, as the others reach it
set -eu
port=${PORT:-8786}
case " $(hostname) $(hostname -I 2>/dev/null || true) localhost 127.0.0.1 " in
*" $1 "*)
    dask scheduler --host "$1" --port "$port" --no-dashboard --dashboard-address "$1:0" &
    scheduler=$!
    trap 'kill "$scheduler" 2>/dev/null' EXIT
    ;;
esac
trap 'kill -TERM "$worker"; wait "$worker" || true; exit 143' TERM INT
sh "$(dirname "$0")/worker.sh" "tcp://$1:$port" &
worker=$!
wait "$worker"
