#!/usr/bin/env python3
"""Question: how fast are Hugging Face transformers on the same shape and the same GPU?
The model is made from a configuration, on the device, with random weights in bf16; nothing is
downloaded. A context is random keys and values put into the cache, not a real prefill. Decode feeds
back its own argmax, one token of every sequence a step, with the cache that generate() uses; steps are
timed one by one, and medians kept. What does not fit is left out and said so.

Usage: huggingface.py [--shape NAME] [--contexts 2048,8192] [--batches 1,16] [--attention eager,sdpa]
                      [--prefill 2048] [--offloaded 8192] [--decode 16] [--layers N] [--device cuda]
Prints JSON; progress goes to standard error. Under a minute for the default, on one H200.
(Not called transformers.py: Python would take it for the library that it imports.)
"""
import argparse
import json
import statistics
import sys
import time

import torch
import transformers

# As src/model/shapes.c has them: layers, width, heads, KV heads, ffn, vocabulary, rope base.
SHAPES = {
    "llama-2-7b": (32, 4096, 32, 32, 11008, 32000, 1e4),
    "llama-3.1-8b": (32, 4096, 32, 8, 14336, 128256, 5e5),
    "llama-2-70b": (80, 8192, 64, 8, 28672, 32000, 1e4),
    "tinyllama-1.1b": (22, 2048, 32, 4, 5632, 32000, 1e4),
    "smollm2-135m": (30, 576, 9, 3, 1536, 49152, 1e5),
}
WARM, PREFILL_RUNS = 3, 3


def numbers(text):
    return [int(word) for word in text.split(",") if word and int(word)]


def say(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    def __init__(self, options):
        self.options = options
        layers, width, heads, kv_heads, ffn, vocabulary, base = SHAPES[options.shape]
        layers = options.layers or layers
        self.device = torch.device(options.device)
        self.kv = (kv_heads, width // heads)
        self.config = transformers.LlamaConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv_heads,
            intermediate_size=ffn, vocab_size=vocabulary, max_position_embeddings=131072, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": base}, tie_word_embeddings=False)
        begun = time.perf_counter()
        with self.device:
            self.model = transformers.AutoModelForCausalLM.from_config(self.config, dtype=torch.bfloat16,
                                                                       attn_implementation="sdpa").eval()
        self.synchronize()
        count = sum(p.numel() for p in self.model.parameters())
        say(f"{options.shape}: {count / 1e9:.2f}G parameters made in {time.perf_counter() - begun:.1f} s")
        self.rows = []

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work):
        """(milliseconds, what work returned)"""
        self.synchronize()
        begun = time.perf_counter()
        result = work()
        self.synchronize()
        return 1e3 * (time.perf_counter() - begun), result

    def ids(self, batch, count):
        return torch.randint(0, self.config.vocab_size, (batch, count), device=self.device)

    def filled_cache(self, batch, context, offloaded):
        cache = transformers.DynamicCache(config=self.config, **({"offloading": True} if offloaded else {}))
        heads, width = self.kv
        for layer in range(self.config.num_hidden_layers):
            keys, values = (torch.randn(batch, heads, context, width, device=self.device, dtype=torch.bfloat16)
                            for _ in range(2))
            cache.update(keys, values, layer)
        return cache

    def decode(self, attention, batch, context, offloaded=False):
        self.model.set_attn_implementation(attention)
        cache = self.filled_cache(batch, context, offloaded)
        ids, ms = self.ids(batch, 1), []
        for _ in range(WARM + self.options.decode):
            took, output = self.timed(lambda: self.model(input_ids=ids, past_key_values=cache, use_cache=True))
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            ms.append(took)
        median = statistics.median(ms[WARM:])
        return {"tokens_per_second": 1e3 * batch / median, "ms_median": median, "ms_best": min(ms[WARM:])}

    def prefill(self, attention, context):
        self.model.set_attn_implementation(attention)
        ids = self.ids(1, context)
        ms = [self.timed(lambda: self.model(input_ids=ids, use_cache=True, logits_to_keep=1))[0]
              for _ in range(1 + PREFILL_RUNS)][1:]
        median = statistics.median(ms)
        return {"tokens_per_second": 1e3 * context / median, "ms_median": median, "ms_best": min(ms)}

    def measure(self, kind, attention, batch, context, work):
        row = {"kind": kind, "attention": attention, "batch": batch, "context": context}
        try:
            with torch.inference_mode():
                row.update(work())
            say(f"{kind:10} {attention:5} batch {batch:2} context {context:6}: {row['tokens_per_second']:9.1f} tok/s")
        except torch.OutOfMemoryError:
            row["left_out"] = "it does not fit in the device's memory"
            say(f"{kind:10} {attention:5} batch {batch:2} context {context:6}: does not fit")
        self.rows.append(row)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self):
        options = self.options
        for attention in options.attention.split(","):
            for context in numbers(options.contexts):
                for batch in numbers(options.batches):
                    self.measure("decode", attention, batch, context,
                                 lambda: self.decode(attention, batch, context))
            for context in numbers(options.prefill):
                self.measure("prefill", attention, 1, context, lambda: self.prefill(attention, context))
        for context in numbers(options.offloaded):
            if self.device.type == "cuda": # its copies run on CUDA streams
                self.measure("offloaded", "sdpa", 1, context, lambda: self.decode("sdpa", 1, context, True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-2-7b", choices=SHAPES)
    parser.add_argument("--contexts", default="2048,8192")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--attention", default="eager,sdpa")
    parser.add_argument("--prefill", default="2048")
    parser.add_argument("--offloaded", default="8192")
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--layers", type=int, default=0, help="fewer, to try this script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    begun = time.perf_counter()
    bench = Bench(options)
    bench.run()
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    print(json.dumps({"what": "transformers", "torch": torch.__version__, "transformers": transformers.__version__,
                      "device_name": device, "shape": options.shape, "layers": bench.config.num_hidden_layers,
                      "weights": "bf16", "seconds": time.perf_counter() - begun, "rows": bench.rows}, indent=1))


if __name__ == "__main__":
    main()
