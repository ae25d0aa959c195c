#!/bin/sh
# Configures and builds one preset; quiet when it works, its whole output when it does not.
# Usage: build.sh PRESET [cmake arguments]
set -eu
cd "$(dirname "$0")/.."
preset=$1
shift
mkdir -p "build/$preset"
log=build/$preset/build.log

fail() {
    # ninja's [n/m] lines are progress; what a compiler said is the rest.
    grep -v '^\[[0-9]*/[0-9]*\] [BL]' "$log" | tail -n 80 >&2
    echo "pagedllm: the $preset build failed; $log has all of it" >&2
    exit 1
}
echo "pagedllm: building $preset" >&2
cmake --preset "$preset" "$@" >"$log" 2>&1 || fail
cmake --build --preset "$preset" -j "${JOBS:-$(nproc)}" >>"$log" 2>&1 || fail
grep -E 'warning:' "$log" >&2 || true
