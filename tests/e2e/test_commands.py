#!/usr/bin/env python3
"""Every command as a user types it: what goes in, what comes out, where options come from."""
import array
import ast
import json
import os
import struct
import subprocess
import unittest

from program import MODEL, ROOT, TINY, ProgramTest

TEXT = "The quick brown fox jumps over the lazy dog. It did so 1234 times, caf\u00e9 included."


def npy(ids, kind):
    """A one-dimensional .npy file of kind <i4 or <i8, as numpy.save writes it."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({len(ids)},), }}"
    header = header.ljust((10 + len(header) + 64) // 64 * 64 - 11) + "\n"
    code = {"<i4": "i", "<i8": "q", "<f4": "f"}[kind]
    return (b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
            + struct.pack(f"<{len(ids)}{code}", *ids))


def read_npy(path):
    """(shape, values) of an f32 file, held against the format's description."""
    with open(path, "rb") as file:
        data = file.read()
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    length = struct.unpack("<H", data[8:10])[0]
    assert (10 + length) % 64 == 0 and data[9 + length:10 + length] == b"\n"
    header = ast.literal_eval(data[10:10 + length].decode("latin-1"))
    assert set(header) == {"descr", "fortran_order", "shape"}, header
    assert header["descr"] == "<f4" and header["fortran_order"] is False, header
    values = array.array("f", data[10 + length:])
    rows, columns = header["shape"]
    assert len(values) == rows * columns, (len(values), header)
    return header["shape"], values


