#!/usr/bin/env python3
"""Shows each check a small tree that it must accept and trees that it must refuse.

Usage: selftest.py [ROOT]   (ROOT is not used: the trees are made up here)
"""
import os
import subprocess
import sys
import tempfile
import unittest

import files
import headers
import layers
import portable
import readmes
import symbols
import tests

README = "# base - x\nUses: -. Used by: all.\nIdeas: -\nRules: -\nCost: -\nFailures: -\nNot here: -\nTry: -\n"
HEADER = "#ifndef A\n#define A\n#define PLLM_API __attribute__((visibility(\"default\")))\nPLLM_API int pllm_a(void); /* PLLM_API int old(void); */\n#endif\n"
GOOD = {
    "include/pagedllm/a.h": HEADER,
    "src/base/README.md": README,
    "src/base/a.h": "#include <stdint.h>\n#include <pagedllm/a.h>\n",
    "src/device/README.md": README.replace("base", "device"),
    "src/device/b.c": '#include "base/a.h"\n#include "pagedllm/a.h"\n#include "local.h"\n',
    "src/device/local.h": "",
}


class Checks(unittest.TestCase):
    def faults(self, check, changes, *arguments):
        with tempfile.TemporaryDirectory() as root:
            for path, content in {**GOOD, **changes}.items():
                path = os.path.join(root, path)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if content is not None:
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(content)
            return list(check(root, *arguments))

    def refused(self, check, changes, words):
        found = self.faults(check, changes)
        self.assertEqual(len(found), 1, found)
        self.assertIn(words, found[0])

    def test_layers(self):
        self.assertEqual(self.faults(layers.check, {}), [])
        header = {"src/vmm/v.h": "", "src/kernels/k.h": "", "src/tier/t.h": ""}
        self.refused(layers.check, {**header, "src/base/x.c": '#include "vmm/v.h"'}, "base is below")
        self.refused(layers.check, {**header, "src/vmm/x.c": '#include <kernels/k.h>'}, "peers")
        self.refused(layers.check, {**header, "src/vmm/x.c": '#include "../tier/t.h"'}, "below tier")
        self.refused(layers.check, {"include/pagedllm/x.h": '# include "base/a.h"'}, "public header")
        self.refused(layers.check, {"src/base/x.c": '#include "base/gone.h"'}, "no such file")
        self.refused(layers.check, {"src/other/x.c": ""}, "no module")

    def test_tests(self):
        self.assertEqual(self.faults(tests.check, {"tests/CMakeLists.txt": "pllm_test_program(a a.c)\n"}), [])
        self.refused(tests.check, {"tests/a/CMakeLists.txt": " add_executable(a a.c)\n"}, "CMakeLists.txt:1")

    def test_readmes(self):
        self.assertEqual(self.faults(readmes.check, {}), [])
        self.refused(readmes.check, {"src/base/README.md": None}, "missing")
        self.refused(readmes.check, {"src/base/README.md": README.replace("Cost", "")}, "'Cost'")
        self.refused(readmes.check, {"src/base/README.md": README[2:]}, "begin")

    def test_files(self):
        self.assertEqual(self.faults(files.check, {}), [])
        self.refused(files.check, {"src/base/x.c": "\n" * 1201}, "1201 lines")
        self.refused(files.check, {"docs/x.md": "see /ho" + "me/somebody/x"}, "docs/x.md:1")
        self.refused(files.check, {"tests/blob.bin": "x" * 3_000_001}, "bytes")

    def test_headers(self):
        self.assertEqual(self.faults(headers.check, {}), [])
        bad = self.faults(headers.check, {"include/pagedllm/b.h": "uint32_t x;"})
        self.assertEqual(len(bad), 2, bad) # neither as C nor as C++
        self.refused(headers.check, {"include/pagedllm/b.h": "extern int new;"}, "C++11")
        self.assertEqual(len(self.faults(headers.check, {"include/pagedllm/b.h": "enum { X };"})), 2)

    def test_symbols(self):
        with tempfile.TemporaryDirectory() as folder:
            library = os.path.join(folder, "lib.so")
            subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library,
                            "-Wl,-soname,libpagedllm.so.0"], check=True, text=True,
                           input="int pllm_a(void); int pllm_a(void) { return 0; }")
            listed = {symbols.LIST: "pllm_a\n"}
            self.assertEqual(self.faults(symbols.check, listed, library), [])
            self.assertEqual(len(self.faults(symbols.check, {symbols.LIST: ""}, library)), 1)
            more = self.faults(symbols.check, {symbols.LIST: "pllm_a\npllm_b\n"}, library)
            self.assertEqual(len(more), 1)
            hidden = {**listed, "include/pagedllm/a.h": "/* PLLM_API int pllm_a(void); */"}
            self.assertEqual(len(self.faults(symbols.check, hidden, library)), 1)
            extra = {**listed, "include/pagedllm/b.h": "PLLM_API const int *\npllm_b(int (*f)(int));"}
            self.assertEqual(len(self.faults(symbols.check, extra, library)), 1)

    def test_portable(self):
        with tempfile.TemporaryDirectory() as folder:
            def build(name, source, *flags):
                path = os.path.join(folder, name)
                subprocess.run(["cc", "-x", "c", "-", "-o", path, "-x", "none", *flags], check=True,
                               text=True, input=source)
                return path
            main = "#include <stdio.h>\nint main(void) { return !puts(%s); }"
            plain = build("plain", main % '"x"')
            self.assertEqual(self.faults(portable.check, {}, plain), [])
            other = build("libother.so", "int other(void); int other(void) { return 0; }", "-shared", "-fPIC")
            needs = build("needs", "int other(void); int main(void) { return other(); }", other,
                          f"-Wl,-rpath,{folder}")
            found = list(portable.check(os.path.join(folder, "tree"), needs))
            self.assertEqual(len(found), 2, found) # the library, and where it is looked for
            self.assertEqual(len(list(portable.check(folder, needs))), 3) # and a path of the tree
            self.assertEqual(len(self.faults(portable.check, {}, __file__)), 1)
            self.assertEqual(len(self.faults(portable.check, {})), 1)
            newest = portable.GLIBC_MAX
            portable.GLIBC_MAX = (2, 2)
            self.assertNotEqual(self.faults(portable.check, {}, plain), [])
            portable.GLIBC_MAX = newest


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
