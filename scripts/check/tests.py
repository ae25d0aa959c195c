#!/usr/bin/env python3
"""Programs of tests/ are added by pllm_test_program (cmake/test_program.cmake) and nothing else.

Then each finds the same headers and libraries in every preset: what compiles where CUDA is also
compiles under the sanitizers, where it is not.

Usage: tests.py ROOT
"""
import os
import re

import tree


def check(root):
    for path in tree.files(root, "tests"):
        if os.path.basename(path) != "CMakeLists.txt":
            continue
        for number, line in enumerate(tree.text(root, path).splitlines(), 1):
            if re.match(r"\s*add_executable\s*\(", line):
                yield f"{path}:{number}: add_executable: a test program is added by pllm_test_program"


if __name__ == "__main__":
    tree.main(check)
