#!/bin/sh
# Runs every benchmark program that needs no GPU. Usage: bench.sh [--smoke]
# --smoke: tiny sizes, checks only; CI runs this. Without it, results go to bench/results/.
set -eu
cd "$(dirname "$0")/.."
[ -n "${1:-}" ] || mkdir -p bench/results
count=0
for program in build/release/bench/bench_*; do
    [ -x "$program" ] || continue
    case $program in */bench_cuda_*) continue ;; esac # scripts/gpu/run.sh
    name=$(basename "$program")
    echo "== $name ${1:-}"
    if ! "$program" "$@" </dev/null; then
        echo "pagedllm: $name ${1:-} failed" >&2
        exit 1
    fi
    count=$((count + 1))
done
# Those of the whole program, on a real model. LLAMA_BENCH=path adds llama.cpp to speed.
for script in bench/model/speed.py bench/model/paging.py bench/model/weights.py bench/model/quality.py; do
    [ -x build/release/pagedllm ] || continue
    echo "== $script ${1:-}"
    if ! python3 "$script" "$@" </dev/null; then
        echo "pagedllm: $script ${1:-} failed" >&2
        exit 1
    fi
    count=$((count + 1))
done
echo "pagedllm: $count benchmarks ran"
