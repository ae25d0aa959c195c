#!/usr/bin/env python3
"""pagedllm store on a driver of CUDA that is made of host memory (tests/fake): a daemon with two
devices, tensors on either, handles as other programs want them."""
import base64
import os
import unittest

from program import find_program
from store import StoreTest, npy, read_npy

FAKE = os.path.join(os.path.dirname(find_program()), "tests", "libfake_cuda.so")


@unittest.skipUnless(os.path.exists(FAKE), "an installed program: the driver for tests is not there")
class StoreCuda(StoreTest):
    def environment(self):
        folder = os.path.join(self.scratch, "driver")
        os.makedirs(folder, exist_ok=True)
        if not os.path.exists(os.path.join(folder, "libcuda.so.1")):
            os.symlink(FAKE, os.path.join(folder, "libcuda.so.1"))
        return {**super().environment(), "LD_LIBRARY_PATH": folder}

    def test_two_devices(self):
        daemon = self.serve("--device", "host", "--device", "cuda")
        self.assertIn("serving host, cuda at", daemon.line)
        data = os.urandom(3 << 20)
        path = self.write("x.npy", npy((3, 1 << 20), "|u1", data))
        self.store("put", path, "here")
        self.store("put", path, "there", "--device", "cuda")
        self.store("put", path, "plain", "--device", "cuda", "--legacy")
        self.assertEqual([self.stat(name)["device"] for name in ("here", "there", "plain")],
                         [0, 1, 1])
        for name in ("here", "there", "plain"):
            self.store("get", name, self.path("back.npy"))
            self.assertEqual(read_npy(self.read("back.npy")), ("|u1", (3, 1 << 20), data), name)
        self.refuse_store("get", "there", self.path("back.npy"), "--device", "host",
                          words=("there", "device 1"))
        self.refuse_store("get", "here", self.path("back.npy"), "--device", "cuda",
                          words=("here", "device 0"))
        # A handle as CUDA has them, for a tensor of the socket and for one made through Redis.
        made = self.command(op="create", name="r", dtype="f32", shape=[1000], device=1)
        self.assertTrue(made["ok"], made)
        for name in ("plain", "r"):
            row = self.hash_of(name)
            self.assertEqual((row["kind"], row["device"]), ("legacy", "1"))
            self.assertEqual(len(base64.b64decode(row["ipc_handle"], validate=True)), 64)
            self.assertEqual(int(row["offset"]) % 512, 0)
        self.assertEqual(self.hash_of("there")["kind"], "vmm")
        self.assertTrue(self.stat("r")["legacy"])
        self.stop(daemon)

    def test_a_daemon_with_gpus_alone(self):
        daemon = self.serve("--device", "cuda", "--redis", "none")
        self.store("put", self.write("x.npy", npy((2,), "<i2", b"abcd")))
        self.assertEqual(self.names(), ["x"])
        self.store("get", "x", self.path("back.npy"))
        self.assertEqual(read_npy(self.read("back.npy"))[2], b"abcd")
        self.store("rm", "x")
        self.stop(daemon)


if __name__ == "__main__":
    unittest.main()
