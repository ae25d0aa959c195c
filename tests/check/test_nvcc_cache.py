#!/usr/bin/env python3
"""cmake/nvcc.cmake with a made-up compiler: what it takes from its cache, and what it must not.

Usage: test_nvcc_cache.py ROOT CMAKE
"""
import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(os.path.abspath(sys.argv[1]), "cmake", "nvcc.cmake")
CMAKE = sys.argv[2]
# Its output is what it read; it fails on a source that holds "wrong"; each compilation leaves a line.
NVCC = """#!/bin/sh
[ "$1" = --version ] && { cat "$(dirname "$0")/version"; exit; }
echo ran >>"$(dirname "$0")/log"
flags=
while [ $# -gt 0 ]; do
    case $1 in
    -MF) deps=$2; shift ;;
    -MT) target=$2; shift ;;
    -o) out=$2; shift ;;
    *.cu) source=$1 ;;
    *) flags="$flags $1" ;;
    esac
    shift
done
folder=$(dirname "$source")
cat "$source" "$folder/x.cuh" >"$out"
printf '%s: %s \\\\\\n  %s/x.cuh /usr/include/stdio.h\\n' "$target" "$source" "$folder" >"$deps"
! grep -q wrong "$source"
"""


class NvccCache(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = folder.name
        self.write("tools/nvcc", NVCC)
        os.chmod(os.path.join(self.top, "tools/nvcc"), 0o755)
        self.write("tools/version", "1")
        for tree in ("one", "deeper/two"):
            self.write(f"{tree}/src/a.cu", "source\n")
            self.write(f"{tree}/src/x.cuh", "header\n")

    def write(self, path, text):
        path = os.path.join(self.top, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def read(self, path):
        with open(os.path.join(self.top, path), encoding="utf-8") as file:
            return file.read()

    def compile(self, tree="one", flags="-O3", status=0):
        """Whether the compiler ran."""
        root = os.path.join(self.top, tree)
        log = os.path.join(self.top, "tools/log")
        before = os.path.getsize(log) if os.path.exists(log) else 0
        os.makedirs(os.path.join(root, "build"), exist_ok=True)
        result = subprocess.run(
            [CMAKE, f"-DNVCC={self.top}/tools/nvcc", f"-DFLAGS={flags};-I{root}/src", f"-DROOT={root}",
             f"-DSOURCE={root}/src/a.cu", f"-DOUT={root}/build/a.fatbin", f"-DCACHE={self.top}/cache", "-P", SCRIPT],
            capture_output=True, text=True)
        self.assertEqual(result.returncode != 0, status != 0, result.stdout + result.stderr)
        if status == 0:
            expected = self.read(f"{tree}/src/a.cu") + self.read(f"{tree}/src/x.cuh")
            self.assertEqual(self.read(f"{tree}/build/a.fatbin"), expected)
            deps = self.read(f"{tree}/build/a.fatbin.d").split()
            self.assertEqual(deps, [f"{root}/build/a.fatbin:", f"{root}/src/a.cu", f"{root}/src/x.cuh"])
        return os.path.getsize(log) > before

    def test_again_and_elsewhere(self):
        self.assertTrue(self.compile())
        self.assertFalse(self.compile())
        self.assertFalse(self.compile("deeper/two"))

    def test_what_changes_a_result(self):
        self.assertTrue(self.compile())
        self.write("one/src/x.cuh", "another header\n")
        self.assertTrue(self.compile())
        self.assertFalse(self.compile("deeper/two")) # the first one's is still there
        self.write("one/src/a.cu", "another source\n")
        self.assertTrue(self.compile())
        self.assertTrue(self.compile(flags="-O1"))
        self.write("tools/version", "2")
        self.assertTrue(self.compile())
        self.assertFalse(self.compile())

    def test_failure_is_not_kept(self):
        self.write("one/src/a.cu", "wrong\n")
        self.assertTrue(self.compile(status=1))
        self.assertFalse(os.path.exists(os.path.join(self.top, "one/build/a.fatbin")))
        self.assertTrue(self.compile(status=1))

    def test_cache_that_cannot_be_written(self):
        self.write("cache", "a file, where a folder is wanted")
        self.assertTrue(self.compile())
        self.assertTrue(self.compile())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
