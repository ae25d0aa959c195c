#!/bin/sh
# Collects in DEST what scripts/gpu/run.sh needs on a machine with a GPU and nothing else: the program,
# every CUDA test and benchmark (one program, with libcmocka beside it), the references they compare
# with. Under 40 MB, to be copied there and started: bash DEST/run.sh [options of scripts/gpu/run.sh].
# Usage: pack.sh DEST        after make portable; DEST is written anew
set -eu
[ $# = 1 ] || { echo "usage: pack.sh DEST" >&2; exit 2; }
mkdir -p "$1"
to=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
built=build/portable
[ -x $built/tests/all_cuda ] || { echo "pack.sh: no $built/tests/all_cuda: make portable builds it where there is nvcc" >&2; exit 1; }
if [ -n "$(ls -A "$to")" ] && [ ! -e "$to/COMMIT" ]; then
    echo "pack.sh: $to holds something that pack.sh did not make" >&2
    exit 1
fi
for old in COMMIT run.sh scripts build tests bench; do rm -rf "${to:?}/$old"; done

mkdir -p "$to/scripts/gpu" "$to/$built/tests" "$to/tests/reference" "$to/bench/results"
git describe --always --dirty >"$to/COMMIT" 2>/dev/null || echo unknown >"$to/COMMIT"
cp scripts/gpu/run.sh "$to/scripts/gpu/"
cp -R bench/gpu bench/model bench/pool "$to/bench/"
# As a file of its own: a link would name this tree.
cat >"$to/run.sh" <<'END'
#!/usr/bin/env bash
exec bash "$(dirname "$0")/scripts/gpu/run.sh" "$@"
END
cp -L $built/tests/libcmocka.so.0 "$to/$built/tests/"
strip -o "$to/$built/pagedllm" $built/pagedllm
strip -o "$to/$built/tests/all_cuda" $built/tests/all_cuda
mkdir -p "$to/$built/bench"
strip -o "$to/$built/bench/bench_vmm" $built/bench/bench_vmm
cp -R tests/reference/models tests/reference/smollm2 "$to/tests/reference/"

kilobytes=$(du -sk "$to" | cut -f 1)
echo "$to: $kilobytes KB; there: bash run.sh"
[ "$kilobytes" -lt 40000 ] || { echo "pack.sh: that is not under 40 MB" >&2; exit 1; }
