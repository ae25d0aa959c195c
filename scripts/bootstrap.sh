#!/bin/sh
# Finds what a target needs and is missing, prints the exact apt command, and runs it if root or
# after a yes on a terminal. Usage: bootstrap.sh build|test|check
set -eu

packages="gcc cmake ninja-build pkg-config liburing-dev libxxhash-dev libpcre2-dev libutf8proc-dev libjansson-dev libnuma-dev"
case "${1:-build}" in
build) ;;
test) packages="$packages libcmocka-dev python3" ;;
check) packages="$packages libcmocka-dev python3 clang clang-format libclang-rt-14-dev libfuzzer-14-dev ccache" ;;
*) echo "usage: bootstrap.sh build|test|check" >&2; exit 2 ;;
esac

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo "
command="${sudo}apt-get install -y$missing"
echo "pagedllm: missing packages; the command that installs them:"
echo "    $command"
if [ "$(id -u)" != 0 ]; then
    if [ ! -t 0 ]; then
        echo "pagedllm: not root and no terminal to ask on: run it, then try again" >&2
        exit 1
    fi
    printf 'Run it now? [y/N] '
    read -r answer
    case "$answer" in y | Y | yes) ;; *) exit 1 ;; esac
fi
${sudo}apt-get update -qq || echo "pagedllm: no package lists could be fetched; is there a network?" >&2
DEBIAN_FRONTEND=noninteractive $command >/dev/null
