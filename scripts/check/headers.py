#!/usr/bin/env python3
"""Each public header compiles alone, without a warning, as C11 and as C++11.

Usage: headers.py ROOT
"""
import os
import subprocess

import tree

WARN = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
COMPILERS = (
    ("C11", [os.environ.get("CC", "cc"), "-std=c11", "-x", "c"]),
    ("C++11", [os.environ.get("CXX", "c++"), "-std=c++11", "-x", "c++"]),
)


def check(root):
    headers = tree.files(root, "include", suffixes={".h"})
    if not headers:
        yield "include/: no headers"
    for path in headers:
        name = os.path.relpath(path, "include")
        for language, compiler in COMPILERS:
            command = compiler + WARN + ["-I", os.path.join(root, "include"), "-"]
            # Twice, so that a missing include guard shows.
            source = f"#include <{name}>\n#include <{name}>\n"
            try:
                result = subprocess.run(command, input=source, capture_output=True, text=True)
            except FileNotFoundError:
                yield f"{command[0]} is not installed"
                return
            if result.returncode != 0:
                yield f"{path}: does not compile alone as {language}:\n{result.stderr.rstrip()}"


if __name__ == "__main__":
    tree.main(check)
