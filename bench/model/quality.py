#!/usr/bin/env python3
"""Question: does the engine predict real text as well as the reference, and what do KV formats cost?
Baseline: transformers in f32 on the same dequantised weights (tests/reference/smollm2). 16,384 tokens
in windows of 2,048. Limits: f16 within 0.5% of the reference, int8 within 0.5% of f16, int4 within 5%.

Usage: quality.py [--smoke]
"""
import json
import os
import sys

from common import MODEL, ROOT, SMOKE, machine, program, save

REFERENCE = os.path.join(ROOT, "tests", "reference", "smollm2")
TOKENS, WINDOW = (256, 128) if SMOKE else (16384, 2048)


def main():
    with open(os.path.join(REFERENCE, "smollm2_perplexity.json"), encoding="utf-8") as file:
        expected = next(e["perplexity"] for e in json.load(file) if e["window"] == 2048)
    text = os.path.join(REFERENCE, "perplexity-text.txt")
    rows, missed = [], []
    print(f"{machine()}; {TOKENS} tokens in windows of {WINDOW}; reference {expected:.4f}")
    for kv, compute in (("f16", "auto"), ("f32", "f32"), ("int8", "auto"), ("int4", "auto")):
        value = program("perplexity", MODEL, text, "--window", WINDOW, "--max-tokens", TOKENS, "--kv-format", kv,
                        "--compute", compute, "--json")["perplexity"]
        base = expected if kv in ("f16", "f32") else rows[0]["perplexity"]
        change, limit = value / base - 1, 0.05 if kv == "int4" else 0.005
        rows.append({"kv_format": kv, "compute": compute, "perplexity": value, "change": change, "limit": limit})
        print(f"KV {kv:5} compute {compute:5} {value:9.4f}  {100 * change:+.3f} % of "
              f"{'the reference' if base == expected else 'f16'} (limit {100 * limit:g} %)")
        if not SMOKE and abs(change) > limit:
            missed.append(f"KV {kv}: {100 * change:+.2f} %")
    save("quality", {"model": os.path.basename(MODEL), "tokens": TOKENS, "window": WINDOW, "reference": expected,
                     "rows": rows})
    if missed:
        sys.exit("bench: outside its limit: " + "; ".join(missed))


if __name__ == "__main__":
    main()
