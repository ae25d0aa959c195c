#!/usr/bin/env python3
"""What was to be reached on one GPU, held against what was measured.

Two parts of data: RUNS, the commands whose JSON is needed, and GOALS, one row each. A run that is not
there leaves its rows "not measured"; nothing is guessed.

Usage: table.py [--in DIR] [--out FILE]     the table from DIR/NAME.json, as Markdown (and to FILE)
       table.py --run PROGRAM [--in DIR] [--only NAME]... [--seconds N]
                                            first makes the runs with that pagedllm, those not there yet
       table.py --list                      their names, time limits and commands
DIR: build/gpu; FILE: nowhere (bench/results/cuda.md is what is committed). Exit status: 0, or 1 if a goal
was measured and missed, or 2 for bad usage.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TEXT = os.path.join(ROOT, "tests", "reference", "smollm2", "perplexity-text.txt")
MODEL = os.environ.get("MODEL") or os.path.join(ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
PYTHON = os.environ.get("TORCH_PYTHON", "python3")


def shape(name, *options, weights="bf16", kv="f16"):
    return ["bench", "--shape", name, "--random-weights", "--weights", weights, "--kv-format", kv, "--device", "cuda",
            "--json", "--prefill", "0", *options]


# ---- runs: a time limit in seconds, and a command of pagedllm -------------------------------------------
RUNS = {
    "llama2": (150, shape("llama-2-7b", "--depth", "512,2048,8192,32768,65536", "--decode", "64",
                         "--host-memory", "0")),
    "llama2_batch": (60, shape("llama-2-7b", "--depth", "512", "--batch", "16", "--decode", "64",
                               "--host-memory", "0")),
    "llama3": (90, shape("llama-3.1-8b", "--depth", "2048,65536", "--decode", "64", "--host-memory", "12GB",
                         "--resume")),
    "llama3_batch": (60, shape("llama-3.1-8b", "--depth", "512", "--batch", "16", "--decode", "64",
                               "--host-memory", "0")),
    "limit24_f16": (150, shape("llama-2-7b", "--vram-limit", "24GB", "--host-memory", "40GB", "--depth", "65536",
                               "--decode", "8")),
    "limit24_int8": (120, shape("llama-2-7b", "--vram-limit", "24GB", "--host-memory", "24GB", "--depth", "65536",
                                "--decode", "8", kv="int8")),
    "limit24_int4": (90, shape("llama-2-7b", "--vram-limit", "24GB", "--host-memory", "16GB", "--depth", "65536",
                               "--decode", "32", kv="int4")),
    "limit24gib_int4": (90, shape("llama-2-7b", "--vram-limit", "24GiB", "--host-memory", "16GB", "--depth", "65536",
                                  "--decode", "32", kv="int4")),
    "kv_in_host": (60, shape("llama-2-7b", "--kv-limit", "512MB", "--host-memory", "8GB", "--depth", "8192",
                             "--decode", "16")),
    "limit16": (60, shape("llama-2-7b", "--vram-limit", "16GB", "--host-memory", "8GB", "--depth", "8192",
                          "--decode", "16")),
    "weights8": (90, shape("llama-2-7b", "--vram-limit", "8GB", "--host-memory", "20GB", "--depth", "2048",
                           "--decode", "8")),
    "llama70": (180, shape("llama-2-70b", "--vram-limit", "24GB", "--host-memory", "60GB", "--depth", "2048",
                           "--decode", "4", weights="q4_0")),
    "layer_major": (120, shape("llama-2-7b", "--vram-limit", "8GB", "--host-memory", "60GB", "--depth", "65536",
                               "--decode", "1")),
    "perplexity": (120, ["perplexity", MODEL, TEXT, "--window", "2048", "--max-tokens", "16384", "--device", "cuda",
                         "--kv-format", "f16", "--json"]),
    "host_weights": (90, [PYTHON, os.path.join(ROOT, "bench", "model", "weights.py"), "--json"]),
    "tensor_fits": (60, ["bench", "tensor", "--device", "cuda", "--json"]),
    "tensor_half": (60, ["bench", "tensor", "--device", "cuda", "--json", "--vram-limit", "500MB"]),
    "pool": (120, ["bench", "pool", "--device", "cuda", "--json"]),
    "suite": (300, ["bench", "--suite", "--device", "cuda", "--kv-format", "f16", "--json", "--output",
                    "bench/results/suite", "--models", "llama-2-7b,llama-3.1-8b,llama-2-70b:q4_0", "--decode", "16",
                    "--seconds", "240", "--point-seconds", "60"]),
    "transformers": (120, [PYTHON, os.path.join(ROOT, "bench", "model", "huggingface.py")]),
}


# ---- reading ------------------------------------------------------------------------------------------
class Missing(Exception):
    pass


class Runs:
    def __init__(self, folder):
        self.folder, self.read = folder, {}

    def __call__(self, name):
        """The JSON of a run; Missing where there is none, or where it holds no JSON."""
        if name not in self.read:
            try:
                with open(os.path.join(self.folder, name + ".json"), encoding="utf-8") as file:
                    self.read[name] = json.load(file)
            except (OSError, ValueError):
                self.read[name] = None
        if self.read[name] is None:
            raise Missing(name)
        return self.read[name]

    def log(self, name, expression):
        """The numbers that the expression finds in the log of a step of scripts/gpu/run.sh."""
        try:
            with open(os.path.join(self.folder, name + ".log"), encoding="utf-8", errors="replace") as file:
                found = re.findall(expression, file.read(), re.MULTILINE)
        except OSError:
            found = []
        if not found:
            raise Missing(name + ".log")
        return [float(number) for number in found]

    def point(self, name, depth, batch=1):
        for result in self(name)["results"]:
            if (result["depth"], result["batch"]) == (depth, batch):
                return result
        raise Missing(name)


# ---- what a row looks at: functions of the runs that give (measured, bound) ------------------------------
def decode(name, depth, batch=1):
    """Tokens a second, and the most that the step's bytes allow."""
    def look(runs):
        r = runs.point(name, depth, batch)
        return r["decode_tokens_per_second"], 1e3 * batch / r["bound_ms"] if "bound_ms" in r else None
    return look


