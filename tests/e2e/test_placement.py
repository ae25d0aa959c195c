#!/usr/bin/env python3
"""Placement never changes a result, as a user sees it: the same command under other budgets."""
import json
import os
import unittest

from program import MODEL, ProgramTest

STORY = " ".join(f"On day {day} the keeper wrote {day * 37 % 101} in the book." for day in range(1, 80))


class Placement(ProgramTest):
    def answer(self, *limits):
        prompt = self.write("story.txt", STORY)
        return self.statistics("run", MODEL, "--prompt-file", prompt, "--max-tokens", 12,
                               "--temperature", 0, *limits)

    def test_starved_run_says_the_same(self):
        free, stats = self.answer()
        self.assertEqual(stats["evictions"], 0)
        kv = stats["kv_bytes_peak"]
        for host, disk in ((kv, 0), (0, 2 * kv), (kv // 5, 2 * kv)):
            with self.subTest(host=host, disk=disk):
                tight, moved = self.answer("--kv-limit", kv // 10, "--host-memory", host,
                                           "--nvme-path", self.scratch, "--nvme-size", disk)
                self.assertEqual(tight, free)
                self.assertGreater(moved["evictions"], 0)
                self.assertLessEqual(moved["frames_peak"] * moved["frame_bytes"], kv // 10)
                absent = kv - moved["frames_peak"] * moved["frame_bytes"]
                came = moved["host_to_device_bytes"] + moved["disk_to_device_bytes"]
                self.assertGreater(came, absent * 10)
                if host == 0:
                    self.assertEqual(moved["host_to_device_bytes"], 0)
                if disk == 0:
                    self.assertEqual(moved["disk_to_device_bytes"], 0)

    def test_weights_beyond_the_limit(self):
        free, stats = self.answer()
        self.assertEqual(stats["weight_stream_bytes"], 0)
        weights = stats["weight_bytes"]
        streamed = []
        for limit in (stats["least_vram_bytes"], weights // 2, weights):
            with self.subTest(limit=limit):
                tight, moved = self.answer("--vram-limit", limit, "--host-memory", 64_000_000)
                self.assertEqual(tight, free)
                self.assertLessEqual(moved["device_bytes_peak"], limit)
                # Every step after the prompt reads what does not stay.
                self.assertGreaterEqual(moved["weight_stream_bytes"],
                                        (weights - moved["weight_resident_bytes"]) * 12)
                self.assertLessEqual(moved["peak_resident_bytes"],
                                     weights + limit + 64_000_000 + (64 << 20))
                streamed.append(moved["weight_stream_bytes"])
        self.assertTrue(streamed[0] > streamed[1] > streamed[2] > 0, streamed)
        whole, moved = self.answer("--vram-limit", "1GB")
        self.assertEqual((whole, moved["weight_stream_bytes"]), (free, 0))
        self.assertEqual(moved["weight_resident_bytes"], weights)
        self.assertGreater(moved["device_bytes_peak"], weights) # they count now

    def test_logits_are_the_same_bits(self):
        ids = json.loads(self.succeed("tokenize", MODEL, "--text", STORY, "--json"))
        ids = (ids["ids"] if isinstance(ids, dict) else ids)[:200]
        path = self.write("ids.json", json.dumps(ids))
        files = []
        for name, limits in (("free", ()), ("tight", ("--kv-limit", "2MB", "--host-memory", "1MB",
                                                      "--nvme-path", self.scratch,
                                                      "--nvme-size", "64MB", "--threads", "1"))):
            output = os.path.join(self.scratch, name + ".npy")
            self.succeed("logits", MODEL, "--ids", path, "--output", output, *limits)
            with open(output, "rb") as file:
                files.append(file.read())
        self.assertEqual(files[0][:6], b"\x93NUMPY")
        self.assertGreater(len(files[0]), len(ids) * 4 * 1000)
        self.assertTrue(files[0] == files[1], "the logits differ")


if __name__ == "__main__":
    unittest.main()
