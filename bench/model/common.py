"""What the model benchmarks share: running the program, medians, and writing results."""
import json
import os
import platform
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.environ.get("PAGEDLLM_PROGRAM", os.path.join(ROOT, "build", "release", "pagedllm"))
MODEL = os.environ.get("MODEL") or os.path.join(ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
RESULTS = os.path.join(ROOT, "bench", "results")
SMOKE = "--smoke" in sys.argv


def program(*arguments):
    """The JSON that the program prints."""
    result = subprocess.run([PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if result.returncode != 0:
        sys.exit(f"bench: pagedllm {' '.join(map(str, arguments))} exited with {result.returncode}")
    return json.loads(result.stdout)


def median(values):
    return statistics.median(values)


def spread(values):
    return f"{min(values):.1f}..{max(values):.1f}"


def machine():
    """The processor, in words; no names of hosts."""
    model = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"


def save(name, content):
    if SMOKE:
        return
    os.makedirs(RESULTS, exist_ok=True)
    with open(os.path.join(RESULTS, f"{name}.json"), "w", encoding="utf-8") as file:
        json.dump({"machine": machine(), **content}, file, indent=2)
        file.write("\n")
