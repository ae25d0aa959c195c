#!/usr/bin/env bash
# Builds the fuzz preset and runs every fuzz target (or those named) for SECONDS each. Fails at the
# first input that crashes, hangs for 10 s or takes 2 GiB, and says where it was written.
# Usage: scripts/fuzz.sh SECONDS [name...]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: scripts/fuzz.sh SECONDS [name...]}
shift
if [ $# -eq 0 ]; then
    for file in tests/fuzz/fuzz_*.c; do
        name=${file#tests/fuzz/fuzz_}
        set -- "$@" "${name%.c}"
    done
fi

cmake --preset fuzz >/dev/null
# shellcheck disable=SC2046
cmake --build --preset fuzz -j "${JOBS:-$(nproc)}" --target $(printf 'fuzz_%s ' "$@") | tail -1
for name in "$@"; do
    found=build/fuzz/found/$name
    log=build/fuzz/found/$name.log
    mkdir -p "$found/corpus"
    # Found inputs go to the first folder; the committed corpus is only read.
    if ! build/fuzz/tests/fuzz/fuzz_"$name" -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 -artifact_prefix="$found/" \
        "$found/corpus" "tests/fuzz/corpus/$name" >"$log" 2>&1; then
        tail -40 "$log" >&2
        echo "fuzz.sh: $name failed; the input is in $found/, the log is $log" >&2
        exit 1
    fi
    covered=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$log" | tail -1)
    runs=$(sed -n 's/stat::number_of_executed_units: *//p' "$log")
    echo "$name: $runs inputs, $covered edges covered"
done
