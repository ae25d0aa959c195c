"""What the checks share: the files of the tree, and how a check says what is wrong.

A check is a function of the tree's root that yields one line for each fault. Files are found by
walking, not by git, so that a check also works in an unpacked archive or another user's clone.
"""
import os
import sys

SKIP = {".git", "build", "models", "__pycache__", ".cache"}


def files(root, *tops, suffixes=None):
    """Paths relative to root, sorted: under each of tops (the whole tree if none are given)."""
    found = []
    for top in tops or (".",):
        for folder, folders, names in os.walk(os.path.join(root, top)):
            folders[:] = sorted(name for name in folders if name not in SKIP)
            for name in names:
                if suffixes is None or os.path.splitext(name)[1] in suffixes:
                    found.append(os.path.relpath(os.path.join(folder, name), root))
    return sorted(found)


def text(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        return file.read()


def main(check, arguments=None):
    """Runs check(root, ...) on the command line's arguments; exit status 1 if it found a fault."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        arguments = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")]
    faults = list(check(os.path.abspath(arguments[0]), *arguments[1:]))
    for fault in faults:
        print(fault)
    name = os.path.basename(sys.argv[0])
    print(f"{name}: {len(faults)} faults" if faults else f"{name}: ok")
    sys.exit(1 if faults else 0)
