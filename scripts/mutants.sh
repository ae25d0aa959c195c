#!/bin/sh
# Breaks the code in known ways and holds the tests to noticing.
# Usage: mutants.sh [--applies] [NAME...]     --applies: only whether each patch still applies
#
# tests/mutants/NAME.patch is a diff with a head of two lines:
#     # mutant: what it breaks
#     # test: a ctest regex; at least one of the tests it matches must fail
# Each is applied to a scratch copy of the tree (build/mutants/tree), built, tested and taken back.
# The unbroken copy passes the same tests first, or their failing would prove nothing. A mutant
# that survives, no longer applies or no longer compiles fails the run.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
scratch=$root/build/mutants
tree=$scratch/tree
export GIT_CEILING_DIRECTORIES="$scratch" # git apply must not think of the repository around it

only_applies=false
if [ "${1:-}" = --applies ]; then
    only_applies=true
    shift
    scratch=$root/build/mutants-applies
    tree=$scratch/tree
    GIT_CEILING_DIRECTORIES=$scratch
fi
head_of() { sed -n "s/^# $2: *//p" "$root/tests/mutants/$1.patch" | head -n 1; }
apply() { (cd "$tree" && git apply "$@" "$root/tests/mutants/$name.patch"); }
build() { cmake --build "$tree/build/release" -j "${JOBS:-$(nproc)}" >"$scratch/build.log" 2>&1; }
passes() {
    ctest --test-dir "$tree/build/release" -R "$1" --no-tests=error --timeout 120 \
        --stop-on-failure -j "${JOBS:-$(nproc)}" >"$scratch/test.log" 2>&1
}

if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046
    set -- $(cd tests/mutants && ls *.patch 2>/dev/null | sed 's/\.patch$//')
    [ $# -gt 0 ] || { echo "mutants: tests/mutants holds no patches" >&2; exit 1; }
fi

# The copy keeps its build folder between runs. Only files that differ are written, with a new
# time: an old time under a new content would leave a mutant's object standing.
list() { find . -type f ! -path './build/*' ! -path './.git/*' ! -path './models/*'; }
mkdir -p "$tree"
list | while read -r file; do
    cmp -s "$file" "$tree/$file" && continue
    mkdir -p "$tree/$(dirname "$file")"
    cp "$file" "$tree/$file"
done
(cd "$tree" && list | while read -r file; do [ -e "$root/$file" ] || rm -f "$file"; done)
[ ! -d models ] || [ -e "$tree/models" ] || ln -s "$root/models" "$tree/models"

bad=0
say() { printf '%-28s %-9s %5s  %s\n' "$1" "$2" "$3" "$4"; }

if ! $only_applies; then
    regex=""
    for name in "$@"; do
        test=$(head_of "$name" test)
        [ -n "$test" ] || { echo "mutants: $name.patch names no test" >&2; exit 1; }
        regex="$regex${regex:+|}$test"
    done
    (cd "$tree" && cmake --preset release -DPLLM_BENCH=OFF -DPLLM_CUDA=OFF >"$scratch/build.log" 2>&1) && build || {
        tail -n 30 "$scratch/build.log" >&2
        echo "mutants: the unbroken tree does not build" >&2
        exit 1
    }
    passes "$regex" || {
        tail -n 30 "$scratch/test.log" >&2
        echo "mutants: the unbroken tree does not pass $regex" >&2
        exit 1
    }
fi
say mutant verdict time "what it breaks (test)"
for name in "$@"; do
    start=$(date +%s)
    what="$(head_of "$name" mutant) ($(head_of "$name" test))"
    if [ -z "$(head_of "$name" mutant)" ] || [ -z "$(head_of "$name" test)" ]; then
        verdict="no head"
    elif ! apply --check 2>"$scratch/apply.log"; then
        verdict="NO APPLY"
    elif $only_applies; then
        verdict="applies"
    else
        apply
        if ! build; then
            verdict="NO BUILD"
        elif passes "$(head_of "$name" test)"; then
            verdict="SURVIVED"
        elif grep -q 'No tests were found' "$scratch/test.log"; then
            verdict="NO TEST"
        else
            verdict="caught"
        fi
        apply -R
    fi
    say "$name" "$verdict" "$(($(date +%s) - start))s" "$what"
    case $verdict in
    caught | applies) ;;
    *)
        bad=$((bad + 1))
        cat "$scratch/apply.log" 2>/dev/null | head -n 3
        ;;
    esac
done
if [ $bad -gt 0 ]; then
    echo "mutants: $bad of $# are not caught"
    exit 1
fi
echo "mutants: all $# $($only_applies && echo apply || echo caught)"
