#!/usr/bin/env python3
"""pagedllm store and Redis, as a person with redis-cli sees them: the registry, commands, and a
Redis that goes away, comes back empty, or is not the daemon's own."""
import json
import os
import shutil
import signal
import subprocess
import time
import unittest

from store import StoreTest


class StoreRedis(StoreTest):
    def setUp(self):
        super().setUp()
        for program in ("redis-server", "redis-cli"):
            self.assertTrue(shutil.which(program), f"{program} is missing: scripts/bootstrap.sh")

    def own_redis(self):
        """A redis-server that is not the daemon's, on a socket of its own."""
        self.redis = os.path.join(self.short, "own.sock")
        process = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", self.redis,
                                    "--save", "", "--dir", self.short],
                                   stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        self.addCleanup(self.end, process)
        self.eventually(lambda: subprocess.run(["redis-cli", "-s", self.redis, "PING"],
                                               capture_output=True).stdout == b"PONG\n")
        return process

    def there(self, name):
        return lambda: self.redis_cli("EXISTS", f"tensor:{name}") == "1"

    def gone(self, name):
        return lambda: self.redis_cli("EXISTS", f"tensor:{name}") == "0"

    def test_a_private_one_is_there_and_ends(self):
        daemon = self.serve()
        self.assertEqual(self.redis, self.socket + ".redis/redis.sock")
        self.store("create", "x", "--shape", "2,3", "--dtype", "i16")
        self.eventually(self.there("x"))
        row = self.hash_of("x")
        self.assertEqual((row["name"], row["dtype"], row["shape"], row["device"], row["bytes"],
                          row["refcount"], row["state"], row["version"]),
                         ("x", "i16", "[2,3]", "0", "12", "0", "ready", "1"))
        self.assertLess(abs(int(row["ctime"]) - time.time()), 60)
        for field in ("ipc_handle", "owner_pid", "mtime", "generation", "offset", "node"):
            self.assertTrue(row[field], field)
        self.store("rename", "x", "y")
        self.eventually(self.there("y"))
        self.eventually(self.gone("x"))
        self.store("rm", "y")
        self.eventually(self.gone("y"))
        self.stop(daemon)
        self.assertEqual(os.listdir(self.short), ["store.sock.lock"])

    def test_commands(self):
        daemon = self.serve()
        made = self.command(op="create", name="r/x", dtype="f32", shape=[4, 5], device=0)
        self.assertTrue(made["ok"], made)
        self.assertEqual((made["bytes"], made["shape"], made["dtype"]), (80, [4, 5], "f32"))
        self.assertEqual(self.names(), ["r/x"])
        self.assertEqual(self.hash_of("r/x")["ipc_handle"], made["ipc_handle"])
        got = self.command(op="get", name="r/x")
        self.assertEqual((got["ipc_handle"], got["refcount"]), (made["ipc_handle"], 0))
        # A reference lives with a process...
        sleeper = subprocess.Popen(["sleep", "100"])
        self.addCleanup(self.end, sleeper)
        got = self.command(op="get", name="r/x", pid=sleeper.pid)
        self.assertTrue(got["ok"] and got["lease"], got)
        self.assertEqual(self.stat("r/x")["references"], 1)
        sleeper.kill()
        sleeper.wait()
        self.eventually(lambda: self.stat("r/x")["references"] == 0)
        # ...or for a time, or until it is given back.
        self.command(op="get", name="r/x", lease_s=1)
        self.assertEqual(self.stat("r/x")["references"], 1)
        self.eventually(lambda: self.stat("r/x")["references"] == 0)
        got = self.command(op="get", name="r/x", lease_s=1000)
        self.assertEqual(self.stat("r/x")["references"], 1)
        self.assertTrue(self.command(op="delete", name="r/x", lease=got["lease"])["ok"])
        self.assertEqual(self.stat("r/x")["references"], 0)
        self.assertTrue(self.command(op="delete", name="r/x")["ok"])
        self.eventually(self.gone("r/x"))
        self.assertEqual(self.names(), [])
        for wrong in ({"op": "get", "name": "r/x"}, {"op": "create", "name": "a b"},
                      {"op": "create", "name": "cmd", "dtype": "f32", "shape": [1]},
                      {"op": "create", "name": "x", "dtype": "f33", "shape": [1]},
                      {"op": "create", "name": "x", "dtype": "f32", "shape": [1 << 40, 1 << 40]},
                      {"op": "get", "name": "x", "pid": 4194305}, {"op": "eat", "name": "x"},
                      {"op": "get", "name": "x", "leases": 4}):
            answer = self.command(**wrong)
            self.assertFalse(answer["ok"], wrong)
            self.assertTrue(answer["text"], answer)
        for garbage in ("", "{", "[]", "null", "x" * 10000, '{"op":1}'):
            self.redis_cli("RPUSH", "tensor:cmd", garbage)
        self.assertTrue(self.command(op="create", name="after", dtype="u8", shape=[1])["ok"])
        self.stop(daemon)

    def test_flushed(self):
        daemon = self.serve()
        self.store("create", "x", "--shape", "2")
        self.eventually(self.there("x"))
        self.redis_cli("FLUSHALL")
        self.eventually(self.there("x"), what="registering again")
        self.assertTrue(self.command(op="get", name="x")["ok"])
        self.stop(daemon)

    def test_private_one_killed(self):
        daemon = self.serve()
        self.store("create", "x", "--shape", "2")
        self.eventually(self.there("x"))
        pid = int([line for line in self.redis_cli("INFO", "server").split("\n")
                   if line.startswith("process_id:")][0].split(":")[1])
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(self.names(), ["x"]) # nobody waits for it
        self.store("create", "y", "--shape", "2")

        def back():
            result = subprocess.run(["redis-cli", "-s", self.redis, "EXISTS", "tensor:x",
                                     "tensor:y"], capture_output=True)
            return result.stdout.strip() == b"2"
        self.eventually(back, what="another redis-server")
        self.assertTrue(self.command(op="get", name="y")["ok"])
        self.stop(daemon)

    def test_somebody_elses_restarts(self):
        server = self.own_redis()
        address = f"unix://{self.redis}"
        daemon = self.serve("--redis", address)
        self.assertIn(address, daemon.line)
        self.store("create", "x", "--shape", "2")
        self.eventually(self.there("x"))
        server.kill()
        server.wait()
        self.store("create", "y", "--shape", "2") # while there is none
        self.store("rm", "x")
        self.own_redis()
        self.eventually(self.there("y"), what="registering again")
        self.assertTrue(self.gone("x")())
        self.redis_cli("SET", "mine", "kept")
        self.stop(daemon)
        # What the daemon wrote goes with it; what is another's stays.
        self.assertEqual(self.redis_cli("EXISTS", "tensor:y"), "0")
        self.assertEqual(self.redis_cli("GET", "mine"), "kept")

    def test_one_that_is_not_there_yet(self):
        self.redis = os.path.join(self.short, "own.sock")
        daemon = self.serve("--redis", f"unix://{self.redis}")
        self.store("create", "x", "--shape", "2")
        self.own_redis()
        self.eventually(self.there("x"))
        self.stop(daemon)

    def test_without_redis_server(self):
        result = self.run_program("store", "serve", PATH="/nonexistent")
        self.assertEqual(result.returncode, 1)
        text = result.stderr.decode()
        self.assertIn("redis-server", text)
        self.assertIn("--redis none", text)
        self.assertEqual(len(text.strip().splitlines()), 1, text)


if __name__ == "__main__":
    unittest.main()
