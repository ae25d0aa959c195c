#!/usr/bin/env python3
"""What run generates: stop strings, sampling, odd prompts; and contexts larger than memory."""
import os
import pty
import subprocess
import unittest

from program import MODEL, ProgramTest

PROMPT = "Once upon a time"
STORY = " ".join(f"On day {day} the keeper wrote {day * 37 % 101} in the book." for day in range(1, 92))


class Generation(ProgramTest):
    def answer(self, *more, prompt=PROMPT):
        return self.succeed("run", MODEL, "--prompt", prompt, *more)

    def test_no_tokens(self):
        self.assertEqual(self.answer("--max-tokens", 0), b"")

    def test_prompt_from_a_file_and_from_a_pipe(self):
        said = self.answer("--max-tokens", 8)
        path = self.write("prompt.txt", PROMPT)
        self.assertEqual(self.succeed("run", MODEL, "--prompt-file", path, "--max-tokens", 8), said)
        piped = subprocess.run([self.program, "run", MODEL, "--prompt-file", "-", "--max-tokens",
                                "8"], input=PROMPT.encode(), capture_output=True, timeout=120,
                               env=self.environment())
        self.assertEqual((piped.returncode, piped.stdout), (0, said))

    def test_the_last_line_ends_on_a_terminal_only(self):
        said = self.answer("--max-tokens", 8)
        self.assertNotEqual(said[-1:], b"\n")
        master, slave = pty.openpty()
        process = subprocess.Popen([self.program, "run", MODEL, "--prompt", PROMPT, "--max-tokens", "8"],
                                   stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.DEVNULL,
                                   env=self.environment())
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError: # the other end is closed
            pass
        os.close(master)
        self.assertEqual(process.wait(60), 0)
        self.assertEqual(shown.replace(b"\r\n", b"\n"), said + b"\n")

    def test_stop_strings(self):
        """Whatever lies between: within a token, across two, several; the first one counts."""
        whole = self.answer("--max-tokens", 24).decode()
        self.assertGreater(len(whole), 50)
        for first in range(6, 42, 5):
            stop = whole[first:first + 7]
            self.assertEqual(self.answer("--max-tokens", 24, "--stop", stop).decode(),
                             whole[:whole.index(stop)])
        _, stats = self.statistics("run", MODEL, "--prompt", PROMPT, "--stop", whole[20:24])
        self.assertEqual(stats["stop_reason"], "string")
        late, early = whole[40:44], whole[20:24]
        self.assertEqual(self.answer("--max-tokens", 24, "--stop", late, "--stop", early).decode(),
                         whole[:min(whole.index(late), whole.index(early))])
        # A beginning that comes to nothing is not lost, not even at the end.
        for stop in (whole[10:20] + "\x01", whole[-4:] + "\x01"):
            self.assertEqual(self.answer("--max-tokens", 24, "--stop", stop).decode(), whole)

    def test_sampling_repeats_with_its_seed(self):
        sampling = ("--max-tokens", 16, "--temperature", 1.2, "--top-k", 50, "--top-p", 0.95)
        first = self.answer(*sampling, "--seed", 7)
        self.assertEqual(self.answer(*sampling, "--seed", 7), first)
        self.assertEqual(self.answer(*sampling, "--seed", 7, "--threads", 1, "--kv-limit", "1MB"),
                         first)
        self.assertGreater(len({first, *(self.answer(*sampling, "--seed", seed)
                                         for seed in (8, 9, 10))}), 1)
        greedy = self.answer("--max-tokens", 16)
        self.assertEqual(self.answer("--max-tokens", 16, "--temperature", 1.2, "--top-k", 1), greedy)

    def test_prompts_that_are_no_text(self):
        for content in (b"caf\xe9 \xff\xfe and \xc3", b"\x00\x01zero bytes\x00", b"\xed\xa0\x80 x",
                        "e\u0301 \U0001f600 \u202e".encode()):
            path = self.write("prompt", content)
            result = self.run_program("run", MODEL, "--prompt-file", path, "--max-tokens", 6)
            self.assertEqual(result.returncode, 0, result.stderr)
            result.stdout.decode() # the answer is text
            self.assertLessEqual(len(result.stderr.splitlines()), 1) # bytes without a token
        self.assertEqual(self.run_program("run", MODEL, "--prompt", b"caf\xe9".decode(
            "utf-8", "surrogateescape"), "--max-tokens", 1).returncode, 0)

    def test_context_of_ten_times_the_memory(self):
        """Its blocks are more than ten times what device and host may hold: the rest is on disk."""
        run = ("run", MODEL, "--prompt-file", self.write("story.txt", STORY), "--max-tokens", 6)
        free, loose = self.statistics(*run)
        device, host = 2_000_000, 500_000
        self.assertGreater(loose["kv_bytes_peak"], 10 * (device + host))
        tight, moved = self.statistics(*run, "--kv-limit", device, "--host-memory", host,
                                       "--nvme-path", self.scratch)
        self.assertEqual(tight, free)
        self.assertLessEqual(moved["frames_peak"] * moved["frame_bytes"], device)
        absent = moved["kv_bytes_peak"] - device - host
        self.assertGreater(moved["device_to_disk_bytes"], absent // 2)
        self.assertGreater(moved["disk_to_device_bytes"], 5 * absent) # five decode steps at least
        self.assertEqual(moved["lost_pages"], 0)

    def test_two_processes_share_a_spill_folder(self):
        path = self.write("story.txt", STORY[:1500])
        run = ("run", MODEL, "--prompt-file", path, "--max-tokens", 16)
        expected = self.succeed(*run)
        starved = (*run, "--kv-limit", "1.5MB", "--host-memory", 0, "--nvme-path", self.scratch,
                   "--nvme-size", "64MB", "--threads", 1)
        both = [self.start(*starved), self.start(*starved)]
        for process in both:
            output, errors = process.communicate(timeout=120)
            self.assertEqual((process.returncode, output), (0, expected), errors)
        self.assertEqual(os.listdir(self.scratch), ["story.txt"])


if __name__ == "__main__":
    unittest.main()
