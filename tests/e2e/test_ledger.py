"""One limit for several processes: --ledger, pagedllm top and pagedllm limit."""
import json
import os
import pty
import signal
import subprocess
import time
import unittest

from program import MODEL, ProgramTest

PROMPT = "The history of the steam engine begins with"
MB = 1 << 20


class Ledger(ProgramTest):
    def setUp(self):
        super().setUp()
        self.ledger = f"e2e-{os.getpid()}-{self._testMethodName[:12]}"
        path = f"/dev/shm/pagedllm-{os.geteuid()}-{self.ledger}"
        self.addCleanup(lambda: os.path.exists(path) and os.unlink(path))

    def top(self):
        return json.loads(self.succeed("top", "--ledger", self.ledger, "--once", "--json"))

    def until(self, what, seconds=60):
        """The ledger, as soon as what(ledger) is true."""
        deadline = time.monotonic() + seconds
        while True:
            seen = self.top()
            if what(seen):
                return seen
            self.assertLess(time.monotonic(), deadline, seen)

    def sit(self, name, *options):
        """A chat that has said something and waits for the next line."""
        process = self.start("chat", MODEL, "--max-tokens", 8, "--ledger", self.ledger,
                             "--ledger-name", name, *options, stdin=subprocess.PIPE)
        process.stdin.write(b"Tell me about rivers and the lakes between them.\n")
        process.stdin.flush()
        process.stdout.read(1)
        return process

    def member(self, name):
        return next(row for row in self.top()["members"] if row["name"] == name)

    def test_two_runs_share_one_limit_and_say_the_same(self):
        command = ["run", MODEL, "--prompt", PROMPT, "--max-tokens", 24, "--threads", 1]
        alone = self.succeed(*command)
        shared = [self.start(*command, "--ledger", self.ledger, "--ledger-limit", "400MB",
                             "--ledger-priority", i) for i in range(2)]
        for process in shared:
            output, errors = process.communicate(timeout=200)
            self.assertEqual(process.returncode, 0, errors.decode())
            self.assertEqual(output, alone)
        seen = self.top()
        self.assertEqual(seen["members"], [])
        self.assertEqual(seen["mapped_bytes"], 0)
        self.assertLessEqual(seen["peak_bytes"], 400_000_000)
        self.assertGreater(seen["peak_bytes"], 50_000_000)

    def test_top_and_limit(self):
        chat = self.sit("talk", "--ledger-limit", "300MB", "--ledger-priority", 2)
        seen = self.until(lambda top: top["members"] and top["members"][0]["mapped_bytes"] > 0)
        row = self.member("talk")
        self.assertEqual(row["pid"], chat.pid)
        self.assertEqual(row["priority"], 2)
        self.assertIsNone(row["limit_bytes"])
        self.assertGreater(row["minimum_bytes"], 0)
        self.assertGreaterEqual(row["reserved_bytes"], row["mapped_bytes"] // 2)
        self.assertEqual(seen["limit_bytes"], 300_000_000)
        text = self.succeed("top", "--once", "--ledger", self.ledger).decode()
        self.assertIn("talk", text)
        self.assertIn("300 MB", text)
        self.assertIn("MINIMUM", text)
        self.succeed("limit", "talk", "200MB", "--ledger", self.ledger, "--ledger-priority", 7)
        row = self.member("talk")
        self.assertEqual((row["limit_bytes"], row["priority"]), (200_000_000, 7))
        self.succeed("limit", "talk", "unlimited", "--ledger", self.ledger)
        self.assertIsNone(self.member("talk")["limit_bytes"])
        self.succeed("limit", "total", "1GB", "--ledger", self.ledger)
        self.assertEqual(self.top()["limit_bytes"], 1_000_000_000)
        self.succeed("limit", "total", "unlimited", "--ledger", self.ledger)
        self.assertIsNone(self.top()["limit_bytes"])
        text = self.succeed("top", "--once", "--ledger", self.ledger).decode()
        self.assertIn("held of unlimited", text)
        self.assertIn("1 member,", text)
        wrong = self.run_program("limit", "total", "much", "--ledger", self.ledger)
        self.assertEqual(wrong.returncode, 2)

    def test_what_cannot_be_is_refused(self):
        self.refuse("top", "--once", "--ledger", self.ledger, words=["no ledger", self.ledger])
        self.refuse("limit", "a", "1GB", "--ledger", self.ledger, words=["no ledger"])
        self.refuse("top", "--ledger", "a/b", words=["name"])
        self.refuse("run", MODEL, "--prompt", "x", "--ledger", self.ledger, words=["ledger-limit"])
        self.refuse("run", MODEL, "--prompt", "x", "--ledger-limit", "1GB", words=["--ledger NAME"])
        self.refuse("run", MODEL, "--prompt", "x", "--ledger", self.ledger, "--ledger-limit", "1MB",
                    words=[self.ledger, "at least"])
        self.succeed("limit", "total", "300MB", "--ledger", self.ledger)
        self.sit("talk")
        limit = ["limit", "talk", "--ledger", self.ledger]
        self.until(lambda top: top["members"] and top["members"][0]["minimum_bytes"] > 0)
        self.refuse(*limit, "1kB", words=["minimum", "talk"])
        self.refuse(*limit, "much", words=["much"])
        self.refuse(*limit, "-5", words=["-5", "negative"])
        self.refuse(*limit, "0", words=["nothing"])
        self.refuse(*limit, "unlimited", "--ledger-minimum", "1GB", words=["minimum of 1 GB"])
        self.refuse("limit", "nobody", "1GB", "--ledger", self.ledger, words=["no member nobody"])
        self.refuse("limit", "total", "1MB", "--ledger", self.ledger, words=["minimums"])

    def test_a_killed_process_gives_its_share_back(self):
        first = self.sit("first", "--ledger-limit", "250MB")
        self.until(lambda top: top["members"] and top["members"][0]["mapped_bytes"] > 0)
        second = self.sit("second", "--threads", 1)
        self.until(lambda top: len(top["members"]) == 2)
        first.send_signal(signal.SIGKILL) # and stays a zombie
        began = time.monotonic()
        self.until(lambda top: [row["name"] for row in top["members"]] == ["second"], 5)
        self.assertLess(time.monotonic() - began, 2) # the program starts, and looks for 0.25 s
        self.assertIsNone(second.poll())

    def test_live_on_a_terminal(self):
        self.sit("talk", "--ledger-limit", "300MB")
        self.until(lambda top: top["members"])
        master, slave = pty.openpty()
        live = self.start("top", "--ledger", self.ledger, stdin=slave, stdout=slave)
        os.close(slave)
        shown = b""
        while shown.count(b"\x1b[H\x1b[J") < 2:
            shown += os.read(master, 4096)
        self.assertIn(b"talk", shown)
        os.write(master, b"q")
        self.assertEqual(live.wait(10), 0)
        os.close(master)


if __name__ == "__main__":
    unittest.main()
