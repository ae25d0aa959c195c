/* options_table.c - every command and option there is, with default, bounds and help. Nothing else
 * may name an option: flags, variables, config keys, help and suggestions are made from this. */
#include <stddef.h>
#include "base/options.h"

enum {
    RUN,
    CHAT,
    BENCH,
    LOGITS,
    PERPLEXITY,
    TOKENIZE,
    DETOKENIZE,
    DOCTOR,
    TRACE,
    TOP, /* the first that opens no model */
    LIMIT,
    STORE, /* and its commands */
    SERVE,
    CREATE,
    PUT,
    GET,
    LS,
    STAT,
    RM,
    WATCH,
    SEAL,
    PIN,
    RENAME,
};

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
    [TOP] = {"top", "", 0, 0, "shows who shares device memory under a ledger, live",
             &pllm_manual_top},
    [LIMIT] = {"limit", "NAME|total SIZE", 2, 2, "changes the limit of one of them, or of all",
               &pllm_manual_limit},
    [STORE] = {"store", "COMMAND", 0, 0, "shares tensors in device memory between processes",
               &pllm_manual_store},
    [SERVE] = {"store serve", "", 0, 0, "runs the daemon that owns the memory of named tensors",
               &pllm_manual_store_serve},
    [CREATE] = {"store create", "NAME", 1, 1, "makes a tensor of zeros, which stays",
                &pllm_manual_store_create},
    [PUT] = {"store put", "FILE [NAME]", 1, 2, "copies a .npy or .safetensors file into the store",
             &pllm_manual_store_put},
    [GET] = {"store get", "[NAME...] FILE", 1, PLLM_POSITIONAL_MAX,
             "copies tensors into a .npy or .safetensors file", &pllm_manual_store_get},
    [LS] = {"store ls", "[PREFIX]", 0, 1, "lists tensors", &pllm_manual_store_ls},
    [STAT] = {"store stat", "NAME", 1, 1, "shows all that is known of a tensor",
              &pllm_manual_store_stat},
    [RM] = {"store rm", "NAME...", 1, PLLM_POSITIONAL_MAX, "deletes tensors",
            &pllm_manual_store_rm},
    [WATCH] = {"store watch", "[PREFIX]", 0, 1, "prints what happens to tensors as it happens",
               &pllm_manual_store_watch},
    [SEAL] = {"store seal", "NAME...", 1, PLLM_POSITIONAL_MAX, "ends all writing to tensors",
              &pllm_manual_store_seal},
    [PIN] = {"store pin", "NAME...", 1, PLLM_POSITIONAL_MAX,
             "keeps tensors on the device, whoever has them open", &pllm_manual_store_pin},
    [RENAME] = {"store rename", "NAME NEW", 2, 2, "gives a tensor another name",
                &pllm_manual_store_rename},
};
const uint32_t pllm_command_count = sizeof pllm_commands / sizeof pllm_commands[0];
const uint32_t pllm_model_commands = (1u << TOP) - 1;

