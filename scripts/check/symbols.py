#!/usr/bin/env python3
"""What the shared library exports is exactly scripts/check/symbols.txt, and what headers declare.

Usage: symbols.py ROOT LIBRARY [--update]
--update rewrites the list; read the difference before you commit it: a name that goes away breaks
programs, and one that appears must be kept for ever.
"""
import os
import re
import subprocess

import tree

LIST = os.path.join("scripts", "check", "symbols.txt")
SONAME = "libpagedllm.so.0"
DECLARED = re.compile(r"\bPLLM_API\b[^;(]*?\b(\w+)\s*[(;\[]")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def exported(library):
    output = subprocess.run(["nm", "-D", "--defined-only", library], check=True,
                            capture_output=True, text=True).stdout
    names = {line.split()[-1].split("@")[0] for line in output.splitlines() if line.strip()}
    # nm also lists the version node itself, as an absolute symbol.
    absolute = {line.split()[-1].split("@")[0] for line in output.splitlines() if " A " in line}
    return names - absolute


def declared(root):
    names = set()
    for path in tree.files(root, "include", suffixes={".h"}):
        content = COMMENT.sub(" ", tree.text(root, path))
        content = re.sub(r"^[ \t]*#[^\n]*(?:\\\n[^\n]*)*", " ", content, flags=re.MULTILINE)
        names.update(match.group(1) for match in DECLARED.finditer(content))
    return names


def soname(library):
    output = subprocess.run(["objdump", "-p", library], check=True, capture_output=True,
                            text=True).stdout
    match = re.search(r"SONAME\s+(\S+)", output)
    return match.group(1) if match else None


def check(root, library, update=None):
    names = exported(library)
    if update == "--update":
        with open(os.path.join(root, LIST), "w", encoding="utf-8") as file:
            file.writelines(name + "\n" for name in sorted(names))
    listed = set(tree.text(root, LIST).split())
    in_headers = declared(root)
    for name in sorted(names - listed):
        yield f"{name}: exported, not in {LIST} (scripts/check/symbols.py . LIBRARY --update)"
    for name in sorted(listed - names):
        yield f"{name}: in {LIST}, not exported"
    for name in sorted(names - in_headers):
        yield f"{name}: exported, but no public header declares it with PLLM_API"
    for name in sorted(in_headers - names):
        yield f"{name}: declared with PLLM_API, but not exported"
    for name in sorted(names):
        if not name.startswith("pllm_"):
            yield f"{name}: exported without the prefix pllm_"
    if soname(library) != SONAME:
        yield f"{library}: SONAME is {soname(library)}, not {SONAME}"


if __name__ == "__main__":
    tree.main(check)
