#!/usr/bin/env python3
"""Bad input and bad days: one clear sentence, a non-zero exit, nothing left behind."""
import os
import signal
import unittest

from program import MODEL, ProgramTest

RUN = ("--prompt", "Once upon a time", "--max-tokens", "4", "--temperature", "0")


class BadInput(ProgramTest):
    def test_commands_and_options(self):
        self.refuse("frobnicate", words=["frobnicate"])
        self.refuse("run", MODEL, "--no-such-option", words=["--no-such-option"])
        self.refuse("run", MODEL, *RUN, "--kv-limit", "12 parsecs", words=["kv-limit"])
        self.refuse("run", words=["model"])

    def test_files_that_are_no_model(self):
        missing = os.path.join(self.scratch, "missing.gguf")
        self.refuse("run", missing, *RUN, words=[missing])
        for name, content in (("empty.gguf", b""), ("text.gguf", b"this is no model\n" * 50)):
            path = self.write(name, content)
            self.refuse("run", path, *RUN, words=[path])
        with open(MODEL, "rb") as file:
            head = file.read(3_000_000)
        for length in (4, 24, 1000, 100_000, 3_000_000):
            path = self.write(f"cut-{length}.gguf", head[:length])
            self.refuse("run", path, *RUN, words=[path])

    def test_limits_below_the_least_that_works(self):
        self.refuse("run", MODEL, *RUN, "--kv-limit", "1", words=["least"])
        self.refuse("run", MODEL, *RUN, "--vram-limit", "64KiB", words=["least"])

    def test_disk_that_is_not_there(self):
        self.refuse("run", MODEL, *RUN, "--kv-limit", "2MB", "--nvme-path",
                    os.path.join(self.scratch, "nowhere"), "--nvme-size", "64MB", words=["nowhere"])
        self.refuse("run", MODEL, *RUN, "--kv-limit", "2MB", "--nvme-path", self.scratch,
                    "--nvme-size", "900TB", words=["available"])

    def test_signals_leave_nothing(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with self.subTest(signal=number):
                process = self.start("run", MODEL, "--prompt", "Once upon a time", "--max-tokens",
                                     4000, "--temperature", 0, "--kv-limit", "2MB",
                                     "--nvme-path", self.scratch, "--nvme-size", "256MB")
                self.assertTrue(process.stdout.read(1)) # it has begun to answer
                process.send_signal(number)
                process.communicate(timeout=60)
                self.assertNotEqual(process.returncode, 0)
                if number != signal.SIGKILL: # it ended by its own will
                    self.assertGreater(process.returncode, 0)
                left = [name for _, _, names in os.walk(self.scratch) for name in names]
                self.assertEqual(left, [])


if __name__ == "__main__":
    unittest.main()
