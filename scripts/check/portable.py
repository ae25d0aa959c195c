#!/usr/bin/env python3
"""A portable build needs glibc, no newer than 2.36, and nothing else.

Usage: portable.py ROOT FILE...
FILE: an executable or shared library. A test program may also need libcmocka, from its own folder.
"""
import os
import re
import subprocess

import tree

GLIBC_MAX = (2, 36)
GLIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1",
         "ld-linux-x86-64.so.2"}
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
RUNPATH = re.compile(r"\((?:RPATH|RUNPATH)\).*\[(.+)\]")
VERSION = re.compile(r"Name: (\S+)\s+Flags:")


def faults_of(root, path, text, dynamic):
    name = os.path.relpath(path, root)
    test = os.path.basename(os.path.dirname(path)) == "tests"
    for needed in NEEDED.findall(dynamic):
        if needed not in GLIBC and not (test and needed == "libcmocka.so.0"):
            yield f"{name}: needs {needed}; link it statically (is its .a installed?)"
    for folder in RUNPATH.findall(dynamic):
        if folder != "$ORIGIN":
            yield f"{name}: looks for libraries in {folder}"
    needs = dynamic.partition("Version needs section")[2]
    for version in sorted(set(VERSION.findall(needs))):
        number = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", version)
        if number and tuple(map(int, number.groups())) > GLIBC_MAX:
            yield f"{name}: needs {version}; build on Debian 12 or another system of its age"
        elif not number:
            yield f"{name}: needs {version}, which is not glibc's"
    if root.encode() + b"/" in text:
        yield f"{name}: holds the path of the source tree"


def check(root, *paths):
    if not paths:
        yield "no file was given"
    for path in map(os.path.abspath, paths):
        result = subprocess.run(["readelf", "-dVW", path], capture_output=True, text=True)
        if result.returncode or "NEEDED" not in result.stdout:
            yield f"{os.path.relpath(path, root)}: no dynamic program or library; {result.stderr.strip()}"
            continue
        with open(path, "rb") as file:
            yield from faults_of(root, path, file.read(), result.stdout)


if __name__ == "__main__":
    tree.main(check)
