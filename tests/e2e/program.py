"""What the e2e tests share: the program, the models, and a scratch folder for each test.

PAGEDLLM_PROGRAM is the program under test: ctest names the one it built, and an installed one can
be given by hand. Without it, the newest of build/*/pagedllm is taken.
"""
import glob
import json
import os
import shutil
import subprocess
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = os.path.join(ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
TINY = os.path.join(ROOT, "tests", "reference", "models", "llama")


def find_program():
    named = os.environ.get("PAGEDLLM_PROGRAM")
    if named:
        return named
    built = glob.glob(os.path.join(ROOT, "build", "*", "pagedllm"))
    if not built:
        raise FileNotFoundError("no build/*/pagedllm: make build, or set PAGEDLLM_PROGRAM")
    return max(built, key=os.path.getmtime)


class ProgramTest(unittest.TestCase):
    """self.run_program(...) runs it; self.scratch is an empty folder that goes away afterwards."""

    @classmethod
    def setUpClass(cls):
        cls.program = find_program()

    def setUp(self):
        base = os.environ.get("PAGEDLLM_SCRATCH") or os.path.join(ROOT, "build")
        self.scratch = tempfile.mkdtemp(prefix="e2e-", dir=base)
        self.addCleanup(shutil.rmtree, self.scratch, ignore_errors=True)

    def environment(self):
        """The user's, less our options, with home folders inside the scratch folder."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PAGEDLLM_")}
        return {**kept, "HOME": self.scratch, "XDG_CACHE_HOME": os.path.join(self.scratch, "cache"),
                "XDG_CONFIG_HOME": os.path.join(self.scratch, "config"), "LC_ALL": "C.UTF-8"}

    def start(self, *arguments, **streams):
        """The running process; a test that fails while it runs leaves none behind."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                   **streams}
        process = subprocess.Popen([self.program, *map(str, arguments)], env=self.environment(),
                                   **streams)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
        process.wait()

    def run_program(self, *arguments, timeout=300, **changes):
        return subprocess.run([self.program, *map(str, arguments)], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=timeout,
                              env={**self.environment(), **changes})

    def succeed(self, *arguments, **changes):
        """Its standard output, as bytes; the test fails if the program does."""
        result = self.run_program(*arguments, **changes)
        self.assertEqual(result.returncode, 0, result.stderr.decode("utf-8", "replace"))
        return result.stdout

    def refuse(self, *arguments, words=(), **changes):
        """It must fail by itself, with one sentence on stderr that holds all of words."""
        result = self.run_program(*arguments, **changes)
        text = result.stderr.decode("utf-8", "replace")
        self.assertGreater(result.returncode, 0, f"exit {result.returncode}: {text}")
        self.assertLess(result.returncode, 126, text)
        lines = [line for line in text.splitlines() if line.strip()]
        self.assertEqual(len(lines), 1, text)
        for word in words:
            self.assertIn(str(word).lower(), text.lower())
        return text

    def statistics(self, *arguments):
        """(standard output, --stats-json) of a run that succeeds."""
        path = os.path.join(self.scratch, "stats.json")
        output = self.succeed(*arguments, "--stats-json", path)
        with open(path, encoding="utf-8") as file:
            return output, json.load(file)

    def write(self, name, content):
        path = os.path.join(self.scratch, name)
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        return path
