/* options_manual.c - what the help of a command says beside its options: how it works, files,
 * environment, exit status, examples. Texts only; options_help.c prints them. */
#include "base/options.h"

#define FILES                                                                   \
    "$XDG_RUNTIME_DIR/pagedllm/store.sock, else /tmp/pagedllm-UID/store.sock\n" \
    "    the daemon's socket; --socket names another\n"
#define ENVIRONMENT                                              \
    "PAGEDLLM_SOCKET   as --socket\n"                            \
    "PAGEDLLM_DEVICE   as --device; so for every other option\n" \
    "XDG_RUNTIME_DIR   the folder of the default socket's folder\n"
#define EXITS                                                               \
    "0    done\n"                                                           \
    "1    failed; one sentence on standard error says why and what to do\n" \
    "2    the command line was wrong\n"                                     \
    "130  interrupted by SIGINT; 143: by SIGTERM; 129: by SIGHUP\n"

#define LEDGER_FILES               \
    "/dev/shm/pagedllm-UID-NAME\n" \
    "    the ledger; it stays when its members have ended, and may then be removed\n"
#define LEDGER_ENVIRONMENT "PAGEDLLM_LEDGER   as --ledger; so for every other option\n"

const pllm_manual pllm_manual_top = {
    .description =
        "A ledger is one limit of device memory for all processes of a user that name it with "
        "--ledger. Each has a minimum that is its own, and may use what is free above it; who asks "
        "for more makes members of lower priority give back.\n\n"
        "The first line is the ledger: what is mapped, what is held (the larger of mapped and "
        "minimum, of each member, which is what others cannot have), its limit, the most that was "
        "ever mapped, and how often somebody was refused. Then a line a member: its address space, "
        "its mapped memory, minimum and limit, priority, bytes mapped and given up in a second, "
        "what "
        "it is asked to give back and has not yet, how often it was asked and how much it gave "
        "back. A member that is gone, but whose memory others still map, has no pid. q or Ctrl-C "
        "ends.\n\n"
        "Where standard output is no terminal, a table is printed every second.",
    .files = LEDGER_FILES,
    .environment = LEDGER_ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm top\n"
                "pagedllm top --ledger team --once --json\n",
};

const pllm_manual pllm_manual_limit = {
    .description =
        "Changes a member of a ledger while it runs: at once for what it may map from now on. What "
        "it "
        "has above a new limit it gives back as soon as it can. total stands for the ledger "
        "itself; "
        "below what is mapped, everybody is asked to give back, and nothing above a minimum can be "
        "mapped until they have. unlimited takes a member's own limit away. A limit below a "
        "minimum "
        "is refused, and so is a minimum that is not to be had.",
    .files = LEDGER_FILES,
    .environment = LEDGER_ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm limit run-4711 4GB\n"
                "pagedllm limit total 24GB --ledger team\n"
                "pagedllm limit chat-815 unlimited --ledger-minimum 2GB --ledger-priority 5\n",
};

const pllm_manual pllm_manual_store = {
    .description =
        "Programs make and open tensors by name; the memory is the daemon's, and is mapped by all "
        "who have a tensor open, without a copy. A tensor ends with its last reference, also if "
        "its holder is killed, unless it is kept (as those made here are) or pinned.\n\n"
        "Programs in C use <pagedllm/tensor_store.h>; others read and write Redis, where each "
        "tensor is a hash tensor:NAME and the list tensor:cmd takes commands. docs/STORE.md is the "
        "guide.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store serve &\n"
                "pagedllm store put weights.safetensors --prefix llama/\n"
                "pagedllm store ls llama/\n"
                "pagedllm store get llama/lm_head.weight head.npy\n",
};

