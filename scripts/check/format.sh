#!/bin/sh
# Holds every C file to .clang-format. Usage: format.sh [--fix]
# Not a ctest test: clang-format's versions differ in detail; the one that counts is Debian 12's.
set -eu
cd "$(dirname "$0")/../.."
mode="--dry-run -Werror"
[ "${1:-}" = --fix ] && mode="-i"
program=clang-format
command -v clang-format-14 >/dev/null 2>&1 && program=clang-format-14
find src include tests bench examples -name '*.[ch]' -type f 2>/dev/null | sort |
    xargs -r $program --style=file $mode
