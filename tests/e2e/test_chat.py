#!/usr/bin/env python3
"""A conversation, through a pipe and on a terminal."""
import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
import unittest

from program import MODEL, ProgramTest

CHAT = ("chat", MODEL, "--temperature", "0", "--max-tokens")


class Terminal:
    """The program on a terminal of its own. Waits are for text, with a deadline."""

    def __init__(self, program, environment, *arguments):
        self.master, slave = pty.openpty()
        # In a session of its own, whose terminal this is: Ctrl-C typed there is SIGINT.
        take = lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen([program, *map(str, arguments)], stdin=slave, stdout=slave,
                                        stderr=slave, env=environment, start_new_session=True,
                                        preexec_fn=take)
        os.close(slave)
        self.seen = b""

    def send(self, text):
        os.write(self.master, text.encode())

    def read(self, deadline):
        """One more piece; False at the end."""
        ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"nothing more after {self.seen!r}")
        try:
            piece = os.read(self.master, 65536)
        except OSError: # the other end is closed
            return False
        self.seen += piece
        return bool(piece)

    def expect(self, text, seconds=60):
        """What came before text; the rest waits for the next call."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self.seen:
            if not self.read(deadline):
                raise AssertionError(f"ended without {text!r}: {self.seen!r}")
        before, self.seen = self.seen.split(text.encode(), 1)
        return before.decode("utf-8", "replace")

    def finish(self, seconds=60):
        deadline = time.monotonic() + seconds
        while self.read(deadline):
            pass
        return self.process.wait(max(1, deadline - time.monotonic()))

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


class Chat(ProgramTest):
    def talk(self, text, *options, code=0):
        result = subprocess.run([self.program, *CHAT, *map(str, options)], input=text.encode(),
                                capture_output=True, timeout=120, env=self.environment())
        self.assertEqual(result.returncode, code, result.stderr)
        return result.stdout.decode(), result.stderr.decode()

    def terminal(self, *options):
        terminal = Terminal(self.program, self.environment(), *CHAT, *options)
        self.addCleanup(terminal.close)
        return terminal

    def test_pipe(self):
        said, told = self.talk("My name is Ada.\n\n/stats\nWhat is my name?\n/reset\n"
                               "What is my name?", 24)
        lines = [line for line in said.split("\n") if line]
        self.assertNotIn(">", said[:1])
        self.assertIn("Ada", said)
        self.assertIn("decoded", told) # /stats
        # After /reset it does not know the name: the answer is that of a new conversation.
        alone, _ = self.talk("What is my name?\n", 24)
        self.assertTrue(said.endswith(alone), (said, alone))
        self.assertGreaterEqual(len(lines), 3)

    def test_turns_continue_the_conversation(self):
        """A second question, with the first in view, is answered otherwise than alone."""
        both, _ = self.talk("Name a colour.\nAnd another one.\n", 8)
        second, _ = self.talk("And another one.\n", 8)
        self.assertNotEqual(both.split("\n")[-2], second.split("\n")[-2])
        starved, _ = self.talk("Name a colour.\nAnd another one.\n", 8, "--kv-limit", "1.5MB")
        self.assertEqual(starved, both)

    def test_unknown_command_and_quit(self):
        said, told = self.talk("/frobnicate\n/quit\nHello\n", 8)
        self.assertEqual(said, "")
        self.assertIn("/frobnicate", told)
        self.assertIn("/reset", told)

    def test_line_too_long_for_the_context(self):
        """It is refused, and the conversation goes on as if it had not been said."""
        said, told = self.talk("Name a colour.\n" + "word " * 9000 + "\nAnd another one.\n", 8)
        self.assertEqual(len(told.splitlines()), 1, told)
        self.assertIn("8192", told)
        self.assertEqual("".join(said.split()), "".join(
            self.talk("Name a colour.\nAnd another one.\n", 8)[0].split()))

    def test_terminal(self):
        terminal = self.terminal(12)
        terminal.expect("> ")
        terminal.send("Hello\n")
        terminal.expect("Hello\r\n") # the terminal's echo
        self.assertTrue(terminal.expect("> ").strip())
        terminal.send("/stats\n")
        terminal.expect("decoded")
        terminal.expect("> ")
        terminal.send("/reset\n")
        terminal.expect("> ")
        terminal.send("\x04")
        self.assertEqual(terminal.finish(), 0)

    def test_interrupt_ends_the_reply_not_the_conversation(self):
        terminal = self.terminal(7000)
        terminal.expect("> ")
        terminal.send("Write a very long story about the sea.\n")
        terminal.expect("sea.\r\n")
        while len(terminal.seen) < 20: # it has begun to answer
            self.assertTrue(terminal.read(time.monotonic() + 60))
        terminal.send("\x03")
        self.assertTrue(terminal.expect("> ").strip())
        terminal.send("/stats\n")
        terminal.expect("decoded")
        terminal.expect("> ")
        terminal.send("\x03") # at the prompt it ends the chat
        self.assertEqual(terminal.finish(), 128 + signal.SIGINT)

    def test_interrupt_while_a_line_is_read(self):
        terminal = self.terminal(7000)
        terminal.expect("> ")
        terminal.send("a day by the sea, " * 220 + "\n") # one line of a terminal: 4,095 bytes
        terminal.expect("reading [")
        terminal.send("\x03") # too early for the reply, or not: the prompt comes back
        terminal.expect("\n> ")
        terminal.send("\x04")
        self.assertEqual(terminal.finish(), 0)

    def test_signals_through_a_pipe(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            for wait in ("prompt", "reply"):
                with self.subTest(signal=number, wait=wait):
                    process = self.start(*CHAT, 7000, stdin=subprocess.PIPE)
                    if wait == "reply":
                        process.stdin.write(b"Write a long story.\n")
                    else: # a reply that has ended: it waits for the next line
                        process.stdin.write(b"/nothing\n")
                    process.stdin.flush()
                    stream = process.stdout if wait == "reply" else process.stderr
                    self.assertTrue(stream.read(1))
                    process.send_signal(number)
                    process.communicate(timeout=60)
                    self.assertEqual(process.returncode, 128 + number)

    def test_progress_only_on_a_terminal(self):
        prompt = self.write("long.txt", "A long day by the sea. " * 100)
        run = ("run", MODEL, "--prompt-file", prompt, "--max-tokens", 1)
        self.assertEqual(self.run_program(*run).stderr, b"")
        terminal = Terminal(self.program, self.environment(), *run)
        self.addCleanup(terminal.close)
        terminal.expect("reading [")
        self.assertEqual(terminal.finish(), 0)


if __name__ == "__main__":
    unittest.main()
