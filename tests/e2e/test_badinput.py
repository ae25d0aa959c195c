#!/usr/bin/env python3
"""Bad input: one clear sentence that names what is wrong, a non-zero exit, nothing left behind."""
import json
import os
import re
import shutil
import signal
import struct
import time
import unittest

from program import MODEL, TINY, ProgramTest

RUN = ("--prompt", "Once upon a time", "--max-tokens", "4", "--temperature", "0")


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def header(tensors=0, pairs=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


class Gguf:
    """Where things stand in a GGUF file: the public description's layout, read once."""

    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = bytearray(file.read(4_000_000)) # the metadata, and some of the first tensor
        self.bytes = os.path.getsize(path)
        tensors, pairs = struct.unpack_from("<QQ", self.data, 8)
        at = 24
        self.values, self.tensors = {}, {}
        for _ in range(pairs):
            key, at = self.string(at)
            self.values[key] = at # where its type stands
            kind, = struct.unpack_from("<I", self.data, at)
            at = self.skip(kind, at + 4)
        for _ in range(tensors):
            name, at = self.string(at)
            dimensions, = struct.unpack_from("<I", self.data, at)
            # (dimension count, first dimension, type, offset)
            self.tensors[name] = (at, at + 4, at + 4 + 8 * dimensions, at + 8 + 8 * dimensions)
            at += 16 + 8 * dimensions

    def string(self, at):
        length, = struct.unpack_from("<Q", self.data, at)
        return self.data[at + 8:at + 8 + length].decode(), at + 8 + length

    def skip(self, kind, at):
        if kind == 8:
            return self.string(at)[1]
        if kind != 9:
            return at + self.SIZES[kind]
        inner, count = struct.unpack_from("<IQ", self.data, at)
        at += 12
        if inner in self.SIZES:
            return at + count * self.SIZES[inner]
        for _ in range(count):
            at = self.skip(inner, at)
        return at

    def write(self, path, changes):
        """A copy with changes {position: bytes}; the weights are a hole, which reads as zero."""
        data = bytearray(self.data)
        for at, value in changes.items():
            data[at:at + len(value)] = value
        with open(path, "wb") as file:
            file.write(data)
            file.truncate(self.bytes)


class BadInput(ProgramTest):
    def test_commands_and_options(self):
        self.refuse("frobnicate", words=["frobnicate"])
        self.refuse("run", MODEL, "--no-such-option", words=["--no-such-option"])
        self.refuse("run", MODEL, *RUN, "--kv-limit", "12 parsecs", words=["kv-limit"])
        self.refuse("run", words=["model"])
        self.refuse("run", MODEL, "--max-tokens", 4, words=["--prompt", "--prompt-file"])
        self.refuse("run", MODEL, "--prompt-file", os.path.join(self.scratch, "none.txt"),
                    words=["none.txt"])

    def test_files_that_are_no_model(self):
        missing = os.path.join(self.scratch, "missing.gguf")
        self.refuse("run", missing, *RUN, words=[missing])
        self.refuse("run", "/dev/null", *RUN, words=["/dev/null"])
        fifo = os.path.join(self.scratch, "fifo.gguf") # nobody ever writes: it must not wait
        os.mkfifo(fifo)
        self.refuse("run", fifo, *RUN, words=[fifo], timeout=30)
        for name, content in (("empty.gguf", b""), ("text.gguf", b"this is no model\n" * 50)):
            path = self.write(name, content)
            self.refuse("run", path, *RUN, words=[path])
        with open(MODEL, "rb") as file:
            head = file.read(3_000_000)
        for length in (4, 24, 1000, 100_000, 3_000_000):
            path = self.write(f"cut-{length}.gguf", head[:length])
            self.refuse("run", path, *RUN, words=[path])

    def test_hostile_headers(self):
        huge = struct.pack("<Q", 2 ** 64 - 8)
        for name, content in (
                ("version", header(version=99)),
                ("tensors", header(tensors=2 ** 60) + bytes(64)),
                ("pairs", header(pairs=2 ** 63) + bytes(64)),
                ("key", header(pairs=1) + huge + bytes(64)),
                ("value", header(pairs=1) + string("general.architecture")
                 + struct.pack("<I", 8) + huge + bytes(64)),
                ("array", header(pairs=1) + string("a") + struct.pack("<IIQ", 9, 4, 2 ** 62)
                 + bytes(64)),
                ("nested", header(pairs=1) + string("a") + struct.pack("<IIQ", 9, 9, 1) * 400),
                ("type", header(pairs=1) + string("a") + struct.pack("<I", 77) + bytes(64)),
                ("dimensions", header(tensors=1) + string("t") + struct.pack("<I", 2 ** 31)
                 + bytes(64))):
            with self.subTest(name=name):
                path = self.write(f"{name}.gguf", content)
                self.refuse("run", path, *RUN, words=[path], timeout=30)
                self.refuse("tokenize", path, "--text", "x", words=[path], timeout=30)

    def test_changed_models(self):
        """A real file with one thing wrong; the sentence names the file and the thing."""
        model = Gguf(MODEL)
        query = model.tensors["blk.3.attn_q.weight"]
        architecture = model.values["general.architecture"]
        heads = model.values["llama.attention.head_count"]
        self.assertEqual(model.string(architecture + 4)[0], "llama")
        for name, changes, words in (
                ("quantisation", {query[2]: struct.pack("<I", 12)}, ["attn_q", "q4_k"]),
                ("unknown-type", {query[2]: struct.pack("<I", 1234)}, ["attn_q", "1234"]),
                ("family", {architecture + 12: b"zebra"}, ["zebra"]),
                ("offset", {query[3]: struct.pack("<Q", 2 ** 63)}, ["attn_q"]),
                ("past-the-end", {query[3]: struct.pack("<Q", model.bytes // 32 * 32)}, ["attn_q"]),
                ("shape", {query[1]: struct.pack("<Q", 2 ** 40)}, ["attn_q"]),
                ("transposed", {query[1]: struct.pack("<QQ", 576, 192)}, ["attn_q"]),
                ("no-heads", {heads + 4: struct.pack("<I", 0)}, ["head"]),
                ("many-heads", {heads + 4: struct.pack("<I", 2 ** 31)}, ["head"])):
            with self.subTest(name=name):
                path = os.path.join(self.scratch, f"{name}.gguf")
                model.write(path, changes)
                self.refuse("run", path, *RUN, words=[path, *words])
                os.unlink(path)
        path = os.path.join(self.scratch, "zero.gguf") # all weights zero: valid, if useless
        model.write(path, {})
        self.succeed("run", path, *RUN)

    def test_changed_checkpoints(self):
        with open(os.path.join(TINY, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        with open(os.path.join(TINY, "model.safetensors"), "rb") as file:
            weights = file.read()
        ids = self.write("ids.json", "[1, 2, 3]")
        output = os.path.join(self.scratch, "out.npy")
        length = struct.unpack("<Q", weights[:8])[0]
        for name, settings, content, words in (
                ("family", {**config, "model_type": "zebra", "architectures": ["Zebra"]}, weights,
                 ["zebra"]),
                ("layers", {**config, "num_hidden_layers": 2 ** 40}, weights, ["num_hidden_layers"]),
                ("negative", {**config, "hidden_size": -64}, weights, ["hidden_size"]),
                ("not-json", None, weights, ["config.json"]),
                ("cut", config, weights[:len(weights) // 2], ["safetensors"]),
                ("length", config, struct.pack("<Q", 2 ** 63) + weights[8:], ["safetensors"]),
                ("header", config, weights[:8] + b"[" * length + weights[8 + length:],
                 ["safetensors"]),
                ("no-weights", config, None, ["safetensors"])):
            with self.subTest(name=name):
                folder = os.path.join(self.scratch, name)
                os.mkdir(folder)
                self.write(f"{name}/config.json",
                           "{ no" if settings is None else json.dumps(settings))
                if content is not None:
                    self.write(f"{name}/model.safetensors", content)
                self.refuse("logits", folder, "--ids", ids, "--output", output,
                            words=[folder, *words], timeout=30)
                self.assertFalse(os.path.exists(output))
                shutil.rmtree(folder)
        self.refuse("logits", self.scratch, "--ids", ids, "--output", output,
                    words=[self.scratch, "config.json"])

    def test_limits_below_the_least_that_works(self):
        self.refuse("run", MODEL, *RUN, "--kv-limit", "1", words=["least", "kv-limit"])
        text = self.refuse("run", MODEL, *RUN, "--vram-limit", "64KiB",
                           words=["least", "vram-limit"])
        least = int(text.split("(")[1].split()[0])
        self.succeed("run", MODEL, *RUN, "--vram-limit", least)
        self.refuse("run", MODEL, *RUN, "--vram-limit", least - 1, words=[least])
        named = re.search(r"at least ([\d.]+ \w+) \(", text).group(1) # in words, rounded up
        self.succeed("run", MODEL, *RUN, "--vram-limit", named)
        self.assertIn(f"least --vram-limit {least} ({named})", self.succeed("doctor", MODEL).decode())

    def test_model_cut_short_while_it_is_read(self):
        """A sentence, not a signal; whichever moment of loading it is."""
        with open(MODEL, "rb") as file:
            content = file.read()
        said = []
        for attempt in range(3):
            path = self.write(f"cut-{attempt}.gguf", content)
            process = self.start("run", path, *RUN)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with open(f"/proc/{process.pid}/maps", encoding="utf-8", errors="replace") as maps:
                    if path in maps.read():
                        break
            os.kill(process.pid, signal.SIGSTOP)
            os.truncate(path, 1000000)
            os.kill(process.pid, signal.SIGCONT)
            output, errors = process.communicate(timeout=120)
            text = errors.decode("utf-8", "replace")
            self.assertEqual((process.returncode, output), (1, b""), text)
            self.assertEqual(len(text.splitlines()), 1, text)
            self.assertIn(path, text)
            said.append(text)
            os.remove(path)
        self.assertTrue(any("cut from 98362432 to 1000000 bytes" in text for text in said), said)

    def test_prompt_longer_than_the_context(self):
        path = self.write("long.txt", "word " * 9000)
        text = self.refuse("run", MODEL, "--prompt-file", path, words=["8192"])
        counts = [int(word) for word in text.replace(":", " ").split() if word.isdigit()]
        self.assertTrue(any(8192 < count < 20000 for count in counts), text)
        ids = self.write("long.json", json.dumps([1] * 8193))
        output = os.path.join(self.scratch, "out.npy")
        self.refuse("logits", MODEL, "--ids", ids, "--output", output, words=["8192", "8193"])
        self.assertFalse(os.path.exists(output))

    def test_empty_prompt(self):
        self.refuse("run", MODEL, "--prompt", "", words=["empty"])
        self.refuse("run", MODEL, "--prompt-file", self.write("none.txt", ""), words=["empty"])


if __name__ == "__main__":
    unittest.main()
