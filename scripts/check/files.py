#!/usr/bin/env python3
"""Files stay small and hold no path of one machine.

Usage: files.py ROOT
"""
import os
import re

import tree

LINES_MAX = 1200
BYTES_MAX = 3_000_000
SOURCE = {".c", ".h", ".cu", ".py", ".sh", ".md", ".txt", ".cmake", ".json", ".patch", ""}
# A home or a scratch folder of somebody. /tmp, /proc, /dev/shm and system folders are anyone's.
MACHINE = re.compile(r"(?<![\w.$}/-])/(?:home|root|Users|work|mnt|farm|workspace)/[\w.]")


def check(root):
    for path in tree.files(root):
        suffix = os.path.splitext(path)[1]
        size = os.path.getsize(os.path.join(root, path))
        if size > BYTES_MAX:
            yield f"{path}: {size} bytes, more than {BYTES_MAX}"
            continue
        if suffix not in SOURCE:
            continue
        content = tree.text(root, path)
        if suffix in {".c", ".h", ".cu", ".py", ".sh"} and content.count("\n") > LINES_MAX:
            yield f"{path}: {content.count(chr(10))} lines, more than {LINES_MAX}: split it by idea"
        if suffix == ".json" and size > 200_000:
            continue # data
        for number, line in enumerate(content.splitlines(), 1):
            if MACHINE.search(line):
                yield f"{path}:{number}: a path of one machine: {line.strip()[:80]}"


if __name__ == "__main__":
    tree.main(check)
