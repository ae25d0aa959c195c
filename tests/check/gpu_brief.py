#!/usr/bin/env python3
"""The brief forms of the tests of kernels, which sanitizers run on a GPU, still reach every kernel.

Each is run on the driver of tests/fake, which counts launches and runs none. A test's head says what its
brief form reaches, and with how many launches at most:

    Brief form, at most 300 launches, reaches: pllm_attend_* pllm_kv_*.
    Brief form, at most 33000 launches; of *tiny* at most 800.

The first is held to its words: what it launches is among them, and every kernel that is looked up and
among them is launched. A kernel that somebody looks up and no test names is an error, but for pllm_probe_*.
The second is a test of the engine, of which only the number is held, that of a part of it too.

Usage: gpu_brief.py ROOT BUILD [NAME]...     of these tests only (engine, linear ...); then no kernel is missed
"""
import fnmatch
import glob
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT, BUILD = (os.path.abspath(path) for path in sys.argv[1:3])
ONLY = sys.argv[3:]
HEAD = re.compile(r"Brief form, at most (\d+) launches(?:, reaches: ([^.]*)|; of (\S+) at most (\d+))\.")


def run(name, pattern=None):
    """(kernel: (launches, threads)), seconds"""
    with tempfile.TemporaryDirectory() as folder:
        launches = os.path.join(folder, "launches")
        environment = dict(os.environ, LD_LIBRARY_PATH=os.path.join(BUILD, "tests", "fake_driver"),
                           PLLM_TEST_SMALL="1", PLLM_TEST_LAUNCHES=launches)
        command = [os.path.join(BUILD, "tests", "cuda_" + name)] + ([pattern] if pattern else [])
        start = time.monotonic()
        result = subprocess.run(command, cwd=os.path.join(BUILD, "tests"), env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seconds = time.monotonic() - start
        if result.returncode or not os.path.exists(launches):
            sys.exit(f"cuda_{name} fails on the fake driver:\n{result.stdout.decode(errors='replace')}")
        kernels = {}
        with open(launches, encoding="ascii") as file:
            for line in file:
                kernel, count, threads = line.split()
                was = kernels.get(kernel, (0, 0))
                kernels[kernel] = (was[0] + int(count), was[1] + int(threads))
    return kernels, seconds


def matches(kernel, patterns):
    return any(fnmatch.fnmatchcase(kernel, pattern) for pattern in patterns)


wrong, named, looked_up = [], [], set()
print(f"{'test':12} {'launches':>8} {'Mthreads':>9} {'kernels':>7} {'seconds':>7}")


def check(name, most, pattern=None):
    kernels, seconds = run(name, pattern)
    launches = sum(count for count, _ in kernels.values())
    reached = {kernel for kernel, (count, _) in kernels.items() if count}
    threads = sum(threads for _, threads in kernels.values()) / 1e6
    print(f"{name} {pattern or '':{11 - len(name)}} {launches:8} {threads:9.1f} {len(reached):7} {seconds:7.1f}")
    if launches > most:
        wrong.append(f"{name} {pattern or ''}: {launches} launches; its head says at most {most}")
    if not launches:
        wrong.append(f"{name} {pattern or ''} launches nothing")
    return kernels, reached


for path in sorted(glob.glob(os.path.join(ROOT, "tests", "cuda", "test_cuda_*.c"))):
    name = os.path.basename(path)[len("test_cuda_"):-2]
    with open(path, encoding="utf-8") as source:
        head = HEAD.search(re.sub(r"\n \* ?", " ", source.read().split("*/")[0]))
    if not head or (ONLY and name not in ONLY):
        continue
    kernels, reached = check(name, int(head[1]))
    looked_up |= set(kernels)
    if head[3]:
        check(name, int(head[4]), head[3])
        continue
    patterns = head[2].split()
    named += patterns
    for kernel in sorted(reached):
        if not matches(kernel, patterns):
            wrong.append(f"{name} reaches {kernel}, which its head does not name")
    for kernel in sorted(set(kernels) - reached):
        if matches(kernel, patterns):
            wrong.append(f"{name} reaches {kernel} no more")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(kernel, pattern) for kernel in reached):
            wrong.append(f"{name} names {pattern}, and reaches no such kernel")
for kernel in sorted(looked_up):
    if not ONLY and not matches(kernel, named + ["pllm_probe_*"]):
        wrong.append(f"no test's brief form reaches {kernel}")
if not looked_up:
    wrong.append("no test says what its brief form reaches")
for line in wrong:
    print(line)
sys.exit(1 if wrong else 0)
