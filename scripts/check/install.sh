#!/bin/sh
# Installs into a scratch prefix, and builds and runs examples/ against what lies there, as a user
# of the library would: through pkg-config, with nothing of the source tree in sight.
set -eu
cd "$(dirname "$0")/../.."
root=$PWD
prefix=$root/build/installed
rm -rf "$prefix" build/examples build/staged

# As a packager does it: for /usr, into a folder of its own.
make -s install PREFIX=/usr DESTDIR="$root/build/staged"
test -f build/staged/usr/include/pagedllm/status.h
! grep -r "$root" build/staged/usr/lib/*/pkgconfig || { echo "pagedllm.pc names the source tree" >&2; exit 1; }

make -s install PREFIX="$prefix"
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name pagedllm.pc)")
LD_LIBRARY_PATH=$(pkg-config --with-path="$PKG_CONFIG_PATH" --variable=libdir pagedllm)
XDG_CACHE_HOME=$root/build/cache # where spill files go by default
mkdir -p "$XDG_CACHE_HOME"
PATH=$prefix/bin:$PATH
export PKG_CONFIG_PATH LD_LIBRARY_PATH XDG_CACHE_HOME PATH
test -e "$LD_LIBRARY_PATH/libpagedllm.so.0" || { echo "libpagedllm.so.0 was not installed" >&2; exit 1; }

# A copy elsewhere: an include that only works beside src/ fails here.
mkdir -p build/examples
cp examples/* build/examples
make -C build/examples check MODEL="$root/models/SmolLM2-135M-Instruct.Q4_1.gguf" \
    CFLAGS="-O2 -Wall -Wextra -Werror"
