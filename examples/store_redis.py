#!/usr/bin/env python3
"""Tensors through Redis, for programs that know nothing of the library.

    pagedllm store serve --redis unix:///run/redis/redis.sock &
    store_redis.py /run/redis/redis.sock create rows f32 1000 1024
    store_redis.py /run/redis/redis.sock get rows
    store_redis.py /run/redis/redis.sock delete rows

Commands go into the list tensor:cmd, answers come from a list of our own; what there is stands in
the hashes tensor:NAME. Uses redis-py if it is installed, else the program redis-cli.
"""
import json
import os
import subprocess
import sys


def connect(path):
    """A function that sends one command to Redis and returns its answer."""
    try:
        import redis
    except ImportError:
        def ask(*words):
            lines = subprocess.run(["redis-cli", "-s", path, *map(str, words)], check=True,
                                   stdout=subprocess.PIPE, text=True).stdout.split("\n")[:-1]
            if words[0] == "HGETALL":
                return dict(zip(lines[::2], lines[1::2]))
            return lines if words[0] == "BLPOP" else lines[0]
        return ask
    return redis.Redis(unix_socket_path=path, decode_responses=True).execute_command


def command(ask, **words):
    """One of tensor:cmd, and what the daemon answers."""
    reply = f"store_redis:{os.getpid()}"
    ask("RPUSH", "tensor:cmd", json.dumps({**words, "reply": reply}))
    answer = ask("BLPOP", reply, 10)
    if not answer or len(answer) < 2:
        sys.exit("store_redis: nobody answers: does a daemon serve this Redis?")
    answer = json.loads(answer[1])
    if not answer["ok"]:
        sys.exit(f"store_redis: {answer['text']}")
    return answer


def main():
    if len(sys.argv) < 4 or sys.argv[2] not in ("create", "get", "delete") or (
            sys.argv[2] == "create" and len(sys.argv) < 5):
        sys.exit(__doc__)
    path, op, name = sys.argv[1:4]
    ask = connect(path)
    if op == "create": # stays until it is deleted, since it is made without a reference
        made = command(ask, op=op, name=name, dtype=sys.argv[4],
                       shape=[int(dimension) for dimension in sys.argv[5:]])
        print(f"made {name}: {made['bytes']} bytes, handle {made['ipc_handle']}")
    elif op == "get": # a reference that ends with this process
        got = command(ask, op=op, name=name, pid=os.getpid())
        row = ask("HGETALL", f"tensor:{name}")
        assert row["ipc_handle"] == got["ipc_handle"] and int(row["refcount"]) >= 1, row
        print(f"got {name}: {row['dtype']} {row['shape']}, open {row['refcount']} times, "
              f"made by process {row['owner_pid']}")
    else:
        command(ask, op=op, name=name)
        print(f"{op}d {name}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error: # no Redis there, most often
        sys.exit(f"store_redis: {error}")
