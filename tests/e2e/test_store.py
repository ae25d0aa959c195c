#!/usr/bin/env python3
"""pagedllm store, as a person uses it: a daemon, tensors by name, files in and out."""
import json
import os
import signal
import struct
import time
import unittest

from store import StoreTest, npy, read_npy, read_safetensors, safetensors

DAY = struct.pack("<6f", 1, 2, 3, -4, 5.5, 6)


class Store(StoreTest):
    def test_from_nothing_to_a_file_and_back(self):
        self.refuse_store("ls", words=("no daemon answers", "pagedllm store serve"))
        daemon = self.serve("--redis", "none")
        self.assertEqual(daemon.line, f"serving host at {self.socket}; Redis: none\n")
        self.assertEqual(self.store("ls"), "")
        self.store("put", self.write("day.npy", npy((2, 3), "<f4", DAY)))
        self.assertEqual(self.names(), ["day"])
        self.store("get", "day", self.path("back.npy"))
        self.assertEqual(read_npy(self.read("back.npy")), ("<f4", (2, 3), DAY))
        row = self.stat("day")
        self.assertEqual((row["dtype"], row["shape"], row["bytes"], row["references"],
                          row["fence"], row["kept"], row["mode"]),
                         ("f32", [2, 3], 24, 0, 1, True, "0600"))
        self.assertLess(abs(row["ctime_ns"] / 1e9 - time.time()), 60)
        self.assertRegex(self.store("ls"), r"(?m)^day +f32 +24 +0 +1  \[2,3\] +kept$")
        self.assertIn("user", self.store("stat", "day"))
        self.store("rm", "day")
        self.assertEqual(self.names(), [])
        self.refuse_store("get", "day", self.path("gone.npy"), words=("day",))
        self.assertFalse(os.path.exists(self.path("gone.npy")))
        self.stop(daemon)
        self.assertEqual(os.listdir(self.short), ["store.sock.lock"])

    def test_every_type_of_npy(self):
        daemon = self.serve("--redis", "none")
        for descr, dtype, size in (("<f2", "f16", 2), ("<f4", "f32", 4), ("<f8", "f64", 8),
                                   ("<i8", "i64", 8), ("<i4", "i32", 4), ("<i2", "i16", 2),
                                   ("|i1", "i8", 1), ("|u1", "u8", 1), ("|b1", "bool", 1)):
            for shape in ((), (3,), (1, 2, 3, 1, 2)):
                count = 1
                for dimension in shape:
                    count *= dimension
                data = bytes(i % 2 for i in range(size * count))
                path = self.write("in.npy", npy(shape, descr, data, version=2))
                self.store("put", path, "x", "--replace")
                self.assertEqual(self.stat("x")["dtype"], dtype)
                self.store("get", "x", self.path("out.npy"))
                self.assertEqual(read_npy(self.read("out.npy")), (descr, shape, data))
        output = self.succeed("store", "get", "x", "/dev/stdout")
        self.assertEqual(output, self.read("out.npy"))
        self.stop(daemon, signal.SIGINT)

    def test_safetensors(self):
        daemon = self.serve("--redis", "none")
        content = {"b": ("BF16", [2, 2], bytes(range(8))), "a": ("F8_E4M3", [3], b"abc"),
                   "w.big": ("F32", [256, 1024], os.urandom(1 << 20)),
                   "deep": ("I16", [1] * 7 + [2], b"wxyz"), "d": ("F64", [], b"12345678"),
                   "w.e": ("F8_E5M2", [1], b"e"), "t": ("BOOL", [2], b"\1\0")}
        # As writers do: larger elements first.
        order = sorted(content, key=lambda name: (content[name][0] not in ("F64",),
                                                  content[name][0] not in ("F32",),
                                                  content[name][0] not in ("BF16", "I16")))
        path = self.write("m.safetensors", safetensors({name: content[name] for name in order}))
        self.store("put", path, "--prefix", "llama/", "--mode", "0644", "--seal")
        self.assertEqual(self.names("llama/w."), ["llama/w.big", "llama/w.e"])
        row = self.stat("llama/b")
        self.assertEqual((row["mode"], row["sealed"], row["dtype"]), ("0644", True, "bf16"))
        self.store("get", "--prefix", "llama/", self.path("all.safetensors"))
        self.assertEqual(read_safetensors(self.read("all.safetensors")), {
            name: (dtype, shape, data) for name, (dtype, shape, data) in content.items()})
        # What was written can be put again, and one tensor alone.
        self.store("put", self.path("all.safetensors"), "deep")
        self.assertEqual(self.stat("deep")["shape"], [1] * 7 + [2])
        self.store("get", "llama/d", "llama/t", self.path("two.safetensors"))
        self.assertEqual(set(read_safetensors(self.read("two.safetensors"))),
                         {"llama/d", "llama/t"})
        self.refuse_store("get", "llama/b", self.path("b.npy"), words=("bf16", ".safetensors"))
        self.refuse_store("get", "llama/d", "llama/t", self.path("x.npy"), words=("one tensor",))
        self.refuse_store("get", "--prefix", "none/", self.path("x.safetensors"),
                          words=("none/",))
        self.refuse_store("put", path, "nothere", words=("nothere",))
        self.stop(daemon)

    def test_changes(self):
        daemon = self.serve("--redis", "none")
        watch = self.start("store", "watch", "a", "--events", "5", "--json")
        time.sleep(0.5) # until it watches
        self.store("create", "a/1", "--shape", "1024,1024", "--dtype", "bf16", "--mode", "0640")
        self.store("create", "b", "--shape", "[]", "--dtype", "u8", "--pinned")
        self.store("rename", "a/1", "a/2")
        self.store("seal", "a/2")
        self.store("pin", "a/2")
        self.assertEqual(self.stat("a/2")["bytes"], 2 << 20)
        self.assertTrue(self.stat("a/2")["pinned"] and self.stat("b")["pinned"])
        self.store("pin", "--off", "a/2")
        self.assertFalse(self.stat("a/2")["pinned"])
        self.assertEqual(watch.wait(timeout=20), 0)
        events = [json.loads(line) for line in watch.stdout]
        self.assertEqual([event["event"] for event in events],
                         ["created", "renamed", "sealed", "pinned", "pinned"])
        self.assertEqual((events[1]["name"], events[1]["name_before"]), ("a/2", "a/1"))
        self.refuse_store("rename", "a/2", "b", words=("b",))
        self.refuse_store("rm", "none", "a/2", "nix", words=("none", "1 more of the 3"))
        self.assertEqual(self.names(), ["b"])
        self.stop(daemon)

    def test_watch_ends_with_a_signal(self):
        daemon = self.serve("--redis", "none")
        watch = self.start("store", "watch")
        time.sleep(0.5)
        watch.send_signal(signal.SIGINT)
        self.assertEqual(watch.wait(timeout=10), 130)
        self.stop(daemon)

    def test_a_closed_terminal_ends_the_daemon_in_order(self):
        daemon = self.serve() # with a Redis of its own
        self.stop(daemon, signal.SIGHUP)
        self.assertEqual(os.listdir(self.short), ["store.sock.lock"])

    def test_nohup_is_respected(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN) # which is all that nohup does
        try:
            daemon = self.serve("--redis", "none")
        finally:
            signal.signal(signal.SIGHUP, before)
        daemon.send_signal(signal.SIGHUP)
        self.store("ls")
        self.assertIsNone(daemon.poll())
        self.stop(daemon)

    def test_bad_input_is_one_sentence(self):
        daemon = self.serve("--redis", "none", "--quota", "4MiB", "--quota-tensors", "3")
        data = bytes(24)
        for name, content, words in (
                ("fortran.npy", npy((2, 3), "<f4", data, fortran=True), ("Fortran order",)),
                ("big.npy", npy((2, 3), ">f4", data), ("big-endian",)),
                ("complex.npy", npy((3,), "<c8", data), ("<c8",)),
                ("short.npy", npy((2, 4), "<f4", data), ("truncated",)),
                ("long.npy", npy((2,), "<f4", data), ("24 follow",)),
                ("none.npy", b"", ("empty",)),
                ("text.npy", b"hello, world", ("no .npy",)),
                ("zero.npy", npy((0, 3), "<f4", b""), ("zero.npy", "dimension")),
                ("less.npy", npy((-1,), "<f4", b""), ("less.npy", "negative")),
                ("my file.npy", npy((3,), "<f4", data[:12]), ("my file", "give another")),
                ("deep.npy", npy((1,) * 9, "|u1", b"x"), ("dimensions",)),
                ("huge.npy", npy((1 << 40, 1 << 40), "<f4", b""), ("overflow",)),
                ("u4.safetensors", safetensors({"x": ("U32", [1], b"abcd")}), ("U32",)),
                ("name.safetensors", safetensors({"a b": ("F32", [1], b"abcd")}), ("a b",)),
                ("cut.safetensors", safetensors({"x": ("F32", [6], data)})[:-1], ("truncated",)),
                ("x.txt", b"1", ("neither .npy nor .safetensors",))):
            with self.subTest(name):
                self.refuse_store("put", self.write(name, content), words=words)
        self.refuse_store("put", self.path("nothere.npy"), words=("nothere.npy",))
        for words in (("put", self.path("short.npy"), "--mode", "9"),
                      ("create", "x", "--shape", "2,-1"), ("create", "x", "--shape", "0"),
                      ("create", "x", "--shape", "2", "--dtype", "f33"),
                      ("create", "a b", "--shape", "2"), ("create", "cmd", "--shape", "2"),
                      ("create", "x", "--shape", "9" * 300), ("create", "y" * 129, "--shape", "2"),
                      ("create", "x", "--shape", "300000000000"),
                      ("create", "x"), ("get", "x"), ("stat", "nothere"), ("ls", "a b"),
                      ("create", "x", "--shape", "2000000"), ("rename", "a"),
                      ("ls", "--socket", "/nonexistent/sock"), ("ls", "--socket", "y" * 200),
                      ("serve", "--redis", "nonsense", "--socket", self.path("s")),
                      ("serve", "--device", "toaster"), ("serve", "--vram-limit", "0"),
                      ("serve", "--socket-mode", "rw", "--socket", self.path("s"))):
            with self.subTest(words):
                self.refuse_store(*words)
        self.assertEqual(self.store("help", "put"), self.store("put", "--help"))
        # A wrong value is a wrong command line, and known before a daemon is asked.
        away = ("--socket", self.path("away"))
        for words in (("create", "x", "--shape", "2x3"), ("create", "x", "--shape", ""),
                      ("create", "x", "--shape", "2", "--dtype", "float32"),
                      ("create", "x", "--shape", "2", "--mode", "rw"),
                      ("put", "x.npy", "--mode", "9"), ("serve", "--redis", "localhost:6379"),
                      ("serve", "--socket-mode", "9")):
            with self.subTest(words):
                self.assertEqual(self.run_program("store", *words, *away).returncode, 2)
        self.assertFalse(os.path.exists(self.path("away.lock")))
        self.assertEqual(self.names(), [])
        # A put that fails half way takes back what it made.
        path = self.write("many.safetensors", safetensors(
            {f"t{i}": ("F32", [1], b"abcd") for i in range(4)}))
        self.refuse_store("put", path, words=("3",))
        self.assertEqual(self.names(), [])
        # A tensor of that name is not touched.
        self.store("put", self.write("t1.npy", npy((1,), "<f4", b"wxyz")))
        self.refuse_store("put", path, words=("t1",))
        self.store("get", "t1", self.path("t1.back.npy"))
        self.assertEqual(read_npy(self.read("t1.back.npy"))[2], b"wxyz")
        self.stop(daemon)

    def test_two_daemons_on_one_path(self):
        daemon = self.serve("--redis", "none")
        self.store("create", "x", "--shape", "1")
        self.refuse_store("serve", "--redis", "none", words=("already", "--socket"))
        self.assertEqual(self.names(), ["x"])
        # One that was killed leaves its socket, and the next one takes the place.
        daemon.kill()
        daemon.wait()
        self.assertTrue(os.path.exists(self.socket))
        self.refuse_store("ls", words=("no daemon answers",))
        again = self.serve("--redis", "none")
        self.assertEqual(self.names(), [])
        self.stop(again)

    def test_what_host_memory_has_no_room_for_goes_to_disk(self):
        folder = os.path.dirname(self.path("x"))
        daemon = self.serve("--redis", "none", "--vram-limit", "12MiB", "--ready", "0",
                            "--host-memory", "1MiB", "--nvme-path", folder, "--nvme-size", "32MiB")
        data = {f"t{i}": os.urandom(8 << 20) for i in range(3)}
        for name, content in data.items():
            self.store("put", self.write("in.npy", npy((8 << 20,), "|u1", content)), name,
                       "--seal")
        for name, content in data.items():
            self.store("get", name, self.path("out.npy"))
            self.assertEqual(read_npy(self.read("out.npy"))[2], content)
        self.stop(daemon)
        self.refuse_store("serve", "--nvme-path", folder, words=("--nvme-size",))

    def test_under_pressure_sealed_tensors_move_to_host_memory(self):
        daemon = self.serve("--redis", "none", "--vram-limit", "24MiB", "--ready", "0")
        data = {f"t{i}": os.urandom(8 << 20) for i in range(5)}
        for name, content in data.items():
            self.store("put", self.write("in.npy", npy((8 << 20,), "|u1", content)), name,
                       "--seal")
        rows = json.loads(self.store("ls", "--json"))
        self.assertGreaterEqual(sum(row["spilled"] for row in rows), 2)
        for name, content in data.items():
            self.store("get", name, self.path("out.npy"))
            self.assertEqual(read_npy(self.read("out.npy"))[2], content)
        # Pinned ones and those that are not sealed stay where they are.
        for name in data:
            self.store("rm", name)
        for i in range(3):
            self.store("create", f"p{i}", "--shape", 8 << 20, "--dtype", "u8",
                       *(("--pinned",) if i else ()))
        self.refuse_store("create", "p3", "--shape", 8 << 20, "--dtype", "u8", words=("room",))
        self.refuse_store("put", self.path("in.npy"), "p3", words=("room",))
        self.assertEqual(self.names(), ["p0", "p1", "p2"])
        self.stop(daemon)

    def test_two_daemons_in_one_ledger(self):
        ledger = f"e2e-{os.getpid()}"
        self.addCleanup(lambda: os.unlink(f"/dev/shm/pagedllm-{os.getuid()}-{ledger}"))
        options = ("--redis", "none", "--ledger", ledger, "--ledger-limit", "32MiB")
        one = self.serve(*options)
        other_socket = os.path.join(self.short, "other.sock")
        other = self.serve(*options, "--socket", other_socket, "--ledger-minimum", "8MiB")
        elsewhere = ("--socket", other_socket)
        large = ("--shape", 24 << 20, "--dtype", "u8")
        self.store("create", "x", *large) # what was kept ready makes way
        self.refuse_store("create", "y", *large, *elsewhere)
        self.store("create", "y", "--shape", 8 << 20, "--dtype", "u8", *elsewhere) # its minimum
        self.store("rm", "x")
        self.store("create", "z", "--shape", 16 << 20, "--dtype", "u8", *elsewhere)
        self.stop(other)
        self.stop(one)

    def test_other_users_modes_are_kept(self):
        daemon = self.serve("--redis", "none", "--socket-mode", "0660")
        self.assertEqual(os.stat(self.socket).st_mode & 0o777, 0o660)
        self.stop(daemon)


if __name__ == "__main__":
    unittest.main()
