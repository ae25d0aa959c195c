#!/usr/bin/env python3
"""bench of shapes with random weights, and its suite, on the host device."""
import json
import os
import signal
import subprocess
import sys
import time
import unittest
import xml.etree.ElementTree

from program import MODEL, ROOT, ProgramTest

SHAPE = ("bench", "--shape", "smollm2-135m", "--random-weights", "--weights", "q4_0")


class Bench(ProgramTest):
    def test_shape(self):
        report = json.loads(self.succeed(*SHAPE, "--depth", "0,64", "--batch", "1,3", "--prefill", 32,
                                         "--decode", 4, "--kv-format", "f16", "--json"))
        self.assertEqual(report["model"], "smollm2-135m (random q4_0)")
        self.assertEqual(report["weight_bytes"], report["step_weight_bytes"]) # tied: nothing is left out
        self.assertGreater(report["device_read_bytes_per_second"], 1e8)
        self.assertGreater(report["link_bytes_per_second"], 1e8)
        points = {(r["batch"], r["depth"]): r for r in report["results"]}
        self.assertEqual(set(points), {(1, 0), (1, 64), (3, 0), (3, 64)})
        for (batch, depth), r in points.items():
            for key in ("prefill_tokens_per_second", "prefill_ms", "decode_tokens_per_second",
                        "decode_ms_median", "bound_ms", "of_bound"):
                self.assertGreater(r[key], 0, (batch, depth, key))
            self.assertEqual(r["bound_by"], "device memory")
            self.assertEqual("fill_ms" in r, depth > 0)
        # Weights are read once a step, whatever the batch; KV once a sequence.
        kv = 64 * 30 * 3 * 64 * 2 * 2
        self.assertAlmostEqual(points[1, 64]["read_bytes_per_token"], report["weight_bytes"] + kv, delta=1)
        self.assertAlmostEqual(points[3, 64]["read_bytes_per_token"], report["weight_bytes"] / 3 + kv, delta=1)

    def test_over_a_link(self):
        """Over a link of 25 MB/s, slower than any busy machine, KV that misses is the bound, and a token after an eviction waits for all of it."""
        report = json.loads(self.succeed(*SHAPE, "--depth", 640, "--prefill", 0, "--decode", 4, "--json",
                                         "--kv-format", "f16", "--kv-limit", "8MB", "--host-memory", "1GB",
                                         "--link-bandwidth", "25MB", "--resume"))
        self.assertLess(report["link_bytes_per_second"], 1.05 * 25e6)
        result = report["results"][0]
        self.assertGreater(result["not_resident_bytes_per_token"], 4e6)
        self.assertEqual(result["bound_by"], "link")
        kv = 640 * 30 * 3 * 64 * 2 * 2 # all of it comes back, less what was staged
        self.assertGreater(result["resume_ms"], 0.7 * kv / 25e6 * 1e3)
        self.assertAlmostEqual(result["bound_ms"], result["not_resident_bytes_per_token"]
                               / report["link_bytes_per_second"] * 1e3, delta=1e-3)

    def test_streamed_weights(self):
        """Over a link of 200 MB/s, weights that do not fit are the bound, and a step takes at least that."""
        report = json.loads(self.succeed(*SHAPE, "--depth", 32, "--prefill", 0, "--decode", 4, "--json",
                                         "--vram-limit", "40MB", "--link-bandwidth", "200MB"))
        result = report["results"][0]
        missing = report["weight_bytes"] - report["weight_resident_bytes"]
        self.assertEqual(result["not_resident_bytes_per_token"], missing)
        self.assertGreaterEqual(result["host_to_device_bytes_per_token"], missing)
        self.assertLess(result["host_to_device_bytes_per_token"], 1.01 * missing)
        self.assertEqual(result["bound_by"], "link")
        self.assertGreater(result["decode_ms_median"], 0.9 * result["bound_ms"])

    def test_tensor(self):
        """Paged and plain sums are equal, or the program says that the measurement is void."""
        report = json.loads(self.succeed("bench", "tensor", "--bytes", "20MB", "--json"))
        self.assertEqual((report["bytes"], report["not_resident_bytes"]), (20000000, 0))
        self.assertEqual(report["host_to_device_bytes"] + report["device_to_host_bytes"], 0)
        self.assertLess(abs(report["sum"]), 5 * 5000000 ** 0.5)
        half = json.loads(self.succeed("bench", "tensor", "--bytes", "20MB", "--json", "--page-size", "64KiB",
                                       "--vram-limit", "10MiB", "--link-bandwidth", "1GB"))
        self.assertEqual(half["sum"], report["sum"])
        self.assertEqual(half["not_resident_bytes"], 306 * 65536 - (10 << 20))
        for key, rate in (("host_to_device_bytes", "link_in_bytes_per_second"),
                          ("device_to_host_bytes", "link_out_bytes_per_second")):
            self.assertGreaterEqual(half[key], half["not_resident_bytes"])
            self.assertLess(half[rate], 1.01e9)
        self.assertGreater(half["over_bound"], 0.9) # faster than the link: something else was measured
        help_text = " ".join(self.succeed("bench", "--help").decode().split())
        self.assertRegex(help_text, r"4MiB if it is larger than --vram-limit.*\[2MiB\]")
        self.assertEqual(report["page_bytes"], 2 << 20)
        large = json.loads(self.succeed("bench", "tensor", "--bytes", "20MB", "--json", "--vram-limit", "12MiB"))
        self.assertEqual(large["page_bytes"], 4 << 20)
        for arguments, words in ((("--page-size", "96KiB"), "64 KiB"), (("--vram-limit", "64KiB"), "limit")):
            self.refuse("bench", "tensor", *arguments, words=[words])
        for arguments, words in (((MODEL, "--bytes", "1GB"), "--bytes"), (("tensor", "--suite"), "one of"),
                                 (("tensor", "--stats-json", "x"), "--stats-json")):
            result = self.run_program("bench", *arguments)
            self.assertEqual((result.returncode, result.stdout), (2, b""), arguments)
            self.assertIn(words.encode(), result.stderr)

    def test_pool(self):
        """A log of one's own: what was asked for at most, what was reserved, and each allocator's calls."""
        path = os.path.join(self.scratch, "own.log")
        with open(path, "w", encoding="ascii") as file:
            file.write("pagedllm-pool-log 1\n# three blocks, two at once\n"
                       "a 0 3000000 1\na 1 700 2\nr 0 2\nf 0 1\na 2 1000000 1\nf 1 2\n")
        report = json.loads(self.succeed("bench", "pool", "--log", path, "--json"))
        log, = report["logs"]
        self.assertEqual((log["name"], log["steps"], log["streams"], log["peak_bytes"], log["peak_blocks"]),
                         ("own.log", 6, 3, 3000700, 2))
        self.assertEqual([a["name"] for a in log["allocators"]], ["pool", "plain"])
        for allocator in log["allocators"]:
            self.assertEqual(allocator["calls"], 5)
            self.assertGreaterEqual(allocator["peak_reserved_bytes"], 3000700)
            self.assertLessEqual(allocator["p50_ns"], allocator["p99_ns"])
        self.assertEqual(log["allocators"][0]["pool"]["allocate_calls"], 3)
        text = self.succeed("bench", "pool", "--log", "fixed", "--output", self.scratch).decode()
        self.assertIn("reserved/", text)
        with open(os.path.join(self.scratch, "fixed.log"), encoding="ascii") as file:
            self.assertEqual(file.readline(), "pagedllm-pool-log 1\n")
        with open(path, "a", encoding="ascii") as file:
            file.write("f 7 1\n")
        self.refuse("bench", "pool", "--log", path, words=["line 9", "no block has that id"])
        self.refuse("bench", "pool", "--log", path + "x", words=["own.logx"])
        self.refuse("bench", "pool", "--log", "fixd", words=["fixd", "fixed", "streams"])
        result = self.run_program("bench", MODEL, "--log", path)
        self.assertEqual((result.returncode, result.stdout), (2, b""))
        self.assertIn(b"--log", result.stderr)

    def test_what_goes_together(self):
        for arguments, words in (
                (("bench",), "MODEL"), (("bench", "--shape", "llama-2-7b"), "--random-weights"),
                (("bench", MODEL, *SHAPE[1:]), "one of"), (("bench", MODEL, "--suite"), "one of"),
                (("bench", MODEL, "--weights", "f16"), "weights of its own"),
                (("bench", "--suite"), "--output"), ((*SHAPE, "--output", "x"), "--suite")):
            result = self.run_program(*arguments)
            self.assertEqual((result.returncode, result.stdout), (2, b""), arguments)
            self.assertIn(words.encode(), result.stderr)
        self.refuse("bench", "--shape", "llama-9", "--random-weights", words=["llama-9", "tinyllama-1.1b"])
        self.refuse("bench", "--shape", "mixtral-8x7b", "--random-weights", words=["mixture"])
        # Refused before a byte of it is made: 4 TB of KV.
        self.refuse("bench", "--shape", "llama-2-7b", "--random-weights", "--depth", 4000000, "--batch", 16,
                    words=["weights", "KV blocks"])
        self.refuse("bench", "--suite", "--output", self.scratch, "--models", "smollm2-135m:q3",
                    words=["smollm2-135m:q3"])
        self.refuse("bench", "--suite", "--output", self.scratch, "--models", "llama-9", words=["llama-9"])
        self.refuse("bench", "--suite", "--output", "/dev/null/x", "--models", "smollm2-135m",
                    words=["/dev/null/x"])

    def test_suite(self):
        folder = os.path.join(self.scratch, "suite")
        text = self.succeed("bench", "--suite", "--output", folder, "--models", "smollm2-135m:q4_0,mixtral-8x7b",
                            "--contexts", "32,4000000", "--batches", "16,17", "--decode", 3).decode()
        self.assertIn("2 of 8 points measured, 0 failed", text)
        with open(os.path.join(folder, "suite.json"), encoding="utf-8") as file:
            points = json.load(file)["points"]
        states = {}
        for point in points:
            states.setdefault(point["shape"], []).append(point["state"])
        self.assertEqual(states, {"smollm2-135m": ["measured", "skipped"] * 2, "mixtral-8x7b": ["skipped"] * 4})
        for point in points:
            if point["state"] == "measured":
                self.assertGreater(point["decode_tokens_per_second"], 0)
                self.assertGreater(point["fill_tokens_per_second"], 0)
            else:
                self.assertTrue(point["reason"])
        self.assertGreater(points[1]["kv_bytes"], 4000000 * 16 * 30 * 3 * 64 * 2 * 2)
        self.assertIn("KV blocks", points[1]["reason"])
        with open(os.path.join(folder, "suite.md"), encoding="utf-8") as file:
            report = file.read()
        self.assertIn("\n| 17 | 32 | ", report)
        self.assertIn("\n| 17 | 4000000 | skipped: needs", report)
        self.assertIn("Skipped: shape mixtral-8x7b is a mixture", report)
        # Plots hold a line a batch, and are well-formed.
        plot = xml.etree.ElementTree.parse(os.path.join(folder, "decode-smollm2-135m-q4_0.svg"))
        name = "{http://www.w3.org/2000/svg}"
        self.assertEqual(len(plot.findall(f".//{name}polyline")), 2)
        self.assertEqual(len(plot.findall(f".//{name}circle")), 2)
        self.assertEqual(sorted(os.listdir(folder)), ["decode-smollm2-135m-q4_0.svg", "prefill.svg", "suite.json",
                                                      "suite.md"])

    def points_of(self, folder):
        with open(os.path.join(folder, "suite.json"), encoding="utf-8") as file:
            return {(p["batch"], p["depth"]): p for p in json.load(file)["points"]}

    def test_suite_in_bounded_time(self):
        suite = ("bench", "--suite", "--output", self.scratch, "--models", "smollm2-135m:q4_0", "--decode", 2)
        # The first point shows that the second would take minutes.
        self.succeed(*suite, "--contexts", "200000,64", "--batches", 1, "--point-seconds", 20)
        points = self.points_of(self.scratch)
        self.assertEqual(points[1, 64]["state"], "measured")
        self.assertRegex(points[1, 200000]["reason"], "would take about .* --point-seconds is 20")
        # Nothing is known of the first one: it is begun, and stopped; larger ones are not tried.
        result = self.run_program(*suite, "--contexts", "4096,8192", "--batches", "1,2", "--point-seconds", 0.02)
        self.assertEqual(result.returncode, 1)
        points = self.points_of(self.scratch)
        self.assertEqual({p["state"] for p in points.values()}, {"skipped"})
        self.assertIn("was not done after", points[1, 4096]["reason"])
        for batch, depth in ((1, 8192), (2, 4096), (2, 8192)):
            self.assertIn("batch 1 at context 4096 took too long", points[batch, depth]["reason"])
        result = self.run_program(*suite, "--contexts", "32,64", "--seconds", 0.001)
        self.assertEqual(result.returncode, 1)
        for point in self.points_of(self.scratch).values():
            self.assertIn("no time is left of --seconds 0.001", point["reason"])

    def test_suite_goes_on(self):
        folder = os.path.join(self.scratch, "suite")
        suite = ("bench", "--suite", "--output", folder, "--models", "smollm2-135m:q4_0", "--decode", 2)
        process = self.start(*suite, "--contexts", "32,1000000", "--batches", 1, "--kv-format", "int4")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if os.path.exists(os.path.join(folder, "suite.json")) and self.points_of(folder):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 130, errors)
        before = self.points_of(folder)
        self.assertEqual([p["state"] for p in before.values()], ["measured"], output)
        text = self.succeed(*suite, "--contexts", "32,64", "--batches", 1, "--kv-format", "int4", "--keep").decode()
        self.assertIn("(kept)", text)
        self.assertIn("2 of 2 points measured", text)
        after = self.points_of(folder)
        self.assertEqual(after[1, 32], before[1, 32]) # to the digit
        self.assertEqual(after[1, 64]["state"], "measured")
        with open(os.path.join(folder, "suite.md"), encoding="utf-8") as file:
            self.assertIn(f"| 1 | 32 | {before[1, 32]['decode_tokens_per_second']:.1f} | ", file.read())
        # Of other options: not the same figures.
        self.refuse(*suite, "--contexts", "32", "--keep", words=["suite.json", "--keep"])
        self.assertEqual(self.points_of(folder), after)
        self.write("suite/suite.json", "{}")
        self.refuse(*suite, "--contexts", "32", "--keep", words=["suite.json", "--keep"])
        for option in (("--keep",), ("--seconds", 1), ("--point-seconds", 1)):
            result = self.run_program(*SHAPE, *option)
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"{option[0]} is for bench --suite".encode(), result.stderr)

    def test_suite_that_measured_nothing(self):
        result = self.run_program("bench", "--suite", "--output", self.scratch, "--models", "smollm2-135m:q4_0",
                                  "--contexts", "4000000", "--batches", 16)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"0 of 1 points measured", result.stdout)
        self.assertIn(b"no point of the suite was measured", result.stderr)
        help_text = " ".join(self.succeed("bench", "--help").decode().split())
        self.assertNotIn("mixtral", help_text) # does not run, so it is none of the models left out

    def test_goals_table(self):
        """Verdicts of made-up figures: one each that passes, passes its gate only, misses, is not there."""
        def point(depth, batch=1, **figures):
            return {"depth": depth, "batch": batch, "bound_ms": 4.0, "decode_ms_median": 4.2, "fill_ms": 100.0,
                    "fill_tokens_per_second": 40000.0, **figures}
        machine = {"device_name": "made up", "device_read_bytes_per_second": 4e12, "link_bytes_per_second": 5e10}
        files = {"llama2": {**machine, "results": [point(2048, decode_tokens_per_second=230.0),
                                                   point(8192, decode_tokens_per_second=200.0, fill_ms=200.0),
                                                   point(65536, decode_tokens_per_second=81.0)]},
                 "limit16": {**machine, "results": [point(8192, decode_tokens_per_second=20.0, fill_ms=301.0)]},
                 "limit24_int8": {**machine, "results": [point(65536)]},
                 "cuda_suite": {"steps": [{"name": "test.device", "verdict": "ok"},
                                          {"name": "memcheck.device", "verdict": "FAILED 1"}]}}
        for name, content in files.items():
            self.write(name + ".json", json.dumps(content))
        self.write("llama3.json", "{ not JSON")
        output = os.path.join(self.scratch, "cuda.md")
        table = [sys.executable, os.path.join(ROOT, "bench", "gpu", "table.py"), "--in", self.scratch]
        result = subprocess.run([*table, "--out", output], capture_output=True, text=True, timeout=60)
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        with open(output, encoding="utf-8") as file:
            self.assertEqual(file.read(), result.stdout)
        for row in ("| Llama-2-7B bf16, decode at 2K | 230 | tok/s | at least 245 (gate 225) | 250 | 92% | gate only |",
                    "| the same at 64K | 81 | tok/s | at least 80 | 250 | 32% | pass |",
                    "| the same, prefill of 8K | 40,000 | tok/s | at least 36,000 |  |  | pass |",
                    "| First token at 8K under 16GB, later than unlimited | 101 | ms | at most 100 |  |  | MISSED |",
                    "| the same, KV int8: step / bound | 1.05 | x | at most 1.1 | 1 |  | pass |",
                    "| Suites of the host device on CUDA: steps that failed or were never run | 0 |  | at most 0 |  |  | pass |",
                    "steps that failed or were never run | 1 |  | at most 0 |  |  | MISSED |",
                    "| Llama-3.1-8B bf16, decode at 64K |  | tok/s | at least 141 |  |  | not measured (llama3) |",
                    "made up: memory is read at 4,000 GB/s, the link carries 50.0 GB/s"):
            self.assertIn(row, result.stdout)
        # Every run's command is one that this program's options allow.
        listed = subprocess.run([*table, "--list"], capture_output=True, text=True, timeout=60, check=True).stdout
        for line in listed.splitlines():
            words = line.split()[3:]
            if words[:2] == ["pagedllm", "bench"] and "--shape" in words:
                error = self.run_program(*words[1:], "--device", "nothing").stderr.decode()
                self.assertIn("nothing", error, line)


if __name__ == "__main__":
    unittest.main()