def step_over_bound(name, depth):
    """The median step over its bound: 1 is as fast as the bytes allow."""
    def look(runs):
        r = runs.point(name, depth)
        return r["decode_ms_median"] / r["bound_ms"], 1
    return look


def prefill(name, depth):
    return lambda runs: (runs.point(name, depth)["fill_tokens_per_second"], None)


def first_token_added_ms(name, depth):
    def look(runs):
        return runs.point(name, depth)["fill_ms"] - runs.point("llama2", depth)["fill_ms"], 0
    return look


def first_token_ratio(name, depth):
    def look(runs):
        return runs.point(name, depth)["fill_ms"] / runs.point("llama2", depth)["fill_ms"], 1
    return look


def layer_major(runs):
    """The prefill over the longer of what it moved / the link, and the time without a limit."""
    r, report = runs.point("layer_major", 65536), runs("layer_major")
    moved = max(r["fill_in_bytes"], r["fill_out_bytes"])
    bound = max(1e3 * moved / report["link_bytes_per_second"], runs.point("llama2", 65536)["fill_ms"])
    return r["fill_ms"] / bound, 1


def resumed(runs):
    r, report = runs.point("llama3", 65536), runs("llama3")
    kv = r["read_bytes_per_token"] - report["step_weight_bytes"]
    return r["resume_ms"] / 1e3, kv / report["link_bytes_per_second"]


def device_bytes(name):
    """Most device memory, of the whole card where the driver says it, in GB."""
    return lambda runs: (runs(name).get("device_bytes_seen", runs(name)["device_bytes_peak"]) / 1e9, None)


def perplexity(runs):
    ours = runs("perplexity")["perplexity"]
    path = os.path.join(ROOT, "tests", "reference", "smollm2", "smollm2_perplexity.json")
    with open(path, encoding="utf-8") as file:
        expected = next(e["perplexity"] for e in json.load(file) if e["window"] == 2048)
    return 100 * abs(ours / expected - 1), 0