class Commands(ProgramTest):
    def pipe(self, content, *arguments):
        """Its standard output, with content on standard input."""
        result = subprocess.run([self.program, *map(str, arguments)], input=content,
                                capture_output=True, timeout=120, env=self.environment())
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def ids_of(self, text, *more):
        return json.loads(self.succeed("tokenize", MODEL, "--text", text, "--json", *more))

    def test_help_and_version(self):
        general = self.succeed("--help").decode()
        for command in ("run", "chat", "bench", "logits", "perplexity", "tokenize", "detokenize",
                        "doctor"):
            self.assertIn(f"\n  {command} ", general)
            own = self.succeed(command, "--help").decode()
            self.assertTrue(own.startswith(f"Usage: pagedllm {command} "), own)
            self.assertIn("--vram-limit", own)
            self.assertLessEqual(max(map(len, own.splitlines())), 100)
        self.assertRegex(self.succeed("--version"), rb"^pagedllm \d+\.\d+\.\d+\n$")
        nothing = self.run_program()
        self.assertEqual((nothing.returncode, nothing.stdout), (2, b""))
        self.assertIn(b"--help", nothing.stderr)

    def test_tokenize_and_back(self):
        ids = self.ids_of(TEXT)
        self.assertEqual(self.pipe(TEXT.encode(), "tokenize", MODEL, "--json"),
                         (json.dumps(ids) + "\n").encode())
        for content in (json.dumps(ids).encode(), npy(ids, "<i4"), npy(ids, "<i8")):
            self.assertEqual(self.pipe(content, "detokenize", MODEL, "--ids", "-").decode(),
                             TEXT + "\n")
        self.assertEqual(self.ids_of(""), [])
        self.assertEqual(self.pipe(b"[]", "detokenize", MODEL, "--ids", "-"), b"\n")
        shown = self.succeed("tokenize", MODEL, "--text", "a\nb \u00e9").decode()
        self.assertIn("\\x0a", shown)
        self.assertEqual(len(shown.splitlines()), len(self.ids_of("a\nb \u00e9")))

    def test_ids_are_those_of_the_reference(self):
        with open(os.path.join(ROOT, "tests", "reference", "smollm2", "smollm2_tokens.json"),
                  encoding="utf-8") as file:
            cases = json.load(file)["cases"]
        self.assertEqual(len(cases), 30)
        for case in cases:
            if "\0" not in case["text"]:
                self.assertEqual(self.ids_of(case["text"]), case["ids"], case["text"])

    def test_special_tokens_are_read_and_shown_where_asked(self):
        marker = "<|im_start|>user"
        ids = self.ids_of(marker)
        self.assertEqual(ids[0], 1)
        self.assertEqual(self.ids_of(marker, "--special"), ids)  # this model begins with nothing
        content = json.dumps(ids).encode()
        self.assertEqual(self.pipe(content, "detokenize", MODEL, "--ids", "-"), b"user\n")
        self.assertEqual(self.pipe(content, "detokenize", MODEL, "--ids", "-", "--special"),
                         marker.encode() + b"\n")

    def test_a_recorded_run_replays(self):
        path = os.path.join(self.scratch, "run.trace")
        self.succeed("bench", MODEL, "--prefill", 0, "--decode", 6, "--depth", 512, "--record", path)
        replayed = json.loads(self.succeed("trace", path, "--frames", "60,240,100000", "--json"))
        self.assertGreater(replayed["accesses"], 6 * 30 * 16)
        few, half, plenty = replayed["hits"]
        for row in (few, half, plenty):
            self.assertGreaterEqual(row["optimum"], max(row["static"], row["lru"], row["2q"]))
        self.assertGreater(half["static"], 10 * half["lru"])  # a cyclic scan is lru's worst case
        self.assertEqual(plenty["lru"], plenty["optimum"])
        self.refuse("trace", self.write("no.trace", b"nothing"), words=["no.trace", "line 1"])

    def test_ids_that_are_none(self):
        output = os.path.join(self.scratch, "out.npy")
        for name, content, word in (
                ("text.json", b"[1, 2", "json"), ("object.json", b'{"ids": [1]}', "array"),
                ("minus.json", b"[1, -2]", "item 1"), ("float.json", b"[1.5]", "item 0"),
                ("big.json", b"[4294967296]", "item 0"), ("empty.json", b"[]", "holds no"),
                ("past.json", b"[1, 49152]", "49152"),
                ("cut.npy", npy([1, 2, 3], "<i4")[:-1], "does not hold"),
                ("head.npy", npy([1, 2, 3], "<i4")[:9], "npy"),
                ("floats.npy", npy([1, 2, 3], "<f4"), "integers"),
                ("minus.npy", npy([1, -2, 3], "<i8"), "item 1")):
            with self.subTest(name=name):
                path = self.write(name, content)
                self.refuse("logits", MODEL, "--ids", path, "--output", output, words=[word])
                self.assertFalse(os.path.exists(output))
        self.refuse("logits", MODEL, "--ids", self.scratch, "--output", output,
                    words=[self.scratch, "directory"])

    def test_logits_agree_with_the_answer(self):
        """Position by position: the likeliest next id is what run generates there."""
        prompt = "The capital of France is"
        ids = self.ids_of(prompt)
        answer = self.succeed("run", MODEL, "--prompt", prompt, "--max-tokens", 1)
        output = os.path.join(self.scratch, "logits.npy")
        self.pipe(npy(ids, "<i8"), "logits", MODEL, "--ids", "-", "--output", output)
        (rows, columns), values = read_npy(output)
        self.assertEqual((rows, columns), (len(ids), 49152))
        last = values[(rows - 1) * columns:]
        best = max(range(columns), key=last.__getitem__)
        self.assertEqual(self.pipe(json.dumps([best]).encode(), "detokenize", MODEL, "--ids", "-"),
                         answer + b"\n")
        self.assertEqual(sorted(os.listdir(self.scratch)), ["logits.npy"])

    def test_logits_of_a_folder(self):
        output = os.path.join(self.scratch, "tiny.npy")
        path = self.write("ids.json", "[1, 2, 3, 4, 5]")
        self.succeed("logits", TINY, "--ids", path, "--output", output)
        (rows, _), values = read_npy(output)
        self.assertEqual(rows, 5)
        self.assertTrue(all(value == value for value in values))
        self.refuse("run", TINY, "--prompt", "x", words=["tokenizer"])
        self.refuse("chat", TINY, words=["tokenizer"])
        link = os.path.join(self.scratch, "link.npy") # what a link points to is replaced, not it
        os.symlink(output, link)
        os.truncate(output, 0)
        self.succeed("logits", TINY, "--ids", path, "--output", link)
        self.assertTrue(os.path.islink(link))
        self.assertEqual(read_npy(output)[1], values)

    def test_perplexity(self):
        path = self.write("text.txt", TEXT * 12)
        score = json.loads(self.succeed("perplexity", MODEL, path, "--window", 64,
                                        "--max-tokens", 150, "--json"))
        self.assertEqual((score["tokens"], score["windows"], score["window"]), (150, 3, 64))
        self.assertEqual(len(score["nll_per_window"]), 3)
        self.assertTrue(1 < score["perplexity"] < 100, score)
        text = self.succeed("perplexity", MODEL, path, "--window", 64, "--max-tokens", 150)
        self.assertIn(f"{score['perplexity']:.4f}".encode(), text)
        self.refuse("perplexity", MODEL, path, "--window", 9000, words=["9000", "8192"])
        self.refuse("perplexity", MODEL, path, "--max-tokens", 0, words=["max-tokens"])
        self.refuse("perplexity", MODEL, self.write("none.txt", ""), words=["two tokens"])

    def test_bench(self):
        report = json.loads(self.succeed("bench", MODEL, "--prefill", 32, "--decode", 8, "--depth",
                                         "0,320", "--json", "--kv-limit", "4MB"))
        self.assertEqual([result["depth"] for result in report["results"]], [0, 320])
        for result in report["results"]:
            self.assertGreater(result["prefill_tokens_per_second"], 0)
            self.assertGreater(result["decode_tokens_per_second"], 0)
        deep = report["results"][1] # its blocks are 7 MB, 4 fit: the rest moves, every token
        self.assertGreater(deep["not_resident_bytes_per_token"], 1e6)
        self.assertGreaterEqual(deep["host_to_device_bytes_per_token"],
                                deep["not_resident_bytes_per_token"] // 2)
        self.refuse("bench", MODEL, "--depth", "0,8192", words=["8192"])
        self.refuse("bench", MODEL, "--prefill", 0, "--decode", 0, words=["nothing"])

    def test_doctor(self):
        alone = json.loads(self.succeed("doctor", "--json"))
        self.assertGreater(alone["memory_read_bytes_per_second"], 1e8)
        self.assertTrue(alone["disk"], alone)
        self.assertTrue(alone["disk_folder"].startswith(self.scratch))
        self.assertNotIn("model", alone)
        with_model = json.loads(self.succeed("doctor", MODEL, "--json"))["model"]
        self.assertEqual((with_model["family"], with_model["layers"]), ("llama", 30))
        least = with_model["least_vram_bytes"]
        self.succeed("run", MODEL, "--prompt", "x", "--max-tokens", 2, "--vram-limit", least)
        self.refuse("run", MODEL, "--prompt", "x", "--vram-limit", least - 1, words=[least])
        text = self.succeed("doctor", MODEL).decode()
        for word in ("processor", "device     host", "device     cuda", "memory", "disk", "limits",
                     "missing", f"least --vram-limit {least}"):
            self.assertIn(word, text)
        broken = self.run_program("doctor", os.path.join(self.scratch, "no.gguf"), "--json")
        self.assertEqual(broken.returncode, 1)
        self.assertIn("no.gguf", json.loads(broken.stdout)["model"]["problem"])
        self.assertEqual(len(broken.stderr.splitlines()), 1)
        # The machine's memory and what is left of it are two things.
        with open("/proc/meminfo", encoding="utf-8") as file:
            machine = int(next(line for line in file if line.startswith("MemTotal:")).split()[1]) * 1024
        self.assertLess(alone["host_free_bytes"], alone["host_total_bytes"])
        self.assertLessEqual(alone["host_total_bytes"], machine)
        self.assertRegex(text, r"device +host: [\d.]+ \w+ of memory, [\d.]+ \w+ available")

    def test_doctor_of_a_device_that_is_not_there(self):
        gpus = len(json.loads(self.succeed("doctor", "--json"))["gpus"])
        for name in (f"cuda:{gpus}", "cuda") if gpus == 0 else (f"cuda:{gpus}",):
            result = self.run_program("doctor", "--device", name)
            self.assertEqual(result.returncode, 1, name)
            self.assertNotIn(b"missing    nothing", result.stdout)
            self.assertIn(name.encode(), result.stderr)
            self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
            if gpus == 0:
                self.assertRegex(result.stdout, rb"\nmissing    .*driver")
            result = self.run_program("doctor", "--device", name, "--json")
            self.assertEqual(result.returncode, 1)
            self.assertTrue(json.loads(result.stdout)["missing"])

    def test_flag_over_environment_over_file(self):
        config = self.write("my.conf", "max_tokens = 1 # one\nkv_limit = 4MB\nstop = \"never\"\n")
        run = ("run", MODEL, "--prompt", "Once upon a time", "--config", config)
        def generated(*flags, **environment):
            path = os.path.join(self.scratch, "stats.json")
            self.succeed(*run, *flags, "--stats-json", path, **environment)
            with open(path, encoding="utf-8") as file:
                return json.load(file)
        # The first token comes with the prompt's logits, so n tokens are n - 1 decode steps.
        self.assertEqual(generated()["steps"], 1)
        self.assertEqual(generated(PAGEDLLM_MAX_TOKENS="2")["steps"], 2)
        self.assertEqual(generated("--max-tokens", 3, PAGEDLLM_MAX_TOKENS="2")["steps"], 3)
        small = self.run_program(*run, PAGEDLLM_KV_LIMIT="1KB")
        self.assertIn(b"--kv-limit is 1000 B", small.stderr)
        self.assertEqual(small.returncode, 1)
        self.refuse(*run[:4], "--config", self.write("bad.conf", "max_tokens 3\n"),
                    words=["bad.conf", "line 1"])
        self.refuse(*run[:4], words=["PAGEDLLM_THREADS"], PAGEDLLM_THREADS="many")

    def test_options_without_effect_are_refused(self):
        for options, word in ((("--page-size", "1MiB"), "page-size"),
                              (("--device", "tpu"), "tpu"),
                              (("--device", "cuda", "--link-bandwidth", "10GB"), "--link-bandwidth simulates"),
                              (("--link-latency-us", "5", "--device", "cuda:1"), "cuda:1 has its own"),
                              (("--kv-limit", "0"), "kv-limit"),
                              (("--stop", ""), "stop")):
            result = self.run_program("run", MODEL, "--prompt", "x", *options)
            self.assertEqual((result.returncode, result.stdout), (2, b""), options)
            self.assertIn(word.encode(), result.stderr)
        # What is no GPU's name may have a link, and a link in the environment is refused too.
        self.refuse("run", MODEL, "--prompt", "x", "--device", "cuda", words=["--link-bandwidth"],
                    PAGEDLLM_LINK_BANDWIDTH="1GB")
        self.succeed("run", MODEL, "--prompt", "x", "--max-tokens", "1", "--device", "host",
                     "--link-bandwidth", "10GB", "--link-latency-us", "5")
        # The right word, but no machine has so many GPUs, and most have no driver: it says which.
        nowhere = self.run_program("run", MODEL, "--prompt", "x", "--device", "cuda:999")
        self.assertEqual((nowhere.returncode, nowhere.stdout), (1, b""))
        self.assertRegex(nowhere.stderr, b"no NVIDIA driver|finds no GPU|no GPU number 999")
        self.assertEqual(len(nowhere.stderr.splitlines()), 1)
        self.refuse("tokenize", MODEL, "--text", "x", "--stats-json",
                    os.path.join(self.scratch, "s.json"), words=["stats-json"])

    def test_what_a_command_needs(self):
        for arguments, word in ((("run", MODEL), "--prompt-file"),
                                (("run", MODEL, "--prompt", "x", "--prompt-file", "y"), "either"),
                                (("logits", MODEL, "--ids", "x"), "--output"),
                                (("detokenize", MODEL), "--ids"), (("perplexity", MODEL), "FILE")):
            result = self.run_program(*arguments)
            self.assertEqual((result.returncode, result.stdout), (2, b""), arguments)
            self.assertIn(word.encode(), result.stderr)

    def test_log(self):
        run = ("run", MODEL, "--prompt", "a", "--max-tokens", 1, "--kv-limit", "2MB",
               "--nvme-path", self.scratch, "--disk-io", "pread")
        self.assertEqual(self.run_program(*run).stderr, b"")
        lines = self.run_program(*run[:3], "a\x04b", *run[4:], "--log-format",
                                 "json").stderr.splitlines()
        self.assertEqual([json.loads(line)["level"] for line in lines], ["warn"])
        lines = self.run_program("run", "/none", "--prompt", "x", "--log-format",
                                 "json").stderr.splitlines()
        self.assertEqual([json.loads(line)["level"] for line in lines], ["error"])
        quiet = self.run_program(*run[:3], "a\x04b", *run[4:], "--log-level", "error")
        self.assertEqual(quiet.stderr, b"")


if __name__ == "__main__":
    unittest.main()
