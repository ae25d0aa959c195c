#!/bin/sh
# Builds and runs the tests under one sanitizer preset.
# Usage: sanitize.sh asan|tsan
#
# asan (with ubsan) runs every suite but reference, whose point is numbers and which computes for
# long. tsan runs what can have threads. Checks of the tree need no sanitizer.
set -eu
cd "$(dirname "$0")/.."
preset=$1
case $preset in
asan) labels='unit|conformance|fault|sim|fuzz.*' ;;
tsan) labels='unit|conformance|sim' ;;
*) echo "usage: sanitize.sh asan|tsan" >&2; exit 2 ;;
esac
scripts/build.sh "$preset" -DPLLM_WERROR=ON -DPLLM_BENCH=OFF

export ASAN_OPTIONS="detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1:allocator_may_return_null=1"
export UBSAN_OPTIONS="print_stacktrace=1"
export TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1:allocator_may_return_null=1"

# gcc 12's tsan knows only some address layouts; newer kernels randomise beyond them.
launch=""
if [ "$preset" = tsan ] && setarch "$(uname -m)" -R true 2>/dev/null; then
    launch="setarch $(uname -m) -R"
fi
$launch ctest --test-dir "build/$preset" -L "^($labels)\$" --output-on-failure --no-tests=error \
    -j "${JOBS:-$(nproc)}"