def host_paged(runs):
    """A token over what it may take, of bench/model/weights.py: alternating rounds, half of the weights."""
    rows = {row["limit"]: row for row in runs("host_weights")["rows"]}
    return rows["50 MB"]["ms_median"] / rows["50 MB"]["allowed_ms"], 1


def suite_steps(*patterns):
    """How many steps of scripts/gpu/run.sh of these kinds did not pass, or were never run."""
    def look(runs):
        suite = runs("cuda_suite")
        of_kind = lambda name: name.split(".")[0] in patterns
        steps = {s["name"]: s["verdict"] for s in suite["steps"] if of_kind(s["name"])}
        if not steps:
            raise Missing("cuda_suite")
        steps.update((name, "never run") for name in suite.get("never_run", []) if of_kind(name))
        return sum(verdict != "ok" for verdict in steps.values()), 0
    return look


def lane(name):
    """A figure of bench_cuda_device."""
    return lambda runs: (runs("cuda_device")[name], None)


def slices(kind):
    """From the log of bench_cuda_rows: slices of 16 KiB, by a kernel of 4 CTAs (after 1 and 2)."""
    return lambda runs: (runs.log("bench.rows", rf"^{kind} +of +16 KiB +[\d.]+ +[\d.]+ +([\d.]+)")[0], None)


def tiny_llama(form):
    """The largest relative error of a logit that the engine's test on the GPU met."""
    return lambda runs: (max(runs.log("test.engine", rf"llama\S*, {form}: relative error ([\d.e+-]+)")), None)


def tensor(name, key):
    return lambda runs: (runs(name)[key], None)


def vmm(key):
    """Of bench_vmm on the GPU."""
    return lambda runs: (runs("cuda_vmm")[key], None)


def mapped_gb_s(runs):
    report = runs("cuda_vmm")
    return report["map_bytes"] / report["kept_run_ms"] / 1e6, None


def pool_logs(runs):
    return {log["name"]: {a["name"]: a for a in log["allocators"]} for log in runs("pool")["logs"]}


def pool_over_async(runs):
    """The worst log's median call over that of the driver's own pool."""
    return max(log["pool"]["p50_ns"] / log["async"]["p50_ns"] for log in pool_logs(runs).values()), None


def pool_reserved(runs):
    """On the transformer logs, whose blocks together pass 1 GiB."""
    return max(pool_logs(runs)[name]["pool"]["reserved_over_requested"] for name in ("prefill", "decode")), None


