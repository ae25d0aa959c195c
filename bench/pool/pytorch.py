#!/usr/bin/env python3
"""PyTorch's caching allocator on the logs of `pagedllm bench pool`, with the same columns.

    mkdir logs; pagedllm bench pool --device cuda --output logs
    bench/pool/pytorch.py logs                                   # or single files
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True bench/pool/pytorch.py logs

Calls go to the raw allocator. PyTorch has no stream for a free: a block is freed on the stream that
it was allocated on, and a log that says otherwise (or records streams) is replayed with tensors, on
which record_stream is called for the other one. Each call is timed alone, with what Python adds: an
empty call of the same kind is timed too, and said first. --json prints JSON.
"""
import argparse
import json
import os
import sys
import time

HEAD = "pagedllm-pool-log 1"
RUNS = 3


def read(path):
    """[(kind, place, bytes, stream)] with places used again, and how many there are."""
    with open(path, encoding="ascii") as file:
        if file.readline().rstrip() != HEAD:
            raise SystemExit(f"{path}: does not begin with {HEAD!r}")
        steps, places, unused, count = [], {}, [], 0
        for number, line in enumerate(file, 2):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                if words[0] == "a":
                    if unused:
                        place = unused.pop()
                    else:
                        place, count = count, count + 1
                    places[int(words[1])] = place
                    steps.append(("a", place, int(words[2]), int(words[3])))
                elif words[0] == "f":
                    place = places.pop(int(words[1]))
                    unused.append(place)
                    steps.append(("f", place, 0, int(words[2])))
                elif words[0] == "r":
                    steps.append(("r", places[int(words[1])], 0, int(words[2])))
                else:
                    raise ValueError(words[0])
            except (ValueError, KeyError, IndexError) as error:
                raise SystemExit(f"{path}:{number}: {error!r}") from error
    return steps, count


def peak_of(steps):
    live, sizes, peak = 0, {}, 0
    for kind, place, size, _ in steps:
        if kind == "a":
            sizes[place] = size
            live += size
            peak = max(peak, live)
        elif kind == "f":
            live -= sizes.pop(place)
    return peak


def needs_tensors(steps):
    stream_of = {}
    for kind, place, _, stream in steps:
        if kind == "a":
            stream_of[place] = stream
        elif kind == "r" or stream_of[place] != stream:
            return True
    return False


def replay_raw(torch, steps, count, streams, times):
    allocate = torch._C._cuda_cudaCachingAllocator_raw_alloc
    delete = torch._C._cuda_cudaCachingAllocator_raw_delete
    clock = time.perf_counter_ns
    handles = [stream.cuda_stream for stream in streams]
    pointers = [0] * count
    for kind, place, size, stream in steps:
        if kind == "a":
            handle = handles[stream]
            begun = clock()
            pointer = allocate(size, handle)
            times.append(clock() - begun)
            pointers[place] = pointer
        else:
            pointer, pointers[place] = pointers[place], 0
            begun = clock()
            delete(pointer)
            times.append(clock() - begun)
    for pointer in pointers:
        if pointer:
            delete(pointer)


def replay_tensors(torch, steps, count, streams, times):
    clock = time.perf_counter_ns
    tensors, made_on = [None] * count, [0] * count
    for kind, place, size, stream in steps:
        if kind == "a":
            with torch.cuda.stream(streams[stream]):
                begun = clock()
                tensor = torch.empty(size, dtype=torch.uint8, device="cuda")
                times.append(clock() - begun)
            tensors[place], made_on[place] = tensor, stream
            tensor = None
        elif kind == "r":
            tensors[place].record_stream(streams[stream])
        else:
            if made_on[place] != stream:
                tensors[place].record_stream(streams[stream])
            begun = clock()
            tensors[place] = None
            times.append(clock() - begun)


def overhead(torch):
    """What an empty call, timed like that, takes."""
    function, clock, times = torch._C._cuda_getDevice, time.perf_counter_ns, []
    for _ in range(10000):
        begun = clock()
        function()
        times.append(clock() - begun)
    return sorted(times)[len(times) // 2]


def measure(torch, path):
    steps, count = read(path)
    tensors = needs_tensors(steps)
    streams = [torch.cuda.default_stream()]
    streams += [torch.cuda.Stream() for _ in range(max(step[3] for step in steps))]
    best = None
    for _ in range(RUNS):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_reserved()
        times = []
        (replay_tensors if tensors else replay_raw)(torch, steps, count, streams, times)
        torch.cuda.synchronize()
        reserved = torch.cuda.max_memory_reserved() - base
        times.sort()
        result = {
            "name": os.path.splitext(os.path.basename(path))[0],
            "through": "tensors" if tensors else "the raw allocator",
            "calls": len(times),
            "p50_ns": times[len(times) // 2],
            "p99_ns": times[len(times) * 99 // 100],
            "mean_ns": sum(times) / len(times),
            "peak_requested_bytes": peak_of(steps),
            "peak_reserved_bytes": reserved,
            "reserved_over_requested": reserved / peak_of(steps),
        }
        if best is None or (result["p50_ns"], result["mean_ns"]) < (best["p50_ns"], best["mean_ns"]):
            best = result
    return best


def logs_of(paths):
    for path in paths:
        if os.path.isdir(path):
            yield from sorted(os.path.join(path, name) for name in os.listdir(path)
                              if name.endswith(".log"))
        else:
            yield path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("logs", nargs="+", help="files, or folders of *.log")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        raise SystemExit("this needs PyTorch: pip install torch") from None
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU")
    torch.cuda.init()
    torch.empty(1, device="cuda")
    report = {
        "allocator": f"PyTorch {torch.__version__}",
        "settings": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
        "device": torch.cuda.get_device_name(),
        "call_overhead_ns": overhead(torch),
        "logs": [measure(torch, path) for path in logs_of(arguments.logs)],
    }
    if arguments.json:
        json.dump(report, sys.stdout, indent=2)
        print()
        return
    print(f"{report['device']}; {report['allocator']} {report['settings']}; an empty call takes "
          f"{report['call_overhead_ns']} ns, which is in every figure")
    print(f"{'log':<12} {'':<7} {'calls':>9} {'p50 us':>10} {'p99 us':>10} {'mean us':>10} "
          f"{'peak MiB':>12} {'reserved':>12} {'reserved/':>9}")
    for log in report["logs"]:
        print(f"{log['name'][:12]:<12} {'tensors' if log['through'] == 'tensors' else 'raw':<7} "
              f"{log['calls']:>9} {log['p50_ns'] / 1e3:>10.3f} {log['p99_ns'] / 1e3:>10.3f} "
              f"{log['mean_ns'] / 1e3:>10.3f} {log['peak_requested_bytes'] / 2**20:>12.1f} "
              f"{log['peak_reserved_bytes'] / 2**20:>12.1f} {log['reserved_over_requested']:>9.3f}")


if __name__ == "__main__":
    main()
