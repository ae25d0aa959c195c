#!/usr/bin/env python3
"""The demo: a real model answers a question about a story twice, first with all the memory it
wants, then with a tenth of the KV cache memory that took; and the two are compared to the bit.

Usage: demo.py [MODEL]
PAGEDLLM_PROGRAM names another program than build/release/pagedllm. Nothing outlives it but
build/demo/, where the answers and statistics stay for reading.
"""
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("PAGEDLLM_PROGRAM", os.path.join(ROOT, "build", "release", "pagedllm"))
STORY = os.path.join(ROOT, "scripts", "demo.txt")
WORK = os.path.join(ROOT, "build", "demo")
ANSWER_TOKENS = 48
LOGIT_TOKENS = 512  # of the story; a row of logits is 49,152 numbers, so each file is 100 MB

# The statistics that the demo reads, by the names `--stats-json` gives them.
STATS = {
    "kv": "kv_bytes_peak",
    "frames": "frames_peak",
    "frame_bytes": "frame_bytes",
    "evictions": "evictions",
    "host_in": "host_to_device_bytes",
    "host_out": "device_to_host_bytes",
    "disk_in": "disk_to_device_bytes",
    "disk_out": "device_to_disk_bytes",
    "wait_ns": "wait_ns",
    "prompt": "prompt_tokens",
    "generated": "generated_tokens",
    "prefill_ns": "prefill_ns",
    "decode_ns": "decode_ns",
}


def fail(sentence):
    sys.stdout.flush()
    print(f"demo: {sentence}", file=sys.stderr)
    sys.exit(1)


def program(*arguments, output=None):
    command = [PROGRAM, *arguments]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if result.returncode != 0:
        fail(f"`{shlex.join(command)}` exited with {result.returncode}; its message is above".replace("\n", "\\n"))
    if output:
        with open(output, "wb") as file:
            file.write(result.stdout)
    return result.stdout


def answer(model, name, *limits):
    """Runs the model over the story. Returns the bytes it printed and its statistics."""
    path = os.path.join(WORK, f"{name}.json")
    text = program("run", model, "--prompt-file", os.path.join(WORK, "story.txt"), "--max-tokens", str(ANSWER_TOKENS),
                   "--temperature", "0", "--stop", "\n", "--stats-json", path, *limits,
                   output=os.path.join(WORK, f"{name}.txt"))
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    try:
        stats = {key: content[field] for key, field in STATS.items()}
    except KeyError as missing:
        fail(f"{path} has no field {missing}")
    return text, stats


def logits(model, name, ids, *limits):
    """The SHA-256 of the logits of every position, and how many bytes that is."""
    path = os.path.join(WORK, f"{name}.npy")
    program("logits", model, "--ids", ids, "--output", path, *limits)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    size = os.path.getsize(path)
    os.remove(path)
    return digest.hexdigest(), size


def size(count):
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,} B"


def rate(tokens, nanoseconds):
    return f"{tokens / (nanoseconds / 1e9):,.0f} tokens/s" if nanoseconds else "-"