# ---- goals: (what, unit, look, "least" or "most", goal, gate or None) ------------------------------------
LEAST, MOST = "least", "most"
GOALS = [
    ("Suites of the host device on CUDA: steps that failed or were never run", "", suite_steps("test"), MOST, 0, None),
    ("memcheck, racecheck, synccheck: steps that failed or were never run", "", suite_steps("memcheck", "racecheck", "synccheck"), MOST,
     0, None),
    ("Tiny llama references, f32: relative logit error", "", tiny_llama("f32"), MOST, 1e-4, None),
    ("the same, bf16", "", tiny_llama("bf16"), MOST, 2e-2, None),
    ("SmolLM2 perplexity, off the reference by", "%", perplexity, MOST, 0.5, None),
    ("Llama-2-7B bf16, decode at 2K", "tok/s", decode("llama2", 2048), LEAST, 245, 225),
    ("the same at 64K", "tok/s", decode("llama2", 65536), LEAST, 80, None),
    ("the same, batch 16 at 512", "tok/s", decode("llama2_batch", 512, 16), LEAST, 2600, None),
    ("the same, prefill of 2K", "tok/s", prefill("llama2", 2048), LEAST, 0.9 * 42000, None),
    ("the same, prefill of 8K", "tok/s", prefill("llama2", 8192), LEAST, 0.9 * 40000, None),
    ("the same, prefill of 32K", "tok/s", prefill("llama2", 32768), LEAST, 0.9 * 28000, None),
    ("the same, prefill of 64K", "tok/s", prefill("llama2", 65536), LEAST, 0.9 * 20000, None),
    ("Llama-3.1-8B bf16, decode at 64K", "tok/s", decode("llama3", 65536), LEAST, 141, None),
    ("the same, batch 16 at 512", "tok/s", decode("llama3_batch", 512, 16), LEAST, 2900, None),
    ("Llama-2-7B under 24GB, 64K, KV f16: step / bound", "x", step_over_bound("limit24_f16", 65536), MOST, 1.1, None),
    ("the same, KV f16: decode", "tok/s", decode("limit24_f16", 65536), LEAST, 2, 1.9),
    ("the same, KV int8: step / bound", "x", step_over_bound("limit24_int8", 65536), MOST, 1.1, None),
    ("the same under 24GiB, KV int4", "tok/s", decode("limit24gib_int4", 65536), LEAST, 120, None),
    ("the same under 24GB, KV int4", "tok/s", decode("limit24_int4", 65536), LEAST, 80, None),
    ("All KV of 8K in host memory, f16", "tok/s", decode("kv_in_host", 8192), LEAST, 11, None),
    ("First token at 8K under 16GB, later than unlimited", "ms", first_token_added_ms("limit16", 8192), MOST, 100,
     None),
    ("First token at 64K under 24GB / unlimited", "x", first_token_ratio("limit24_f16", 65536), MOST, 1.05, None),
    ("7B bf16 weights under 8GB, 2K: step / bound", "x", step_over_bound("weights8", 2048), MOST, 1.1, None),
    ("the same: device memory at most", "GB", device_bytes("weights8"), MOST, 8, None),
    ("70B Q4_0 under 24GB, 2K: step / bound", "x", step_over_bound("llama70", 2048), MOST, 1.15, None),
    ("64K prefill of 7B under 8GB, layer-major: time / bound", "x", layer_major, MOST, 1.15, None),
    ("An idle 64K sequence of the 8B shape resumed: first token", "s", resumed, MOST, 0.19, None),
    ("Host device, SmolLM2's weights paged at half: time / allowed", "x", host_paged, MOST, 1, None),
    ("DMA to the device", "GB/s", lane("dma_in_16384_kib_gb_s"), LEAST, 52, None),
    ("DMA from the device", "GB/s", lane("dma_out_16384_kib_gb_s"), LEAST, 52, None),
    ("Gather of 16 KiB slices, 4 CTAs", "GB/s", slices("gather"), LEAST, 49, None),
    ("Scatter of 16 KiB slices, 4 CTAs", "GB/s", slices("scatter"), LEAST, 49, None),
    ("Mapping from kept 16 MiB chunks: 1 GiB, one run", "GB/s", mapped_gb_s, LEAST, 500, None),
    ("Tensor of 250M floats that fits: paging costs", "x", tensor("tensor_fits", "overhead"), MOST, 0.05, None),
    ("the same when half fits: time / bound", "x", tensor("tensor_half", "over_bound"), MOST, 1.1, None),
    ("1 GiB from kept chunks: times as fast as page by page at 2 MiB", "x", vmm("kept_over_page_by_page"), LEAST, 6,
     None),
    ("Growing a region by a chunk, mapped ahead: p99", "us", vmm("growth_ahead_p99_us"), MOST, 50, None),
    ("Caching allocator, worst log: median call / cudaMallocAsync's", "x", pool_over_async, MOST, 1, None),
    ("the same, transformer logs: reserved / asked for", "x", pool_reserved, MOST, 1.1, None),
]


# ---- the table ----------------------------------------------------------------------------------------
def number(value):
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def judge(runs, goal):
    """(row of cells, True: reached, False: missed, None: not measured)"""
    what, unit, look, way, target, gate = goal
    wanted = f"at {way} {number(target)}" + (f" (gate {number(gate)})" if gate is not None else "")
    try:
        value, bound = look(runs)
    except (Missing, KeyError) as error:
        return [what, "", unit, wanted, "", "", f"not measured ({str(error.args[0])})"], None

    def reaches(line):
        return value >= line if way == LEAST else value <= line
    verdict = "pass" if reaches(target) else "gate only" if gate is not None and reaches(gate) else "MISSED"
    # A bound of 0 or 1 is what the measure itself is relative to.
    share = f"{100 * value / bound:.0f}%" if bound and bound != 1 and way == LEAST else ""
    return [what, number(value), unit, wanted, number(bound) if bound else "", share, verdict], verdict != "MISSED"


