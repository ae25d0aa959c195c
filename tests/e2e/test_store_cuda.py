#!/usr/bin/env python3
"""pagedllm store on a driver of CUDA that is made of host memory (tests/fake): a daemon with two
devices, tensors on either, handles as other programs want them."""
import base64
import os
import subprocess
import sys
import unittest

from program import find_program
from store import StoreTest, npy, read_npy

FAKE = os.path.join(os.path.dirname(find_program()), "tests", "libfake_cuda.so")


# A program that knows CUDA and not us: opens a handle, and shows what lies there. The driver for
# tests keeps device memory where the processor can read it.
FOREIGN = """
import base64, ctypes, sys
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 64)]
driver = ctypes.CDLL("libcuda.so.1")
def call(name, *types):
    at, found = ctypes.c_void_p(), ctypes.c_int()
    assert driver.cuGetProcAddress_v2(name, ctypes.byref(at), 12000, ctypes.c_uint64(0),
                                      ctypes.byref(found)) == 0
    return ctypes.CFUNCTYPE(ctypes.c_int, *types)(at.value)
context, base = ctypes.c_void_p(), ctypes.c_uint64()
assert call(b"cuInit", ctypes.c_uint)(0) == 0
assert call(b"cuDevicePrimaryCtxRetain", ctypes.c_void_p, ctypes.c_int)(ctypes.byref(context), 0) == 0
assert call(b"cuCtxSetCurrent", ctypes.c_void_p)(context) == 0
handle = Handle.from_buffer_copy(base64.b64decode(sys.argv[1]))
opened = call(b"cuIpcOpenMemHandle", ctypes.c_void_p, Handle, ctypes.c_uint)
assert opened(ctypes.byref(base), handle, 1) == 0
sys.stdout.buffer.write(ctypes.string_at(base.value + int(sys.argv[2]), int(sys.argv[3])))
"""


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
        for name, content in (("plain", data), ("r", bytes(4000))):
            row = self.hash_of(name)
            seen = subprocess.run(
                [sys.executable, "-c", FOREIGN, row["ipc_handle"], row["offset"], row["bytes"]],
                env=self.environment(), check=True, capture_output=True)
            self.assertEqual(seen.stdout, content, name)
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
