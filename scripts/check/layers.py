#!/usr/bin/env python3
"""Includes point down the layers only (docs/ARCHITECTURE.md): never up, never to a peer.

Usage: layers.py ROOT
Programs (bench, tests, examples) may include any module; the public headers none.
"""
import os
import re

import tree

# One line a layer, lowest first; modules on one line are peers.
LAYERS = (
    ("base",),
    ("device",),
    ("vmm", "kernels"),
    ("tier", "pool"),
    ("pager", "model", "store"),
    ("engine", "redis"),
    ("cli",),
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include(?:_next)?[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)


def target_of(root, path, name):
    """The file of the tree that `#include "name"` in path means, or None if it is a system one."""
    for folder in (os.path.dirname(path), "src", "include"):
        candidate = os.path.normpath(os.path.join(folder, name))
        if os.path.isfile(os.path.join(root, candidate)):
            return candidate
    return None


def module_of(path):
    parts = path.split(os.sep)
    return parts[1] if parts[0] == "src" and len(parts) > 2 else None


def check(root):
    for path in tree.files(root, "src", "include", suffixes={".c", ".h", ".cu", ".cuh", ".inc"}):
        own = module_of(path)
        public = path.startswith("include" + os.sep)
        if not public and own not in LEVEL:
            yield f"{path}: its folder is no module of a known layer (scripts/check/layers.py)"
            continue
        for match in INCLUDE.finditer(tree.text(root, path)):
            name = match.group(2)
            target = target_of(root, path, name)
            line = tree.text(root, path)[: match.start()].count("\n") + 1
            where = f"{path}:{line}: includes {name}"
            if target is None:
                if match.group(1) == '"':
                    yield f"{where}: no such file in src/, include/ or beside it"
                continue
            other = module_of(target)
            if public:
                if not target.startswith(os.path.join("include", "pagedllm") + os.sep):
                    yield f"{where}: a public header includes nothing from src/"
            elif other is None:
                if not target.startswith("include" + os.sep):
                    yield f"{where}: {target} belongs to no module"
            elif other not in LEVEL:
                yield f"{where}: {other} is no module of a known layer"
            elif other != own and LEVEL[other] == LEVEL[own]:
                yield f"{where}: {own} and {other} are peers"
            elif LEVEL[other] > LEVEL[own]:
                yield f"{where}: {own} is below {other}"


if __name__ == "__main__":
    tree.main(check)
