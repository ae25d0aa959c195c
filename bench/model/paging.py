#!/usr/bin/env python3
"""Question: what does a token cost when a tenth of the KV fits on the device?
Baseline: the same token with everything resident, run in turn. Bounds, with every bandwidth measured
in the same run (B: the bytes that moved for a token, T: the unlimited time):
  rest in host memory               T + 1.2 B / copy bandwidth of all cores together
  the same over a 10 GB/s link      1.25 max(T, B / 10 GB/s)
  rest on disk                      1.25 max(T, B / disk read bandwidth)
A run that moved fewer bytes than were not resident fails (pagedllm bench says so), and so does a
process whose resident memory passed weights + device bytes + the host budget + 64 MiB.

Usage: paging.py [--smoke]    ROUNDS=5   NVME_PATH=folder of the spill file (default: build/)
"""
import json
import os
import sys
import tempfile

from common import MODEL, ROOT, SMOKE, machine, median, program, save, spread

ROUNDS = 1 if SMOKE else int(os.environ.get("ROUNDS", "5"))
DEPTH, DECODE = (512, 4) if SMOKE else (7680, 32)
FOLDER = os.environ.get("NVME_PATH", os.path.join(ROOT, "build"))
LINK = 10e9


def bench(*limits):
    with tempfile.NamedTemporaryFile(suffix=".json") as stats:
        report = program("bench", MODEL, "--prefill", 0, "--decode", DECODE, "--depth", DEPTH, "--json",
                         "--stats-json", stats.name, *limits)
        return report, report["results"][0], json.load(open(stats.name, encoding="utf-8"))


def main():
    report, result, stats = bench()
    kv = result["read_bytes_per_token"] - report["weight_bytes"]
    # Smoke contexts are so small that a tenth is below the least that works.
    limit = max(kv // 10, stats["least_kv_bytes"])
    spill = ["--nvme-path", FOLDER, "--nvme-size", kv + (64 << 20)]
    host = kv + (64 << 20)  # every block, and an extent begun for each layer
    ways = {
        "unlimited": [],
        "host memory": ["--kv-limit", limit, "--host-memory", host],
        "10 GB/s link": ["--kv-limit", limit, "--host-memory", host, "--link-bandwidth", "10GB"],
        "disk": ["--kv-limit", limit, "--host-memory", 0, *spill],
    }
    ms = {name: [] for name in ways}
    moved, resident, waits = {}, [], {}
    copies, disks = [], []
    for _ in range(ROUNDS):
        probe = program("doctor", "--json", "--nvme-path", FOLDER)
        copies.append(probe["memory_copy_all_threads_bytes_per_second"])
        disks.append(probe["disk_read_bytes_per_second"])
        for name, limits in ways.items():
            report, result, stats = bench(*limits)
            ms[name].append(result["decode_ms_median"])
            moved[name] = result["host_to_device_bytes_per_token"] + result["disk_to_device_bytes_per_token"]
            waits[name] = result["wait_ms_per_token"]
            allowed = report["weight_bytes"] + report["device_bytes_peak"] + (64 << 20)
            if "--host-memory" in limits:
                allowed += limits[limits.index("--host-memory") + 1]
            resident.append((name, stats["peak_resident_bytes"], allowed))
    free, copy, disk = median(ms["unlimited"]), median(copies), median(disks)
    bounds = {
        "unlimited": None,
        "host memory": free + 1.2e3 * moved["host memory"] / copy,
        "10 GB/s link": 1.25 * max(free, 1e3 * moved["10 GB/s link"] / LINK),
        "disk": 1.25 * max(free, 1e3 * moved["disk"] / disk),
    }
    print(f"{machine()}, {ROUNDS} rounds; depth {DEPTH}, {kv / 1e6:.1f} MB of KV, {limit / 1e6:.1f} MB of it resident; "
          f"copies {copy / 1e9:.1f} GB/s, disk reads {disk / 1e9:.2f} GB/s")
    print(f"{'rest in':14} {'ms a token':>24} {'allowed':>9} {'MB moved':>9} {'ms waited':>10}")
    rows, missed = [], []
    for name in ways:
        value, bound = median(ms[name]), bounds[name]
        rows.append({"rest_in": name, "ms_median": value, "ms_all": ms[name], "allowed_ms": bound,
                     "moved_bytes_per_token": moved[name], "wait_ms_per_token": waits[name]})
        print(f"{name:14} {value:9.2f} ({spread(ms[name])})".ljust(40) + (f"{bound:9.2f}" if bound else " " * 9)
              + f" {moved[name] / 1e6:9.1f} {waits[name]:10.2f}")
        if bound and value > bound and not SMOKE:
            missed.append(f"{name}: {value:.2f} ms, allowed {bound:.2f}")
    worst = max(resident, key=lambda r: r[1] / r[2])
    print(f"resident memory at most {worst[1] / 1e6:.1f} MB of {worst[2] / 1e6:.1f} MB allowed ({worst[0]})")
    if worst[1] > worst[2]:
        missed.append(f"resident memory: {worst[1]} bytes, allowed {worst[2]} ({worst[0]})")
    save("paging", {"model": os.path.basename(MODEL), "depth": DEPTH, "kv_bytes": kv, "kv_limit_bytes": limit,
                    "copy_bytes_per_second": copy, "disk_read_bytes_per_second": disk, "rounds": ROUNDS, "rows": rows,
                    "peak_resident": [{"rest_in": n, "bytes": b, "allowed": a} for n, b, a in resident]})
    if missed:
        sys.exit("bench: over the bound: " + "; ".join(missed))


if __name__ == "__main__":
    main()
