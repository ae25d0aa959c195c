/* options_table.c - every command and option there is, with default, bounds and help. Nothing else
 * may name an option: flags, variables, config keys, help and suggestions are made from this. */
#include <stddef.h>
#include "base/options.h"

enum { RUN, CHAT, BENCH, LOGITS, PERPLEXITY, TOKENIZE, DETOKENIZE, DOCTOR, TRACE };

const pllm_command pllm_commands[] = {
    [RUN] = {"run", "MODEL", 1, 1, "completes a prompt; prints only the generated text"},
    [CHAT] = {"chat", "MODEL", 1, 1, "talks with a model in the terminal"},
    [BENCH] =
        {"bench", "[MODEL|tensor|pool]", 0, 1,
         "measures prefill and decode speed by depth; tensor: what paging costs; pool: allocating"},
    [LOGITS] = {"logits", "MODEL", 1, 1, "writes the logits of every position of given ids"},
    [PERPLEXITY] = {"perplexity", "MODEL FILE", 2, 2, "scores a text file"},
    [TOKENIZE] = {"tokenize", "MODEL", 1, 1, "turns text into token ids"},
    [DETOKENIZE] = {"detokenize", "MODEL", 1, 1, "turns token ids into text"},
    [TRACE] = {"trace", "FILE", 1, 1,
               "replays recorded accesses: each policy's hits, and the most there could be"},
    [DOCTOR] = {"doctor", "[MODEL]", 0, 1, "shows devices, tiers, limits and what is missing"},
};
const uint32_t pllm_command_count = sizeof pllm_commands / sizeof pllm_commands[0];

#define ON(command) (1u << (command))
#define ALL UINT32_MAX
#define GENERATE (ON(RUN) | ON(CHAT))
#define AT(field) offsetof(pllm_settings, field)

#define SIZE(name, alias, commands, default_text, min, max, help)                                \
    {                                                                                            \
#name, alias, PLLM_OPTION_SIZE, commands, AT(name), "SIZE", default_text, min, max, help \
    }
#define UINT(name, commands, default_text, min, max, help)                                   \
    {                                                                                        \
#name, NULL, PLLM_OPTION_UINT, commands, AT(name), "N", default_text, min, max, help \
    }
#define FLOAT(name, commands, default_text, min, max, help)                                   \
    {                                                                                         \
#name, NULL, PLLM_OPTION_FLOAT, commands, AT(name), "X", default_text, min, max, help \
    }
#define STRING(name, commands, argument, default_text, help)                                    \
    {                                                                                           \
#name, NULL, PLLM_OPTION_STRING, commands, AT(name), argument, default_text, 0, 0, help \
    }
#define ENUM(name, commands, values, default_text, help)                                    \
    {                                                                                       \
#name, NULL, PLLM_OPTION_ENUM, commands, AT(name), values, default_text, 0, 0, help \
    }
#define BOOL(name, commands, help)                                                \
    {                                                                             \
#name, NULL, PLLM_OPTION_BOOL, commands, AT(name), NULL, NULL, 0, 0, help \
    }
#define STRINGS(name, commands, argument, help)                                          \
    {                                                                                    \
#name, NULL, PLLM_OPTION_STRINGS, commands, AT(name), argument, NULL, 0, 0, help \
    }
#define UINTS(name, alias, commands, default_text, min, max, help)                              \
    {                                                                                           \
#name, alias, PLLM_OPTION_UINTS, commands, AT(name), "N,N,...", default_text, min, max, \
            help                                                                                \
    }

#define KIB 1024.0
#define GIB (1024.0 * 1024 * 1024)
#define UINT32 4294967295.0