#define ON(command) (1u << (command))
#define ALL UINT32_MAX
#define MODELS (ON(TOP) - 1) /* the commands before */
#define CLIENTS (ALL & ~(ON(STORE) - 1) & ~ON(STORE))
#define MEMBERS (ON(RUN) | ON(CHAT) | ON(BENCH) | ON(LOGITS) | ON(PERPLEXITY))
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
    STRING(shape, ON(BENCH) | ON(CREATE), "NAME", NULL,
           "bench: in place of MODEL, a published shape such as llama-2-7b, with --random-weights; "
           "store create: the dimensions, such as 2,3 or [2,3], [] for a single number"),
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
    BOOL(json,
         ON(TOP) | ON(BENCH) | ON(PERPLEXITY) | ON(TOKENIZE) | ON(DOCTOR) | ON(TRACE) | ON(LS) |
             ON(STAT) | ON(WATCH),
         "prints JSON"),

    STRING(socket, CLIENTS, "PATH", NULL,
           "where the store's daemon listens; $XDG_RUNTIME_DIR/pagedllm/store.sock, or "
           "/tmp/pagedllm-UID/store.sock where that is not set"),
    STRING(redis, ON(SERVE), "ADDRESS", NULL,
           "where tensors are registered: unix://PATH, redis://HOST:PORT, or none; a private "
           "redis-server, which ends with the daemon, if not given"),
    STRING(socket_mode, ON(SERVE), "MODE", "0600",
           "who may connect, as chmod counts: 0660 the socket's group too, 0666 everybody"),
    SIZE(ready, NULL, ON(SERVE), "256MiB", 0, 0,
         "memory of each device that may be kept zeroed and exported ahead of need"),
    SIZE(legacy_memory, NULL, ON(SERVE), "unlimited", 0, 0,
         "of each GPU for tensors with a CUDA IPC handle, which those made through Redis are"),
    SIZE(quota, NULL, ON(SERVE), "unlimited", 1, 0, "bytes of tensors a user may own"),
    UINT(quota_tensors, ON(SERVE), "0", 0, UINT32,
         "tensors a user may own; 0: as many as there can be"),
    UINT(clients, ON(SERVE), "1024", 1, 65536, "connections at one time; a user gets a quarter"),
    STRING(ledger, MEMBERS | ON(SERVE) | ON(TOP) | ON(LIMIT), "NAME", NULL,
           "shares that ledger's limit of device memory with the other processes that name it; top "
           "and limit: the one that is meant, default if not given"),
    SIZE(ledger_limit, NULL, MEMBERS | ON(SERVE), "0", 0, 0,
         "of the ledger as a whole, where it is new; 0: it must exist"),
    SIZE(ledger_minimum, NULL, MEMBERS | ON(SERVE) | ON(LIMIT), "0", 0, 0,
         "what this process has in the ledger at all times; a model at least what it cannot do "
         "without; limit: the member's new minimum"),
    UINT(ledger_priority, MEMBERS | ON(SERVE) | ON(LIMIT), "0", 0, 1000000,
         "who has more may make this process give back what is above its minimum; limit: the "
         "member's new one"),
    STRING(ledger_name, MEMBERS | ON(SERVE), "NAME", NULL,
           "what top and limit call this process; if not given, its command and pid"),
    BOOL(once, ON(TOP), "shows it once, with the rates of a quarter of a second"),
    STRING(dtype, ON(CREATE), "TYPE", "f32",
           "f64 f32 f16 bf16 f8e4m3 f8e5m2 i64 i32 i16 i8 u8 or bool"),
    STRING(mode, ON(CREATE) | ON(PUT), "MODE", "0600",
           "who may open it, as chmod counts: 0640 lets the group read"),
    STRING(
        prefix, ON(PUT) | ON(GET), "TEXT", NULL,
        "put: goes before the names in the file; get: takes all tensors whose names begin so, and "
        "cuts it off"),
    BOOL(pinned, ON(CREATE) | ON(PUT), "never moves it to host memory"),
    BOOL(legacy, ON(CREATE) | ON(PUT), "plain memory with a CUDA IPC handle, on a GPU"),
    BOOL(seal, ON(PUT), "seals it once it is written: nobody can change it, and it may be spilled"),
    BOOL(replace, ON(PUT), "deletes what has the name already"),
    BOOL(off, ON(PIN), "takes the pin out again"),
    UINT(events, ON(WATCH), "0", 0, 0, "ends after so many; 0: when interrupted"),

    {"device", NULL, PLLM_OPTION_STRINGS, ALL, AT(device), "NAME", "host", 0, 0,
     "where to compute or share: host, cuda, cuda:1 for the second GPU, or cuda:GPU-... by its "
     "UUID; store serve takes several, store put and get map tensors there"},
    UINT(threads, MODELS, "0", 0, 1024,
         "processor threads; 0: as many as this process may use; a GPU's passes need one"),
    SIZE(vram_limit, "vram_size", MODELS | ON(SERVE), "unlimited", 0, 0,
         "all device memory together, weights too; on a GPU also its context, code and libraries, "
         "as the driver counts them; bench tensor: of the tensor's pages; store serve: of each "
         "device's tensors"),
    SIZE(kv_limit, NULL, MODELS, "unlimited", 0, 0, "device memory for the blocks of the KV cache"),
    SIZE(host_memory, NULL, MODELS | ON(SERVE), "unlimited", 0, 0,
         "host memory for blocks that left the device; on a GPU it is pinned, and all of it when "
         "opening if a size is given; streamed weights lie beside it; store serve: for sealed "
         "tensors that made way, of each device: half the machine's if not given, 0 for none"),
    STRING(nvme_path, MODELS | ON(SERVE), "DIR", NULL,
           "folder of the spill file; ~/.cache/pagedllm if only --nvme-size is given"),
    SIZE(nvme_size, NULL, MODELS | ON(SERVE), "0", 0, 0,
         "size of the spill file; 0: none, but with --nvme-path what the context needs; store "
         "serve: of each device's, for tensors that --host-memory has no room for"),
    SIZE(page_size, NULL, MODELS, "2MiB", 64 * KIB, GIB,
         "bytes of a page of bench tensor, 4MiB if it is larger than --vram-limit; refused "
         "elsewhere: KV pages are blocks of 32 tokens, "
         "weights move by layers"),
    ENUM(policy, MODELS, "static|lru|2q", "static",
         "which pages stay: a fixed share, the latest used, or the often used; on a GPU: among "
         "those "
         "that no running sequence holds"),
    ENUM(prefetch_strategy, MODELS, "sequential|none", "sequential",
         "which pages are fetched ahead of their use; on a GPU a pass plans that itself"),
    ENUM(kv_format, MODELS, "auto|f32|f16|bf16|int8|int4", "auto",
         "of the KV cache; auto: f32 for f32 checkpoints, and on the host for bf16 ones; else f16"),
    ENUM(
        compute, MODELS, "auto|f32|bf16", "auto",
        "arithmetic; auto: f32, but quantised weights meet 15-bit activations as two int8 "
        "products; "
        "on a GPU tensor cores with f32 sums: bf16, or f16 for f16 weights (f32 checkpoints: f32)"),
    SIZE(link_bandwidth, NULL, MODELS, "unlimited", 1, 0,
         "bytes a second of the host device's simulated link; a GPU has a real one: refused"),
    FLOAT(link_latency_us, MODELS, "0", 0, 1000000,
          "microseconds a copy of that link takes besides"),
    ENUM(disk_io, MODELS, "auto|uring|pread", "auto", "how the spill file is read and written"),
    BOOL(stats, MODELS, "prints what moved and how long it took, on standard error"),
    STRING(stats_json, MODELS, "FILE", NULL, "writes the same as JSON"),
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
