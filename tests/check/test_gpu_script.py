#!/usr/bin/env python3
"""scripts/gpu/run.sh on a made-up machine: what it runs, how it tells it, and how it ends.

Usage: test_gpu_script.py ROOT
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(sys.argv[1])
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROGRAMS = {
    "build/portable/tests/cuda_good": "echo all good",
    "build/portable/tests/cuda_bad": 'echo \'it said "no"\'; exit 3',
    "build/portable/tests/cuda_smollm2": '[ -f "$PLLM_TEST_MODEL" ]',
    "build/portable/tests/unit_other": "exit 1",
    "build/portable/bench/bench_cuda_copy": "echo '{}' >bench/results/cuda_copy.json; echo $# arguments",
    "build/portable/bench/bench_other": "exit 1",
}
SMI = "echo 'Some GPU, 580.1, 100 MiB, 9.0'"
SANITIZER = """[ "$PLLM_TEST_SMALL" = 1 ] || exit 1
check=$2
while [ "${1#/}" = "$1" ] && [ "${1#build}" = "$1" ]; do shift; done
echo $check && "$@"
"""
PAGEDLLM = """[ $1 = doctor ] && exit
[ $1 = bench ] || exit 1
cat <<END
{
  "results": [
    {
      "depth": 256,
      "prefill_tokens": 4,
      "prefill_tokens_per_second": 40123.4567,
      "decode_tokens_per_second": 245.678,
      "of_bound": 0.81771005
    }
  ]
}
END
"""
TABLE = """import sys
if "--list" in sys.argv:
    print("llama2  90 s  pagedllm bench --shape x")
    print("model  90 s  pagedllm bench models/y.gguf")
else:
    print("the goals,", *sys.argv[1:2])
    open(sys.argv[4], "w").close()
    sys.exit(1)
