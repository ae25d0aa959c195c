#!/bin/sh
# Finds what a target needs and is missing, prints the exact apt command, and runs it if root or
# after a yes on a terminal. Says nothing, and asks for nothing, when all is there.
#
# Usage: bootstrap.sh build|model|demo|test|portable|check
# A thing counts as present when it works (a command, a pkg-config module, a header), whoever
# installed it, so that a cmake or python from elsewhere is not shadowed by a package.
set -eu
cd "$(dirname "$0")/.."

has() { command -v "$1" >/dev/null 2>&1; }
module() { has pkg-config && pkg-config --exists "$1" 2>/dev/null; }
includes() { echo "#include <$1>" | cc -E -x c - >/dev/null 2>&1; }
pip_works() { python3 -m pip --version >/dev/null 2>&1 || /usr/bin/python3 -m pip --version >/dev/null 2>&1; }
fuzzer_links() {
    echo 'int LLVMFuzzerTestOneInput(const char *b, unsigned long n); int LLVMFuzzerTestOneInput(const char *b, unsigned long n) { return !b && n; }' |
        clang -fsanitize=fuzzer,address -x c - -o /dev/null >/dev/null 2>&1
}

missing=""
need() { # need PACKAGE COMMAND...: the package, unless the command succeeds
    package=$1
    shift
    "$@" || missing="$missing $package"
}

need_build() {
    need gcc has cc
    need libc6-dev includes stdlib.h
    need cmake has cmake
    need ninja-build has ninja
    need pkgconf has pkg-config
    need liburing-dev module liburing
    need libxxhash-dev module libxxhash
    need libpcre2-dev module libpcre2-8
    need libutf8proc-dev module libutf8proc
    need libjansson-dev module jansson
    need libhiredis-dev module hiredis
    need libnuma-dev includes numa.h
}
need_model() {
    need python3 has python3
    scripts/model.sh --present && return 0
    need python3-pip pip_works
    need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
}
need_test() {
    need libcmocka-dev module cmocka
    need g++ has c++
    need redis-server has redis-server
    need redis-tools has redis-cli
}
case "${1:-}" in
build) need_build ;;
model) need_model ;;
demo) need_build; need_model ;;
test) need_build; need_model; need_test ;;
portable) # the archives that are linked come with the same packages as the headers
    need_build
    need python3 has python3
    need libcmocka-dev module cmocka
    ;;
check)
    need_build; need_model; need_test
    need ccache has ccache
    need clang has clang
    need clang-format has clang-format
    need libclang-rt-dev fuzzer_links
    ;;
*) echo "usage: bootstrap.sh build|model|demo|test|portable|check" >&2; exit 2 ;;
esac
[ -n "$missing" ] || exit 0

if ! has apt-get; then
    echo "pagedllm: this system has no apt-get; install what Debian calls$missing, then try again" >&2
    exit 1
fi
root=""
[ "$(id -u)" = 0 ] || root="sudo "
command="${root}apt-get install -y --no-install-recommends$missing"
echo "pagedllm: some packages are missing; the command that installs them:"
echo "    $command"
if [ -n "$root" ]; then
    if ! has sudo; then
        echo "pagedllm: there is no sudo here: run that command as root, then try again" >&2
        exit 1
    fi
    if [ ! -t 0 ]; then
        echo "pagedllm: not root, and no terminal to ask on: run that command, then try again" >&2
        exit 1
    fi
    printf 'Run it now? [y/N] '
    read -r answer || answer=""
    case "$answer" in
    y | Y | yes) ;;
    *) echo "pagedllm: nothing installed" >&2; exit 1 ;;
    esac
fi

# Old lists are tried first: an update costs seconds, and a failing mirror is no reason to stop
# when the packages are at hand. sudo strips the environment, hence env behind it.
mkdir -p build
log=build/bootstrap.log
install() { ${root}env DEBIAN_FRONTEND=noninteractive ${command#"$root"} </dev/null >"$log" 2>&1; }
if ! install; then
    ${root}apt-get update -qq </dev/null >"$log" 2>&1 || true
    if ! install; then
        echo "pagedllm: apt could not install$missing (its words are in $log); is there a network?" >&2
        exit 1
    fi
fi
