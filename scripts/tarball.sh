#!/bin/sh
# Builds the portable preset and packs build/pagedllm-VERSION-x86_64-linux.tar.gz: bin, lib, include,
# README.md, LICENSE, and THIRD-PARTY with the licences of what is linked in. Then unpacks it
# elsewhere, checks what it needs, runs the program and builds a program against the library.
# Usage: tarball.sh [cmake arguments]
#
# The same sources on the same system give the same bytes: names are sorted, and times are the last
# commit's (or SOURCE_DATE_EPOCH).
set -eu
cd "$(dirname "$0")/.."
root=$PWD
scripts/build.sh portable -DPLLM_TESTS=OFF -DPLLM_BENCH=OFF "$@"

version=$(sed -n 's/^project(pagedllm VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
name=pagedllm-$version-x86_64-linux
scratch=$root/build/tarball
rm -rf "$scratch"
mkdir -p "$scratch"
cmake --install build/portable --prefix "$scratch/$name" --strip >"$scratch/log"
cp LICENSE CHANGELOG.md "$scratch/$name"
cp scripts/tarball-readme.md "$scratch/$name/README.md"

# Debian keeps each package's licence beside it, so that these are those of the versions linked.
licence() { # licence NAME PACKAGE WORDS
    file=/usr/share/doc/$2/copyright
    [ -r "$file" ] || { echo "tarball.sh: $file is missing, so nobody can say what $1's licence is" >&2; exit 1; }
    package=$(dpkg-query -W -f '${Package} ${Version}' "$2")
    printf '\n==== %s (%s)\n%s\n\n' "$1" "$package" "$3"
    cat "$file"
}
{
    printf '%s\n' "The program and the library in this archive are PagedLLM (LICENSE: Apache-2.0) with the" \
        "libraries below linked in. Each one's terms follow, as Debian gives them; where they offer a" \
        "choice, the one named in the first line is used. glibc is not in here: the system's is used."
    licence liburing liburing-dev "Used under the MIT licence."
    licence xxHash libxxhash-dev "BSD, 2 clauses."
    licence PCRE2 libpcre2-dev "BSD, 3 clauses."
    licence utf8proc libutf8proc-dev "MIT, and the Unicode licence for its data."
    licence Jansson libjansson-dev "MIT."
    licence libnuma libnuma-dev "LGPL 2.1, whose text is at the end. To link PagedLLM with another version of libnuma, install
that one's libnuma.a and numa.h and run 'make tarball' in PagedLLM's sources."
    printf '\n==== libgcc and the start files of gcc and glibc\n%s\n' \
        "GPL 3 with the GCC runtime library exception, and LGPL 2.1 with glibc's exception for what is
linked into every program: neither asks anything of a program made with them."
    printf '\n==== GNU Lesser General Public License 2.1\n\n'
    cat /usr/share/common-licenses/LGPL-2.1
} >"$scratch/$name/THIRD-PARTY"

time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$time" -cf - "$name" |
    gzip -9n >"$scratch/$name.tar.gz"

# As one who fetched it: another folder, no environment. Every path that its README names is there.
mkdir "$scratch/elsewhere"
tar -C "$scratch/elsewhere" -xzf "$scratch/$name.tar.gz"
there=$scratch/elsewhere/$name
for path in $(grep -oE '\b((bin|lib|include|src|docs|examples|scripts|bench|tests|build)/[A-Za-z0-9./_-]*|[A-Z]+\.md)' \
    "$there/README.md" | sort -u); do
    [ -e "$there/$path" ] || { echo "tarball.sh: the README names $path, which is not in the archive" >&2; exit 1; }
done
python3 -B scripts/check/portable.py "$root" "$there/bin/pagedllm" "$there/lib/libpagedllm.so.0"
env -i "$there/bin/pagedllm" --version >>"$scratch/log"
flags=$(PKG_CONFIG_PATH=$there/lib/pkgconfig pkg-config --cflags --libs pagedllm)
# shellcheck disable=SC2086
cc -o "$scratch/context" examples/context.c $flags -Wl,-rpath,"$there/lib"
env -i "$scratch/context" >>"$scratch/log"

mv "$scratch/$name.tar.gz" build/
echo "build/$name.tar.gz ($(wc -c <"build/$name.tar.gz") bytes)"