"""
ALL = """case "$*" in
--list) printf 'cuda_here\\nbench_cuda_there\\n' ;;
cuda_here) echo tested ;;
"bench_cuda_there --smoke") echo benched ;;
*) exit 1 ;;
esac"""


class GpuScript(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name
        os.makedirs(os.path.join(self.root, "scripts/gpu"))
        shutil.copy(os.path.join(ROOT, "scripts/gpu/run.sh"), os.path.join(self.root, "scripts/gpu"))
        for path, body in PROGRAMS.items():
            self.program(path, body)

    def program(self, path, body):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\n{body}\n")
        os.chmod(path, 0o755)

    def run_script(self, *arguments, status=0):
        environment = {"PATH": os.path.join(self.root, "tools") + ":" + os.environ["PATH"]}
        result = subprocess.run(["bash", os.path.join(self.root, "scripts/gpu/run.sh"), *arguments],
                                capture_output=True, text=True, cwd="/", env=environment)
        if status is not None:
            self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def suite(self, path="bench/results/cuda_suite.json"):
        with open(os.path.join(self.root, path), encoding="utf-8") as file:
            return {step["name"]: step for step in json.load(file)["steps"]}

    def test_no_gpu(self):
        if os.path.exists("/dev/nvidia0"):
            self.skipTest("there is one")
        self.program("tools/nvidia-smi", "exit 9")
        said = self.run_script(status=1)
        self.assertEqual(said.count("\n"), 1, said)
        self.assertIn("no NVIDIA GPU", said)

    def test_list_and_usage(self):
        listed = self.run_script("--list")
        self.assertIn("test.good", listed)
        self.assertNotIn("other", listed)
        self.assertEqual(len(self.run_script("--list", "--only", "bench.*").splitlines()), 1)
        self.assertRegex(listed, r"memcheck.good +75s  about 20 s; never run")
        os.makedirs(os.path.join(self.root, "bench/results"))
        with open(os.path.join(self.root, "bench/results/cuda_suite.json"), "w", encoding="utf-8") as file:
            file.write('{"gpu": "x", "steps": [\n  {"name": "test.good", "verdict": "ok", "commit": "abc"}\n]}\n')
        self.assertRegex(self.run_script("--list"), r"test.good +300s  ok at abc")
        self.run_script("--what", status=2)
        self.run_script("--only", status=2)

    def test_verdicts(self):
        self.program("tools/nvidia-smi", SMI)
        self.program("tools/compute-sanitizer", SANITIZER)
        said = self.run_script(status=1)
        steps = self.suite()
        self.assertEqual(steps["test.good"]["verdict"], "ok")
        self.assertEqual(steps["test.good"]["words"], "all good")
        self.assertEqual(steps["test.bad"]["verdict"], "FAILED 3")
        self.assertEqual(steps["test.bad"]["words"], 'it said "no"')
        self.assertEqual(steps["test.smollm2"]["verdict"], "left out")
        self.assertEqual(steps["memcheck.good"]["verdict"], "ok")
        self.assertEqual(steps["racecheck.bad"]["verdict"], "FAILED 3")
        self.assertNotIn("memcheck.smollm2", steps)
        self.assertEqual(steps["bench.copy"]["words"], "0 arguments")
        self.assertTrue(os.path.exists(os.path.join(self.root, "build/gpu/cuda_copy.json")))
        self.assertIn("10 steps: 5 passed, 4 failed, 1 left out", said.splitlines()[-1])
        self.assertIn("never run on this commit: test.smollm2", said.splitlines()[-2])

    def test_sanitizers(self):
        """In the order that the script has; a part, in a brief form; not longer than they may all take."""
        self.program("tools/nvidia-smi", SMI)
        self.program("tools/compute-sanitizer", SANITIZER)
        for name in ("engine", "pool", "linear"):
            self.program(f"build/portable/tests/cuda_{name}", 'echo "pattern $1"')
        self.run_script("--only", "*check.*", "--only", "test.pool", status=1) # bad is bad
        names = list(self.suite("build/gpu/cuda_suite.json"))
        self.assertLess(names.index("memcheck.linear"), names.index("racecheck.linear"))
        self.assertLess(names.index("racecheck.linear"), names.index("memcheck.engine"))
        self.assertLess(names.index("synccheck.engine"), names.index("memcheck.good")) # not known: last
        steps = self.suite("build/gpu/cuda_suite.json")
        self.assertNotIn("racecheck.pool", steps) # no kernel of ours
        self.assertEqual(steps["racecheck.engine"]["words"], "pattern *tiny*")
        self.assertEqual(steps["memcheck.engine"]["words"].strip(), "pattern")
        with open(os.path.join(self.root, "build/gpu/cuda_suite.json"), encoding="utf-8") as file:
            never = json.load(file)["never_run"]
        self.assertIn("test.engine", never)
        self.assertNotIn("test.pool", never)
        script = os.path.join(self.root, "scripts/gpu/run.sh")
        with open(script, encoding="utf-8") as file:
            text = file.read()
        with open(script, "w", encoding="utf-8") as file:
            file.write(text.replace("SANITIZER_SECONDS=480", "SANITIZER_SECONDS=0"))
        said = self.run_script("--only", "memcheck.pool", "--only", "test.pool")
        self.assertEqual(self.suite("build/gpu/cuda_suite.json")["memcheck.pool"]["verdict"], "left out")
        self.assertIn("the sanitizers have had their 0 s", said)

    def test_speed(self):
        self.program("tools/nvidia-smi", SMI)
        self.program("build/portable/pagedllm", PAGEDLLM)
        self.program("bench/gpu/table.py", TABLE)
        with open(os.path.join(self.root, "bench/gpu/table.py"), "w", encoding="utf-8") as file:
            file.write(TABLE)
        self.assertIn("the goals, --in", self.run_script("--only", "speed.*"))
        steps = self.suite("build/gpu/cuda_suite.json")
        self.assertEqual(steps["speed.llama2"]["verdict"], "ok")
        self.assertEqual(steps["speed.model"]["verdict"], "left out")
        self.assertTrue(os.path.exists(os.path.join(self.root, "bench/results/cuda_llama2.json")))
        # A later part adds to it, and replaces what it ran again.
        self.program("build/portable/pagedllm", "echo no device >&2; exit 1")
        self.run_script("--only", "doctor", "--only", "speed.llama2", status=1)
        steps = self.suite("build/gpu/cuda_suite.json")
        self.assertEqual(set(steps), {"doctor", "speed.llama2", "speed.model"})
        step = steps["speed.llama2"]
        self.assertEqual((step["verdict"], step["words"]), ("FAILED 1", "no device"))

    def test_all_skipped(self):
        self.program("tools/nvidia-smi", SMI)
        self.program("build/portable/tests/cuda_skips", "echo '[  PASSED  ] 0 test(s).'")
        self.run_script("--only", "test.skips", status=1)
        self.assertEqual(self.suite("build/gpu/cuda_suite.json")["test.skips"]["verdict"], "RAN NONE")

    def test_part_with_model(self):
        self.program("tools/nvidia-smi", SMI)
        self.program(f"models/{MODEL}", "")
        out = os.path.join(self.root, "elsewhere")
        self.run_script("--only", "*.smollm2", "--only", "bench.*", "--smoke", "--out", out)
        steps = self.suite("elsewhere/cuda_suite.json")
        self.assertEqual({step["verdict"] for step in steps.values()}, {"ok"})
        self.assertEqual(set(steps), {"test.smollm2", "bench.copy"})
        self.assertEqual(steps["bench.copy"]["words"], "1 arguments")
        self.assertFalse(os.path.exists(os.path.join(self.root, "bench/results/cuda_suite.json")))

    def test_all_in_one(self):
        self.program("tools/nvidia-smi", SMI)
        self.program("tools/compute-sanitizer", SANITIZER)
        self.program("build/portable/tests/all_cuda", ALL)
        self.program("build/portable/pagedllm", PAGEDLLM)
        self.run_script("--smoke")
        steps = self.suite()
        self.assertEqual(set(steps), {"test.here", "memcheck.here", "racecheck.here", "synccheck.here",
                                      "bench.there", "doctor", "speed.smoke"})
        self.assertEqual({step["verdict"] for step in steps.values()}, {"ok"})
        self.assertEqual(steps["memcheck.here"]["words"], "tested")
        self.assertEqual(steps["bench.there"]["words"], "benched")
        self.assertEqual(steps["speed.smoke"]["words"],
                         "depth 256 prefill 40123.4 decode 245.6 of bound 0.81; ")
        with open(os.path.join(self.root, "build/gpu/smoke.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["results"][0]["depth"], 256)

    def test_too_long(self):
        self.program("tools/nvidia-smi", SMI)
        self.program("build/portable/tests/cuda_slow", "sleep 100")
        script = os.path.join(self.root, "scripts/gpu/run.sh")
        with open(script, encoding="utf-8") as file:
            text = file.read()
        with open(script, "w", encoding="utf-8") as file:
            file.write(text.replace('" 300 "$name"', '" 1 "$name"'))
        self.run_script("--only", "test.slow", status=1)
        self.assertEqual(self.suite("build/gpu/cuda_suite.json")["test.slow"]["verdict"], "TOO LONG")

    def test_seconds(self):
        self.program("tools/nvidia-smi", SMI)
        self.program("build/portable/tests/cuda_a_slow", "sleep 100")
        self.run_script("--only", "test.*", "--seconds", "1", status=None)
        steps = self.suite("build/gpu/cuda_suite.json")
        # On a busy machine the second may be over before the first step.
        self.assertIn(steps["test.a_slow"]["verdict"], ("TOO LONG", "left out"))
        self.assertEqual(steps["test.good"]["verdict"], "left out")
        self.run_script("--seconds", "x", status=2)

    def test_nothing_built(self):
        shutil.rmtree(os.path.join(self.root, "build"))
        self.program("tools/nvidia-smi", SMI)
        self.assertIn("make portable", self.run_script(status=1))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