/* clang-format off: a table reads better with one row a line, however long */
const pllm_option pllm_options[] = {
    STRING(prompt, ON(RUN), "TEXT", NULL,
           "what to complete; text that spells a special token is that token"),
    STRING(prompt_file, ON(RUN), "FILE", NULL, "a file with what to complete; - is standard input"),
    STRING(system, ON(CHAT), "TEXT", NULL, "the system message, in place of the template's own"),
    UINT(max_tokens, GENERATE | ON(PERPLEXITY), "256", 0, UINT32,
         "tokens to generate at most; for perplexity: to score at most, all if not given"),
    FLOAT(temperature, GENERATE, "0", 0, 100,
          "0 takes the likeliest token; above, samples, wilder as it grows"),
    UINT(top_k, GENERATE, "0", 0, UINT32, "samples among the K likeliest tokens; 0: all"),
    FLOAT(top_p, GENERATE, "1", 0, 1,
          "samples among the likeliest tokens that together reach this probability"),
    STRINGS(stop, GENERATE, "TEXT", "stops before this text; may be given several times"),
    UINT(seed, GENERATE | ON(BENCH), "1", 0, 0,
         "of sampling: the same seed gives the same text; bench: of the ids fed"),
    STRING(text, ON(TOKENIZE), "TEXT", NULL,
           "what to tokenize; standard input if not given; special tokens are recognised"),
    STRING(ids, ON(LOGITS) | ON(DETOKENIZE), "FILE", NULL,
           "token ids: a JSON array, or .npy; - is standard input"),
    STRING(output, ON(LOGITS) | ON(BENCH), "PATH", NULL,
           "logits: the .npy file to write, f32 [positions][vocabulary]; bench: the suite's "
           "folder, or "
           "one for the logs of pool"),
    BOOL(special, ON(TOKENIZE) | ON(DETOKENIZE),
         "tokenize: adds the token a prompt begins with; detokenize: shows special tokens"),
    UINT(window, ON(PERPLEXITY), "2048", 2, UINT32,
         "tokens a stretch, each scored by those before it in the stretch"),
    UINT(prefill, ON(BENCH), "512", 0, UINT32, "prompt tokens to time; 0: none"),
    UINT(decode, ON(BENCH), "128", 0, UINT32, "generated tokens to time; 0: none"),
    STRING(record, ON(RUN) | ON(BENCH) | ON(PERPLEXITY), "FILE", NULL,
           "writes which KV blocks were read, in order, for pagedllm trace"),
    UINTS(frames, NULL, ON(TRACE), "64,256,1024", 1, UINT32,
          "numbers of block frames to replay with"),
    UINTS(depth, "contexts", ON(BENCH), "0", 0, UINT32,
          "tokens in the context before timing begins; --suite: 2048,8192,32768,131072"),
    UINTS(batch, "batches", ON(BENCH), "1", 1, 1024,
          "sequences that decode together; --suite: 1,4,8,16"),
    STRING(shape, ON(BENCH), "NAME", NULL,
           "in place of MODEL: a published shape, such as llama-2-7b, with --random-weights"),
    BOOL(random_weights, ON(BENCH), "makes the weights of --shape, for which there is no file"),
    ENUM(weights, ON(BENCH), "bf16|f32|f16|q8_0|q4_0|q4_1", "bf16", "format of random weights"),
    BOOL(resume, ON(BENCH), "then evicts every KV block and times the next token"),
    BOOL(suite, ON(BENCH), "measures shapes by contexts by batches; writes tables and plots"),
    STRING(models, ON(BENCH), "NAME,NAME,...", "llama-2-7b,llama-2-70b",
           "shapes of --suite; NAME:FORMAT for other weights than --weights"),
    FLOAT(seconds, ON(BENCH), "0", 0, 10000000,
          "of --suite in all: points that would take longer are skipped; 0: no bound"),
    FLOAT(point_seconds, ON(BENCH), "0", 0, 10000000,
          "of a point of --suite: one that would take longer is skipped; 0: no bound"),
    BOOL(keep, ON(BENCH),
         "--suite: keeps the points that the folder's suite.json has, measures the others"),
    SIZE(bytes, NULL, ON(BENCH), "1GB", 64 * KIB, 0,
         "of the tensor that bench tensor fills and sums"),
    STRING(log, ON(BENCH), "FILE", "all",
           "of bench pool: a recorded log, or one of those that it makes by name; all of them"),
    BOOL(json, ON(BENCH) | ON(PERPLEXITY) | ON(TOKENIZE) | ON(DOCTOR) | ON(TRACE), "prints JSON"),

    STRING(device, ALL, "NAME", "host",
           "where to compute: host, cuda, cuda:1 for the second GPU, or cuda:GPU-... by its UUID"),
    UINT(threads, ALL, "0", 0, 1024,
         "processor threads; 0: as many as this process may use; a GPU's passes need one"),
    SIZE(vram_limit, "vram_size", ALL, "unlimited", 0, 0,
         "all device memory together, weights too; on a GPU also its context, code and libraries, "
         "as the driver counts them; bench tensor: of the tensor's pages"),
    SIZE(kv_limit, NULL, ALL, "unlimited", 0, 0, "device memory for the blocks of the KV cache"),
    SIZE(host_memory, NULL, ALL, "unlimited", 0, 0,
         "host memory for blocks that left the device; on a GPU it is pinned, and all of it when "
         "opening if a size is given; streamed weights lie beside it"),
    STRING(nvme_path, ALL, "DIR", NULL,
           "folder of the spill file; ~/.cache/pagedllm if only --nvme-size is given"),
    SIZE(nvme_size, NULL, ALL, "0", 0, 0,
         "size of the spill file; 0: none, but with --nvme-path what the context needs"),
    SIZE(page_size, NULL, ALL, "2MiB", 64 * KIB, GIB,
         "bytes of a page of bench tensor, 4MiB if it is larger than --vram-limit; refused "
         "elsewhere: KV pages are blocks of 32 tokens, "
         "weights move by layers"),
    ENUM(policy, ALL, "static|lru|2q", "static",
         "which pages stay: a fixed share, the latest used, or the often used; on a GPU: among "
         "those "
         "that no running sequence holds"),
    ENUM(prefetch_strategy, ALL, "sequential|none", "sequential",
         "which pages are fetched ahead of their use; on a GPU a pass plans that itself"),
    ENUM(kv_format, ALL, "auto|f32|f16|bf16|int8|int4", "auto",
         "of the KV cache; auto: f32 for f32 checkpoints, and on the host for bf16 ones; else f16"),
    ENUM(
        compute, ALL, "auto|f32|bf16", "auto",
        "arithmetic; auto: f32, but quantised weights meet 15-bit activations as two int8 "
        "products; "
        "on a GPU tensor cores with f32 sums: bf16, or f16 for f16 weights (f32 checkpoints: f32)"),
    SIZE(link_bandwidth, NULL, ALL, "unlimited", 1, 0,
         "bytes a second of the host device's simulated link; a GPU has a real one: refused"),
    FLOAT(link_latency_us, ALL, "0", 0, 1000000, "microseconds a copy of that link takes besides"),
    ENUM(disk_io, ALL, "auto|uring|pread", "auto", "how the spill file is read and written"),
    BOOL(stats, ALL, "prints what moved and how long it took, on standard error"),
    STRING(stats_json, ALL, "FILE", NULL, "writes the same as JSON"),
    ENUM(log_level, ALL, "error|warn|info|debug", "warn", "the least important messages to show"),
    ENUM(log_format, ALL, "text|json", "text", "of messages on standard error"),
    STRING(config, ALL, "FILE", NULL, "reads options from lines name = value"),
    BOOL(help, ALL, "shows this"),
    BOOL(version, ALL, "shows the version"),
};
/* clang-format on */
const uint32_t pllm_option_count = sizeof pllm_options / sizeof pllm_options[0];

_Static_assert(sizeof pllm_options / sizeof pllm_options[0] <= PLLM_OPTION_MAX,
               "pllm_settings.sources is too short");