def rivals(runs):
    """What transformers do on the same machine, if they were run."""
    try:
        report = runs("transformers")
    except Missing:
        return []
    lines = ["", f"transformers {report['transformers']} (torch {report['torch']}), {report['shape']}, bf16, on the "
             "same machine:", "", "| what | attention | batch | context | tok/s |", "|---|---|--:|--:|--:|"]
    for row in report["rows"]:
        speed = number(row["tokens_per_second"]) if "tokens_per_second" in row else row["left_out"]
        lines.append(f"| {row['kind']} | {row['attention']} | {row['batch']} | {row['context']} | {speed} |")
    return lines


def machine(runs):
    for name in RUNS:
        try:
            report = runs(name)
            return (f"{report['device_name']}: memory is read at {report['device_read_bytes_per_second'] / 1e9:,.0f} "
                    f"GB/s, the link carries {report['link_bytes_per_second'] / 1e9:.1f} GB/s, measured in the run.")
        except (Missing, KeyError):
            continue
    return "No run was found."


def table(runs):
    rows, missed, counts = [], 0, {True: 0, False: 0, None: 0}
    for goal in GOALS:
        cells, reached = judge(runs, goal)
        counts[reached] += 1
        missed += reached is False
        rows.append("| " + " | ".join(cells) + " |")
    lines = ["# Goals on one GPU", "", machine(runs), f"{counts[True]} reached, {counts[False]} missed, {counts[None]} "
             "not measured. Bounds come from the bytes that a step reads or must move.", "",
             "| what | measured | | goal | bound | of bound | |", "|---|--:|---|---|--:|--:|---|", *rows, *rivals(runs),
             "", "Commands (`bench/gpu/table.py --run PROGRAM` makes them all):", ""]
    lines += [f"    {name:16} {command_text(name)}" for name in RUNS]
    return "\n".join(lines) + "\n", missed


# ---- making the runs ------------------------------------------------------------------------------------
def command_text(name):
    words = [os.path.relpath(w, ROOT) if w.startswith(ROOT) else os.path.basename(w) if w.startswith("/") else w
             for w in RUNS[name][1]]
    return " ".join(words if name == "transformers" else ["pagedllm", *words])


def make(name, program, folder):
    limit, command = RUNS[name]
    words = command if name == "transformers" else [program, *command]
    begun = time.monotonic()
    try:
        result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit)
        status = "ok" if result.returncode == 0 else f"failed {result.returncode}"
        output, errors = result.stdout, result.stderr
    except subprocess.TimeoutExpired as error:
        status, output, errors = f"longer than {limit} s", b"", error.stderr or b""
    except OSError as error:
        status, output, errors = "did not start", b"", str(error).encode()
    with open(os.path.join(folder, name + ".log"), "wb") as file:
        file.write(errors)
    if status == "ok":
        with open(os.path.join(folder, name + ".json"), "wb") as file:
            file.write(output)
    words = "" if status == "ok" else (errors.decode("utf-8", "replace").strip().splitlines() or [""])[-1][:140]
    print(f"{name:16} {time.monotonic() - begun:6.1f} s  {status} {words}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="folder", default=os.path.join(ROOT, "build", "gpu"))
    parser.add_argument("--out")
    parser.add_argument("--run", metavar="PROGRAM")
    parser.add_argument("--only", action="append", choices=RUNS)
    parser.add_argument("--seconds", type=float, default=1e9, help="no run begins after this long")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        for name, (limit, _) in RUNS.items():
            print(f"{name:16} {limit:4} s  {command_text(name)}")
        return 0
    if options.run:
        os.makedirs(options.folder, exist_ok=True)
        begun = time.monotonic()
        for name in options.only or RUNS:
            there = os.path.exists(os.path.join(options.folder, name + ".json")) and not options.only
            if not there and time.monotonic() - begun < options.seconds:
                make(name, options.run, options.folder)
    text, missed = table(Runs(options.folder))
    sys.stdout.write(text)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