const pllm_manual pllm_manual_store_serve = {
    .description =
        "Owns the memory of tensors on the devices named by --device (several are allowed; the "
        "first is the default one), listens at --socket, registers every tensor in Redis and "
        "carries out the commands that come through its list tensor:cmd. Says on standard output "
        "where it listens, once it does. SIGINT, SIGTERM and SIGHUP (but not under nohup) end it "
        "in order.\n\n"
        "Redis is written behind the daemon and never waited for: it may be away, restart or lose "
        "its data, and is told everything again within seconds of its return. Whoever may write to "
        "that Redis may do what the daemon may.\n\n"
        "Clients keep what they have mapped if the daemon dies, and offer it to the next one on "
        "the same socket, which takes it over.\n\n"
        "When device memory runs short, sealed tensors that nobody has open move to host memory "
        "and come back when they are opened.",
    .files = FILES "PATH.lock\n"
                   "    held while the daemon lives; remembers how often it was started\n"
                   "PATH.redis/\n"
                   "    the private redis-server's socket and log, while there is one\n",
    .environment = ENVIRONMENT,
    .exits = "0    ended by SIGINT, SIGTERM or SIGHUP\n"
             "1    failed; one sentence on standard error says why and what to do\n"
             "2    the command line was wrong\n",
    .examples = "pagedllm store serve\n"
                "pagedllm store serve --device cuda --vram-limit 40GB --redis "
                "unix:///run/redis/redis.sock\n"
                "pagedllm store serve --socket /srv/tensors/sock --socket-mode 0660 --quota 8GB "
                "--redis none\n",
};

const pllm_manual pllm_manual_store_create = {
    .description =
        "The tensor is zeros, and stays until it is deleted: programs open it by its name. Names "
        "have 1 to 128 of A-Z a-z 0-9 . _ - / : and the name cmd is taken.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store create activations --shape 1024,4096 --dtype bf16\n"
                "pagedllm store create shared/mask --shape [8,128] --dtype bool --mode 0640\n",
};

const pllm_manual pllm_manual_store_put = {
    .description =
        "A .npy file becomes a tensor called NAME, or as the file without its ending. It must be "
        "in C order and little-endian. Of a .safetensors file all tensors are taken, under the "
        "names that they have there, with --prefix before them; NAME takes that one alone.\n\n"
        "The tensor's fence is 1 when it is complete, so who opens it early can wait for that "
        "(pllm_store_wait). It stays until it is deleted. What fails or is interrupted half way "
        "leaves none of the file's tensors.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store put embeddings.npy\n"
                "pagedllm store put model.safetensors --prefix llama/ --seal --mode 0644\n"
                "pagedllm store put model.safetensors lm_head.weight --replace\n",
};

const pllm_manual pllm_manual_store_get = {
    .description =
        "One tensor becomes a .npy file; any number of them, or all that begin with --prefix, a "
        ".safetensors file: FILE's ending decides. The file appears when it is complete, in place "
        "of one that was there. bf16 and f8 are not types of .npy. /dev/stdout is a FILE too, and "
        "is written as .npy.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store get activations activations.npy\n"
                "pagedllm store get a b c three.safetensors\n"
                "pagedllm store get --prefix llama/ model.safetensors\n",
};

const pllm_manual pllm_manual_store_ls = {
    .description =
        "One line a tensor: name, type, shape, bytes, how many processes have it open (and for "
        "writing), the fence, and what is special about it: sealed, pinned, kept, legacy, spilled "
        "(in host memory for now), poisoned (its producer died).",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store ls\n"
                "pagedllm store ls llama/ --json\n",
};

const pllm_manual pllm_manual_store_stat = {
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store stat activations\n",
};

const pllm_manual pllm_manual_store_rm = {
    .description = "The name is free at once. The memory goes when the last process that has the "
                   "tensor open has closed it; until then it stays readable there.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store rm activations llama/lm_head.weight\n",
};

const pllm_manual pllm_manual_store_watch = {
    .description =
        "One line an event, from now on: created, deleted, sealed, renamed, pinned, spilled, "
        "restored, poisoned, or lost (some events were missed: look with ls). With --json one "
        "object a line.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store watch llama/\n"
                "pagedllm store watch --events 1 --json\n",
};

const pllm_manual pllm_manual_store_seal = {
    .description = "From then on it can be opened for reading only, and may move to host memory "
                   "while nobody has it open. It cannot be undone. Refused while a process has it "
                   "open for writing.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store seal weights\n",
};

const pllm_manual pllm_manual_store_pin = {
    .description = "A pinned tensor stays when its last reference goes and never moves to host "
                   "memory. With --off it is as before: one that was not kept ends with its last "
                   "reference.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store pin weights\n"
                "pagedllm store pin --off weights\n",
};

const pllm_manual pllm_manual_store_rename = {
    .description = "Who has it open keeps it open. Refused where there is a tensor of the new "
                   "name.",
    .files = FILES,
    .environment = ENVIRONMENT,
    .exits = EXITS,
    .examples = "pagedllm store rename weights.new weights\n",
};
