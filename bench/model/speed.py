#!/usr/bin/env python3
"""Question: how fast are prefill and decode at depths 0, 2048 and 7680, and against llama.cpp?
Baseline: llama.cpp's llama-bench on the same model, threads and f16 KV, if LLAMA_BENCH names it;
the two run in turn, and medians are compared. Bound of decode: the bytes a token reads (weights and
KV) over the memory's read bandwidth, measured in the same run.

Usage: speed.py [--smoke]     LLAMA_BENCH=path/to/llama-bench   ROUNDS=5
"""
import json
import os
import subprocess
import sys

from common import MODEL, SMOKE, machine, median, program, save, spread

LLAMA = os.environ.get("LLAMA_BENCH")
ROUNDS = 1 if SMOKE else int(os.environ.get("ROUNDS", "5"))
DEPTHS = [0, 64] if SMOKE else [0, 2048, 7680]
PREFILL, DECODE = (64, 8) if SMOKE else (512, 64)
GATES = {0: (1.0, 1.5), 2048: (1.3, 2.0), 7680: (2.0, 3.0)}  # decode: gate, goal


def ours(threads):
    report = program("bench", MODEL, "--threads", threads, "--prefill", PREFILL, "--decode", DECODE, "--depth",
                     ",".join(map(str, DEPTHS)), "--json")
    # The context holds 8,192 tokens; llama.cpp takes its 512 from 7,680 on too.
    return {r["depth"]: r for r in report["results"]}


def theirs(threads):
    result = subprocess.run([LLAMA, "-m", MODEL, "-t", str(threads), "-p", str(PREFILL), "-n", str(DECODE), "-d",
                             ",".join(map(str, DEPTHS)), "-r", "1", "-fa", "1", "-o", "json"],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return {(t["n_depth"], "prefill" if t["n_prompt"] else "decode"): t["avg_ts"] for t in json.loads(result.stdout)}


def main():
    threads = min(2, os.cpu_count())
    samples = {(d, k, who): [] for d in DEPTHS for k in ("prefill", "decode") for who in ("ours", "llama.cpp")}
    reads, read_bytes = [], {}
    for _ in range(ROUNDS):
        reads.append(program("doctor", "--json")["memory_read_bytes_per_second"])
        for depth, r in ours(threads).items():
            samples[depth, "prefill", "ours"].append(r["prefill_tokens_per_second"])
            samples[depth, "decode", "ours"].append(r["decode_tokens_per_second"])
            read_bytes[depth] = r["read_bytes_per_token"]
        if LLAMA:
            for (depth, kind), rate in theirs(threads).items():
                samples[depth, kind, "llama.cpp"].append(rate)
    rows, missed = [], []
    print(f"{machine()}, {threads} threads, {ROUNDS} rounds, medians (spread)")
    print(f"{'':8} {'depth':>6} {'ours tok/s':>24} {'llama.cpp tok/s':>24} {'ratio':>6} {'of the bound':>13}")
    for kind in ("decode", "prefill"):
        for depth in DEPTHS:
            mine, other = samples[depth, kind, "ours"], samples[depth, kind, "llama.cpp"]
            row = {"kind": kind, "depth": depth, "ours": median(mine), "ours_all": mine}
            bound = median(reads) / read_bytes[depth] if kind == "decode" else None
            if bound:
                row.update(bound=bound, of_bound=row["ours"] / bound)
            if other:
                row.update(llama_cpp=median(other), llama_cpp_all=other, ratio=median(mine) / median(other))
                gate, goal = GATES.get(depth, (1, 1)) if kind == "decode" else (1.0, 2.0)
                row.update(gate=gate, goal=goal)
                if not SMOKE and row["ratio"] < gate:
                    missed.append(f"{kind} at {depth}: {row['ratio']:.2f}x, gate {gate}x")
            rows.append(row)
            print(f"{kind:8} {depth:6} {row['ours']:10.1f} ({spread(mine)})".ljust(42)
                  + (f"{row['llama_cpp']:10.1f} ({spread(other)})".ljust(25) if other else " " * 25)
                  + (f"{row['ratio']:6.2f}x" if other else " " * 7)
                  + (f"{100 * row['of_bound']:11.0f} %" if bound else ""))
    save("speed", {"model": os.path.basename(MODEL), "threads": threads, "rounds": ROUNDS,
                   "read_bytes_per_second": median(reads), "rows": rows})
    if missed:
        sys.exit("bench: below the gate: " + "; ".join(missed))


if __name__ == "__main__":
    main()
