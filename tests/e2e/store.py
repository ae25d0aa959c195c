"""What the tests of `pagedllm store` share: a daemon in the scratch folder, Redis as a person talks
to it, and small .npy and .safetensors files."""
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time

from program import ProgramTest


def npy(shape, descr, data, fortran=False, version=1):
    text = "{'descr': %r, 'fortran_order': %s, 'shape': %r, }" % (descr, fortran, tuple(shape))
    start = 10 if version == 1 else 12
    text = text.encode() + b" " * (-(start + len(text) + 1) % 64) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def read_npy(content):
    """(descr, shape, data), as the format's description says."""
    assert content[:8] == b"\x93NUMPY\x01\x00", content[:8]
    length, = struct.unpack_from("<H", content, 8)
    assert (10 + length) % 64 == 0 and content[9 + length:10 + length] == b"\n"
    header = eval(content[10:10 + length], {"__builtins__": {}}) # a literal of our own program
    assert header["fortran_order"] is False
    return header["descr"], header["shape"], content[10 + length:]


def safetensors(tensors):
    """tensors: name -> (dtype, shape, data)."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(content):
    length, = struct.unpack_from("<Q", content)
    data = content[8 + length:]
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in json.loads(content[8:8 + length]).items()}


class StoreTest(ProgramTest):
    """self.serve() starts a daemon; self.store("ls") asks it, in the same scratch folder."""

    def setUp(self):
        super().setUp()
        # A socket's path has at most 107 characters, and the scratch folder is deep.
        self.short = tempfile.mkdtemp(prefix="pllm-")
        self.addCleanup(shutil.rmtree, self.short, ignore_errors=True)
        self.socket = os.path.join(self.short, "store.sock")

    def environment(self):
        return {**super().environment(), "PAGEDLLM_SOCKET": self.socket}

    def serve(self, *options):
        """The daemon, once it listens; its line is in .line, its Redis in self.redis."""
        daemon = self.start("store", "serve", "--ready", "8MiB", *options)
        daemon.line = daemon.stdout.readline().decode()
        if "serving" not in daemon.line:
            self.fail(f"the daemon says {daemon.line!r} and {daemon.stderr.read()!r}")
        self.redis = re.search(r"Redis: unix://(\S+)", daemon.line)
        self.redis = self.redis and self.redis.group(1)
        return daemon

    def stop(self, daemon, number=signal.SIGTERM):
        daemon.send_signal(number)
        self.assertEqual(daemon.wait(timeout=20), 0, daemon.stderr.read())

    def store(self, *arguments, **changes):
        return self.succeed("store", *arguments, **changes).decode()

    def refuse_store(self, *arguments, words=(), **changes):
        return self.refuse("store", *arguments, words=words, **changes)

    def names(self, *arguments):
        return [row["name"] for row in json.loads(self.store("ls", "--json", *arguments))]

    def stat(self, name):
        return json.loads(self.store("stat", name, "--json"))

    def redis_cli(self, *words, timeout=20):
        result = subprocess.run(["redis-cli", "-s", self.redis, *map(str, words)],
                                stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.decode().rstrip("\n")

    def hash_of(self, name):
        lines = self.redis_cli("HGETALL", f"tensor:{name}").split("\n")
        return dict(zip(lines[::2], lines[1::2]))

    def eventually(self, condition, seconds=15, what="it"):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"{what} did not happen in {seconds} s")
            time.sleep(0.05)

    def command(self, **words):
        """One of tensor:cmd, and its answer."""
        self.redis_cli("RPUSH", "tensor:cmd", json.dumps({**words, "reply": "answers"}))
        answer = self.redis_cli("BLPOP", "answers", 10).split("\n")
        self.assertEqual(answer[0], "answers", answer)
        return json.loads(answer[1])

    def read(self, name):
        with open(os.path.join(self.scratch, name), "rb") as file:
            return file.read()

    def path(self, name):
        return os.path.join(self.scratch, name)
