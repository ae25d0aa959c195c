#!/usr/bin/env python3
"""Bad days: no room, no disk, nowhere to write, signals. One sentence, and nothing left behind."""
import os
import resource
import signal
import time
import unittest

from program import MODEL, ProgramTest

RUN = ("--prompt", "Once upon a time", "--max-tokens", "4", "--temperature", "0")
STORY = " ".join(f"On day {day} the keeper wrote {day * 37 % 101} in the book." for day in range(1, 60))


class BadDays(ProgramTest):
    def files(self):
        return sorted(name for _, _, names in os.walk(self.scratch) for name in names)

    def run_in(self, prepare, *arguments, **streams):
        """The finished process; prepare() is called in it before the program begins."""
        process = self.start(*arguments, preexec_fn=prepare, **streams)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors.decode()

    def wait_for_open_file(self, process, count=1):
        """Until the process holds this many files in the scratch folder."""
        deadline = time.monotonic() + 60
        folder = f"/proc/{process.pid}/fd"
        while time.monotonic() < deadline:
            held = 0
            for name in os.listdir(folder):
                try:
                    held += os.readlink(os.path.join(folder, name)).startswith(self.scratch + "/")
                except FileNotFoundError:
                    pass
            if held >= count:
                return
            self.assertIsNone(process.poll(), "it has ended already")
        self.fail("it never opened the file")

    def test_disk_that_is_not_there(self):
        limits = ("run", MODEL, *RUN, "--kv-limit", "2MB", "--nvme-size", "64MB", "--nvme-path")
        nowhere = os.path.join(self.scratch, "nowhere")
        self.refuse(*limits, nowhere, words=[nowhere, "--nvme-path"])
        self.refuse(*limits, self.write("file", "x"), words=["file", "--nvme-path"])
        self.refuse(*limits, "/proc", words=["/proc", "--nvme-path"])
        self.assertEqual(self.files(), ["file"])

    def test_disk_that_is_too_small(self):
        limits = ("run", MODEL, *RUN, "--kv-limit", "2MB", "--nvme-path", self.scratch, "--nvme-size")
        self.refuse(*limits, "900TB", words=["available", "--nvme-size", self.scratch])
        most = 16 << 20
        code, output, errors = self.run_in(
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)), *limits, "64MB")
        self.assertEqual((code, output), (1, b""), errors)
        self.assertIn("--nvme-size", errors)
        self.assertEqual(self.files(), [])

    def test_memory_that_runs_out_in_the_middle(self):
        """The least that works is there, so it begins; then neither place takes another block."""
        prompt = self.write("story.txt", STORY)
        run = ("run", MODEL, "--prompt-file", prompt, "--max-tokens", 4, "--kv-limit", "2MB")
        for rest in (("--host-memory", "1MB"), ("--host-memory", 0),
                     ("--host-memory", "1MB", "--nvme-path", self.scratch, "--nvme-size", "4MiB")):
            self.refuse(*run, *rest, words=["--host-memory", "--nvme-size"])
        self.assertEqual(self.files(), ["story.txt"])

    def test_few_open_files(self):
        """However few it may open: it answers, or says in one sentence what it could not open."""
        said = self.succeed("run", MODEL, *RUN)
        codes = set()
        for most in range(4, 20):
            code, output, errors = self.run_in(
                lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)), "run", MODEL,
                *RUN, "--kv-limit", "2MB", "--nvme-path", self.scratch, "--nvme-size", "16MB")
            self.assertIn(code, (0, 1), errors)
            self.assertEqual(len(errors.splitlines()), code, errors)
            self.assertEqual(output, b"" if code else said)
            codes.add(code)
        self.assertEqual(codes, {0, 1})
        self.assertEqual(self.files(), [])

    def test_folder_in_memory_works_and_says_so(self):
        limits = ("run", MODEL, *RUN, "--kv-limit", "2MB", "--nvme-path", "/dev/shm", "--nvme-size",
                  "16MB")
        quiet = self.run_program(*limits)
        told = self.run_program(*limits, "--log-level", "info")
        self.assertEqual((quiet.returncode, told.returncode), (0, 0))
        self.assertEqual((quiet.stderr, quiet.stdout), (b"", told.stdout))
        self.assertIn(b"tmpfs", told.stderr)
        self.assertIn(b"tmpfs", self.succeed("doctor", "--nvme-path", "/dev/shm"))

    def test_signals_leave_nothing(self):
        stats = os.path.join(self.scratch, "stats.json")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with self.subTest(signal=number):
                process = self.start("run", MODEL, "--prompt", "Once upon a time", "--max-tokens",
                                     4000, "--temperature", 0, "--kv-limit", "2MB",
                                     "--nvme-path", self.scratch, "--nvme-size", "256MB",
                                     "--stats-json", stats)
                self.assertTrue(process.stdout.read(1)) # it has begun to answer
                process.send_signal(number)
                output, errors = process.communicate(timeout=60)
                output.decode() # whole characters
                if number == signal.SIGKILL:
                    self.assertEqual(process.returncode, -number)
                else: # it ended by its own will
                    self.assertEqual(process.returncode, 128 + number)
                    self.assertEqual(len(errors.splitlines()), 1, errors)
                self.assertEqual(self.files(), [])

    def test_signals_leave_no_half_written_output(self):
        ids = self.write("ids.json", str([index % 1000 for index in range(2000)]))
        output = os.path.join(self.scratch, "out.npy")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            with self.subTest(signal=number):
                process = self.start("logits", MODEL, "--ids", ids, "--output", output)
                self.wait_for_open_file(process)
                process.send_signal(number)
                process.communicate(timeout=60)
                self.assertEqual(process.returncode,
                                 -number if number == signal.SIGKILL else 128 + number)
                self.assertEqual(self.files(), ["ids.json"])

    def test_signal_while_input_is_awaited(self):
        for arguments in (("tokenize", MODEL), ("run", MODEL, "--prompt-file", "-"),
                          ("logits", MODEL, "--ids", "-", "--output", "/dev/null")):
            reader, writer = os.pipe()
            process = self.start(*arguments, stdin=reader)
            os.close(reader)
            deadline = time.monotonic() + 60
            while True: # until it sleeps in poll, which is where it waits for input
                with open(f"/proc/{process.pid}/stat", encoding="utf-8") as file:
                    state = file.read().rsplit(")", 1)[1].split()[0]
                with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
                    caught = next(line.split()[1] for line in file if line.startswith("SigCgt"))
                if state == "S" and int(caught, 16) >> (signal.SIGINT - 1) & 1:
                    break
                self.assertLess(time.monotonic(), deadline)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            os.close(writer)
            self.assertEqual(process.returncode, 128 + signal.SIGINT, arguments)

    def test_standard_output_that_takes_nothing(self):
        text = self.write("text.txt", "It was a dark and stormy night.")
        with open("/dev/full", "wb") as full:
            for arguments in (("run", MODEL, *RUN), ("tokenize", MODEL, "--text", "x"),
                              ("perplexity", MODEL, text), ("doctor", "--json"), ("--help",),
                              ("--version",),
                              ("bench", MODEL, "--prefill", 8, "--decode", 2, "--json")):
                code, _, errors = self.run_in(None, *arguments, stdout=full)
                self.assertEqual(code, 1, arguments)
                self.assertEqual(len(errors.splitlines()), 1, errors)
        code, _, errors = self.run_in(lambda: os.close(1), "run", MODEL, *RUN, "--kv-limit", "2MB",
                                      "--nvme-path", self.scratch)
        self.assertEqual(code, 1)
        self.assertIn("standard output", errors)
        reader, writer = os.pipe() # whoever read has gone
        os.close(reader)
        code, _, errors = self.run_in(None, "run", MODEL, *RUN, stdout=writer)
        os.close(writer)
        self.assertEqual(code, 1, errors)

    def test_places_that_cannot_be_written(self):
        ids = self.write("ids.json", "[1, 2, 3]")
        logits = ("logits", MODEL, "--ids", ids, "--output")
        nowhere = os.path.join(self.scratch, "nowhere", "out")
        for place in (nowhere, self.scratch, "/dev/full"):
            self.refuse(*logits, place, words=[place])
            result = self.run_program("run", MODEL, *RUN, "--stats-json", place)
            self.assertEqual(result.returncode, 1)
            self.assertIn(place, result.stderr.decode())
            if place != "/dev/full": # known before the work, not after it
                self.assertEqual(result.stdout, b"")
        old = self.write("old.npy", "what was there")
        self.write("ids.json", str([1] * 200)) # 39 MB of logits, and 24 may be written
        most = 24_000_000
        code, _, errors = self.run_in(
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)), *logits, old)
        self.assertEqual(code, 1, errors)
        self.assertIn("old.npy", errors)
        with open(old, encoding="utf-8") as file:
            self.assertEqual(file.read(), "what was there")
        self.assertEqual(self.files(), ["ids.json", "old.npy"])


if __name__ == "__main__":
    unittest.main()
