#!/usr/bin/env python3
"""Every module under src/ has a README.md that says what a reader needs first.

Usage: readmes.py ROOT
"""
import os
import re

import tree

PARTS = ("Uses", "Used by", "Ideas", "Rules", "Cost", "Failures", "Not here", "Try")


def check(root):
    modules = {path.split(os.sep)[1] for path in tree.files(root, "src", suffixes={".c", ".h"})}
    for module in sorted(modules):
        path = os.path.join("src", module, "README.md")
        if not os.path.isfile(os.path.join(root, path)):
            yield f"{path}: missing (src/{module} has code)"
            continue
        content = tree.text(root, path)
        if not re.match(rf"# {module} - \S", content):
            yield f"{path}: does not begin with '# {module} - what it is'"
        for part in PARTS:
            if not re.search(rf"\b{part}\b", content, re.IGNORECASE):
                yield f"{path}: says nothing under '{part}'"


if __name__ == "__main__":
    tree.main(check)