def limits_for(kv_bytes):
    """A tenth of kv_bytes on the device, three tenths in host memory, so that the rest is on disk."""
    return ["--kv-limit", str(kv_bytes // 10), "--host-memory", str(kv_bytes * 3 // 10),
            "--nvme-path", WORK, "--nvme-size", str(kv_bytes * 2)]


def quote(text):
    print("    ..." + text.decode("utf-8", "replace").rstrip("\n").replace("\n", "\n    ") + "\n")


def table(free, tight):
    rows = [("KV cache, all of it", size(free["kv"]), size(tight["kv"]))]
    resident = [size(stats["frames"] * stats["frame_bytes"]) for stats in (free, tight)]
    rows.append(("of that on the device at once", *resident))
    rows.append(("blocks evicted", f"{free['evictions']:,}", f"{tight['evictions']:,}"))
    for label, key in (("host memory -> device", "host_in"), ("disk -> device", "disk_in"),
                       ("device -> host memory", "host_out"), ("device -> disk", "disk_out")):
        rows.append((label, size(free[key]), size(tight[key])))
    rows.append(("time the model waited for blocks", f"{free['wait_ns'] / 1e9:.2f} s",
                 f"{tight['wait_ns'] / 1e9:.2f} s"))
    rows.append(("reading the story", rate(free["prompt"], free["prefill_ns"]),
                 rate(tight["prompt"], tight["prefill_ns"])))
    rows.append(("writing the answer", rate(free["generated"], free["decode_ns"]),
                 rate(tight["generated"], tight["decode_ns"])))
    print(f"    {'':34}{'unlimited':>16}{'a tenth':>16}")
    for label, left, right in rows:
        print(f"    {label:34}{left:>16}{right:>16}")
    print()


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MODEL") or os.path.join(
        ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if not os.access(PROGRAM, os.X_OK):
        fail(f"{PROGRAM} is not there; make build puts it there")
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    # Without the newline that ends the file: the answer is to go on in the middle of a sentence.
    with open(STORY, encoding="utf-8") as file:
        story = file.read().rstrip()
    with open(os.path.join(WORK, "story.txt"), "w", encoding="utf-8") as file:
        file.write(story)
    name = os.path.basename(model)

    print(f"1. {name} reads a story and finishes its last sentence, with unlimited memory:\n"
          f"   \"{story.splitlines()[-1]} ...\"\n")
    sys.stdout.flush()
    free_text, free = answer(model, "unlimited")
    quote(free_text)

    limits = limits_for(free["kv"])
    print(f"2. The same with {size(free['kv'] // 10)} of device memory for its KV cache, a tenth of "
          f"what it used, and\n   {size(free['kv'] * 3 // 10)} of host memory; the rest goes to a "
          f"file on disk.\n")
    sys.stdout.flush()
    tight_text, tight = answer(model, "tenth", *limits)
    quote(tight_text)
    table(free, tight)

    print("3. Are they the same? The logits too, all of them, not only the words they led to.\n")
    sys.stdout.flush()
    ids = json.loads(program("tokenize", model, "--text", story, "--json"))
    ids = (ids["ids"] if isinstance(ids, dict) else ids)[:LOGIT_TOKENS]
    ids_path = os.path.join(WORK, "ids.json")
    with open(ids_path, "w", encoding="utf-8") as file:
        json.dump(ids, file)
    share = free["kv"] * len(ids) // (free["prompt"] + free["generated"])
    free_logits, logit_bytes = logits(model, "logits", ids_path)
    tight_logits, _ = logits(model, "logits", ids_path, *limits_for(share))

    print(f"    answers   {'identical' if free_text == tight_text else 'DIFFERENT'}, "
          f"{len(free_text)} bytes")
    print(f"    logits    {'identical' if free_logits == tight_logits else 'DIFFERENT'}, "
          f"{len(ids)} positions, {size(logit_bytes)}, SHA-256 {free_logits[:16]}...\n")

    # A starved run that moved too little proves nothing: each generated token reads every block,
    # so at least what was not resident came in for each.
    prompt_kv = free["kv"] * free["prompt"] // (free["prompt"] + free["generated"])
    absent = prompt_kv - tight["frames"] * tight["frame_bytes"]
    owed = absent * max(tight["generated"] - 1, 1)
    moved = tight["host_in"] + tight["disk_in"]
    if not free_text.strip() or free["generated"] < 2:
        fail("the model said nothing, so there is nothing to compare")
    if free_text != tight_text or free_logits != tight_logits:
        fail("placement changed a result: this is a bug; build/demo holds both answers")
    if tight["frames"] * tight["frame_bytes"] > free["kv"] // 10:
        fail("the starved run held more blocks on the device than its limit")
    if tight["evictions"] == 0 or moved < owed or tight["disk_in"] == 0:
        fail(f"the starved run moved {size(moved)}, less than the {size(owed)} that were not there")

    print(f"   What you saw: the model's memory of the story did not fit, so its blocks moved between\n"
          f"   the device, host memory and disk ({tight['evictions']:,} evictions, {size(moved)} brought "
          f"back), and not one bit\n   of the result changed. It wrote {rate(tight['generated'], tight['decode_ns'])} "
          f"instead of {rate(free['generated'], free['decode_ns'])}. The device here\n   is the host device: an arena of its own in "
          f"ordinary memory, so that all of this runs without a GPU.\n\n   Talk to it: "
          f"{os.path.relpath(PROGRAM)} chat {os.path.relpath(model)}")


if __name__ == "__main__":
    main()
