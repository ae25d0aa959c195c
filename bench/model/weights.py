#!/usr/bin/env python3
"""Question: what does a token cost when the weights do not fit the device?
Baseline: the same token without a limit, run in turn. Bound: T + 1.2 B / copy bandwidth of all cores
together (B: the bytes that moved for a token, T: the unlimited time), measured in the same run.
A run that moved fewer bytes than were not resident fails (pagedllm bench says so), and so does a
process whose resident memory passed weights + device bytes + 64 MiB.

Usage: weights.py [--smoke] [--json]    ROUNDS=7; SHAPE=smollm2-135m:q4_1 in place of a model file
--json: the report goes to standard output, in place of bench/results/weights.json, and who reads it judges
"""
import json
import os
import sys
import tempfile

from common import MODEL, SMOKE, machine, median, program, save, spread

JSON = "--json" in sys.argv
ROUNDS = 1 if SMOKE else int(os.environ.get("ROUNDS", "7"))
DEPTH, DECODE = 64, 4 if SMOKE else 64
SHAPE = os.environ.get("SHAPE")
SUBJECT = [MODEL]
if SHAPE:
    NAME, _, FORMAT = SHAPE.partition(":")
    SUBJECT = ["--shape", NAME, "--random-weights", "--weights", FORMAT or "bf16"]


def say(line):
    print(line, file=sys.stderr if JSON else sys.stdout)


def bench(*limits):
    with tempfile.NamedTemporaryFile(suffix=".json") as stats:
        report = program("bench", *SUBJECT, "--prefill", 0, "--decode", DECODE, "--depth", DEPTH, "--json",
                         "--stats-json", stats.name, *limits)
        return report, report["results"][0], json.load(open(stats.name, encoding="utf-8"))


def main():
    _, _, stats = bench()
    ways = {
        "unlimited": [],
        "all fit": ["--vram-limit", "400MB"],
        "90 MB": ["--vram-limit", "90MB"],
        "50 MB": ["--vram-limit", "50MB"],
        "the least": ["--vram-limit", stats["least_vram_bytes"]],
    }
    ms = {name: [] for name in ways}
    moved, waits, kept, resident, copies = {}, {}, {}, [], []
    for _ in range(ROUNDS):
        copies.append(program("doctor", "--json")["memory_copy_all_threads_bytes_per_second"])
        for name, limits in ways.items():
            report, result, stats = bench(*limits)
            ms[name].append(result["decode_ms_median"])
            moved[name] = result["host_to_device_bytes_per_token"]
            waits[name] = result["wait_ms_per_token"]
            kept[name] = report["weight_resident_bytes"]
            resident.append((name, stats["peak_resident_bytes"],
                             report["weight_bytes"] + report["device_bytes_peak"] + (64 << 20)))
    free, copy = median(ms["unlimited"]), median(copies)
    say(f"{machine()}, {ROUNDS} rounds; {report['weight_bytes'] / 1e6:.1f} MB of weights; copies {copy / 1e9:.1f} GB/s")
    say(f"{'limit':14} {'ms a token':>24} {'allowed':>9} {'MB moved':>9} {'MB stay':>9} {'ms waited':>10}")
    rows, missed = [], []
    for name in ways:
        value, bound = median(ms[name]), free + 1.2e3 * moved[name] / copy
        rows.append({"limit": name, "ms_median": value, "ms_all": ms[name], "allowed_ms": bound,
                     "moved_bytes_per_token": moved[name], "weight_resident_bytes": kept[name],
                     "wait_ms_per_token": waits[name]})
        say(f"{name:14} {value:9.2f} ({spread(ms[name])})".ljust(40)
            + f"{bound:9.2f} {moved[name] / 1e6:9.1f} {kept[name] / 1e6:9.1f} {waits[name]:10.2f}")
        if moved[name] and value > bound and not SMOKE:
            missed.append(f"{name}: {value:.2f} ms, allowed {bound:.2f}")
    worst = max(resident, key=lambda r: r[1] / r[2])
    say(f"resident memory at most {worst[1] / 1e6:.1f} MB of {worst[2] / 1e6:.1f} MB allowed ({worst[0]})")
    if worst[1] > worst[2]:
        missed.append(f"resident memory: {worst[1]} bytes, allowed {worst[2]} ({worst[0]})")
    report = {"model": SHAPE or os.path.basename(MODEL), "depth": DEPTH, "weight_bytes": report["weight_bytes"],
              "copy_bytes_per_second": copy, "rounds": ROUNDS, "rows": rows,
              "peak_resident": [{"limit": n, "bytes": b, "allowed": a} for n, b, a in resident]}
    if JSON:
        print(json.dumps({"machine": machine(), **report}, indent=2))
        return
    save("weights", report)
    if missed:
        sys.exit("bench: over the bound: " + "; ".join(missed))


if __name__ == "__main__":
    main()
