#!/bin/sh
# Runs every benchmark program. Usage: bench.sh [--smoke]
# --smoke: tiny sizes, checks only; CI runs this. Without it, results go to bench/results/.
set -eu
cd "$(dirname "$0")/.."
[ -n "${1:-}" ] || mkdir -p bench/results
count=0
for program in build/release/bench/bench_*; do
    [ -x "$program" ] || continue
    name=$(basename "$program")
    echo "== $name ${1:-}"
    if ! "$program" "$@" </dev/null; then
        echo "pagedllm: $name ${1:-} failed" >&2
        exit 1
    fi
    count=$((count + 1))
done
echo "pagedllm: $count benchmarks ran"
