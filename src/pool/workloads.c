/* workloads.c - the bundled logs: made by code, the same every time.
 *
 * prefill and decode follow a transformer of 7 billion parameters (32 layers, width 4,096, 32
 * heads, inner width 11,008, f16) as a framework runs it that allocates for each result and frees
 * what it does not need any more, weights aside. Their blocks together pass 1 GiB. */
#include "pool/log.h"

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)

enum { LAYERS = 32, WIDTH = 4096, INNER = 11008, HEADS = 32, VOCABULARY = 32000, F16 = 2, F32 = 4 };

/* The first failure stays, and ends it all. */
typedef struct maker {
    pllm_pool_log *log;
    int status;
    uint64_t random;
} maker;

static uint64_t draw(maker *m, uint64_t below)
{
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return (m->random >> 33) % below;
}

static uint32_t take_on(maker *m, uint64_t bytes, uint32_t stream)
{
    uint32_t place = 0;
    if (m->status == PLLM_OK) m->status = pllm_pool_log_allocate(m->log, bytes, stream, &place);
    return place;
}

static void give_on(maker *m, uint32_t place, uint32_t stream)
{
    if (m->status == PLLM_OK) m->status = pllm_pool_log_free(m->log, place, stream);
}

static uint32_t take(maker *m, uint64_t bytes)
{
    return take_on(m, bytes, 1);
}

static void give(maker *m, uint32_t place)
{
    give_on(m, place, 1);
}

/* ---- fixed sizes ---- */

static int make_fixed(pllm_pool_log *log)
{
    enum { LIVE = 96, ROUNDS = 10000 };
    static const uint64_t sizes[] = {256, 4 * KIB, 24 * KIB, 128 * KIB, 1 * MIB, 4 * MIB};
    maker m = {log, PLLM_OK, 1};
    uint32_t live[LIVE];
    for (uint32_t i = 0; i < LIVE; i++) live[i] = take(&m, sizes[i % 6]);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint32_t which = (uint32_t)draw(&m, LIVE);
        give(&m, live[which]);
        live[which] = take(&m, sizes[which % 6]);
    }
    for (uint32_t i = 0; i < LIVE; i++) give(&m, live[i]);
    return m.status;
}

/* ---- growing sequences: a cache each, reallocated every 16 tokens, in turn ---- */

static int make_growing(pllm_pool_log *log)
{
    enum { SEQUENCES = 16, ROUNDS = 600, STEP = 16, END = 640 };
    const uint64_t token_bytes = 64 * KIB;
    maker m = {log, PLLM_OK, 2};
    uint32_t cache[SEQUENCES];
    uint64_t tokens[SEQUENCES], end[SEQUENCES];
    for (uint32_t s = 0; s < SEQUENCES; s++) tokens[s] = 0, end[s] = 0;
    for (uint32_t i = 0; i < ROUNDS * SEQUENCES; i++) {
        uint32_t s = i % SEQUENCES, old = cache[s];
        int had = tokens[s] > 0, over = had && tokens[s] >= end[s];
        if (over) {
            give(&m, old);
            tokens[s] = 0;
            continue;
        }
        if (!had) {
            tokens[s] = 16 + draw(&m, 256);
            end[s] = tokens[s] + draw(&m, END);
        } else {
            tokens[s] += STEP;
        }
        uint32_t scratch = take(&m, 4 * KIB * (1 + draw(&m, 64)));
        cache[s] = take(&m, tokens[s] * token_bytes);
        if (had) give(&m, old);
        give(&m, scratch);
    }
    for (uint32_t s = 0; s < SEQUENCES; s++)
        if (tokens[s]) give(&m, cache[s]);
    return m.status;
}

/* ---- a transformer ---- */

/* What a layer allocates besides its cache, for rows of tokens; in is freed, the result comes out.
 */
static uint32_t layer(maker *m, uint32_t in, uint64_t rows, uint64_t score_bytes, uint32_t *k_out,
                      uint32_t *v_out)
{
    uint64_t hidden = rows * WIDTH * F16, inner = rows * INNER * F16;
    uint32_t norm = take(m, hidden), scale = take(m, rows * F32);
    uint32_t q = take(m, hidden), k = take(m, hidden), v = take(m, hidden);
    give(m, scale);
    give(m, norm);
    uint32_t q_turned = take(m, hidden), k_turned = take(m, hidden);
    give(m, q);
    give(m, k);
    uint32_t scores = score_bytes ? take(m, score_bytes) : 0;
    uint32_t mixed = take(m, hidden);
    if (score_bytes) give(m, scores);
    give(m, q_turned);
    uint32_t projected = take(m, hidden);
    give(m, mixed);
    uint32_t sum = take(m, hidden);
    give(m, projected);
    give(m, in);
    norm = take(m, hidden);
    uint32_t gate = take(m, inner), active = take(m, inner);
    give(m, gate);
    uint32_t up = take(m, inner), product = take(m, inner);
    give(m, active);
    give(m, up);
    give(m, norm);
    uint32_t down = take(m, hidden), out = take(m, hidden);
    give(m, product);
    give(m, down);
    give(m, sum);
    *k_out = k_turned;
    *v_out = v;
    return out;
}

/* Prompts of 128 to 1,151 tokens come and go, four of them at once; what a layer computed as keys
 * and values stays until its prompt goes. */
static int make_prefill(pllm_pool_log *log)
{
    enum { PROMPTS = 32, LIVE = 4 };
    maker m = {log, PLLM_OK, 3};
    uint32_t cache[LIVE][LAYERS][2];
    for (uint32_t p = 0; p < PROMPTS; p++) {
        uint32_t place = p < LIVE ? p : (uint32_t)draw(&m, LIVE);
        for (uint32_t l = 0; p >= LIVE && l < LAYERS; l++) {
            give(&m, cache[place][l][0]);
            give(&m, cache[place][l][1]);
        }
        uint64_t rows = 128 + draw(&m, 1024);
        uint32_t ids = take(&m, rows * 8), x = take(&m, rows * WIDTH * F16);
        for (uint32_t l = 0; l < LAYERS; l++)
            x = layer(&m, x, rows, 0, &cache[place][l][0], &cache[place][l][1]);
        uint32_t logits = take(&m, (uint64_t)VOCABULARY * F32);
        give(&m, x);
        give(&m, ids);
        give(&m, logits);
    }
    for (uint32_t place = 0; place < LIVE; place++)
        for (uint32_t l = 0; l < LAYERS; l++) {
            give(&m, cache[place][l][0]);
            give(&m, cache[place][l][1]);
        }
    return m.status;
}

/* A batch of 8 decodes; every step appends a token to each layer's keys and values by allocating
 * anew and copying, as concatenation does. */
static int make_decode(pllm_pool_log *log)
{
    enum { BATCH = 8, FIRST = 256, STEPS = 48 };
    const uint64_t token_bytes = (uint64_t)BATCH * WIDTH * F16;
    maker m = {log, PLLM_OK, 4};
    uint32_t cache[LAYERS][2];
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t i = 0; i < 2; i++) cache[l][i] = take(&m, FIRST * token_bytes);
    for (uint64_t tokens = FIRST + 1; tokens <= FIRST + STEPS; tokens++) {
        uint32_t x = take(&m, token_bytes);
        for (uint32_t l = 0; l < LAYERS; l++) {
            uint32_t fresh[2];
            x = layer(&m, x, BATCH, (uint64_t)BATCH * HEADS * tokens * F32, &fresh[0], &fresh[1]);
            for (uint32_t i = 0; i < 2; i++) {
                uint32_t longer = take(&m, tokens * token_bytes);
                give(&m, cache[l][i]);
                give(&m, fresh[i]);
                cache[l][i] = longer;
            }
        }
        uint32_t logits = take(&m, (uint64_t)BATCH * VOCABULARY * F32);
        give(&m, x);
        give(&m, logits);
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t i = 0; i < 2; i++) give(&m, cache[l][i]);
    return m.status;
}

/* ---- against us ---- */

/* Combs: many of a size, every other one freed, then something a little larger; sizes rise. Between
 * the combs, lives of any size and length. */
static int make_fragment(pllm_pool_log *log)
{
    enum { TEETH = 256, LARGE = 64, COMBS = 12, RANDOM = 3000, LIVE = 64 };
    maker m = {log, PLLM_OK, 5};
    uint32_t tooth[TEETH], large[LARGE], live[LIVE], held = 0;
    for (uint32_t c = 0; c < COMBS; c++) {
        uint64_t bytes = 96 * KIB + c * c * 48 * KIB;
        for (uint32_t i = 0; i < TEETH; i++) tooth[i] = take(&m, bytes + draw(&m, 16) * 512);
        for (uint32_t i = 0; i < TEETH; i += 2) give(&m, tooth[i]);
        for (uint32_t i = 0; i < LARGE; i++) large[i] = take(&m, 2 * bytes - 8 * KIB);
        for (uint32_t i = 1; i < TEETH; i += 2) give(&m, tooth[i]);
        for (uint32_t i = 0; i < LARGE; i++) give(&m, large[i]);
        for (uint32_t i = 0; i < RANDOM / COMBS; i++) {
            if (held == LIVE) {
                uint32_t which = (uint32_t)draw(&m, held);
                give(&m, live[which]);
                live[which] = live[--held];
            }
            uint64_t scale = (uint64_t)512 << draw(&m, 15); /* to 8 MiB */
            live[held++] = take(&m, scale + draw(&m, scale));
        }
    }
    while (held > 0) give(&m, live[--held]);
    return m.status;
}

/* Four streams: one copies in, two compute, one copies out; blocks are handed on. */
static int make_streams(pllm_pool_log *log)
{
    enum { ROUNDS = 4000, FLIGHT = 12 };
    maker m = {log, PLLM_OK, 6};
    uint32_t in[FLIGHT], out[FLIGHT];
    for (uint32_t i = 0; i < ROUNDS + FLIGHT; i++) {
        uint32_t slot = i % FLIGHT, compute = 2 + i % 2;
        if (i >= FLIGHT) {
            uint32_t before = 2 + (i - FLIGHT) % 2;
            give_on(&m, in[slot], before);
            give_on(&m, out[slot], 4);
        }
        if (i >= ROUNDS) continue;
        uint64_t bytes = 16 * KIB << draw(&m, 9);
        in[slot] = take_on(&m, bytes + draw(&m, bytes), 1);
        if (m.status == PLLM_OK) m.status = pllm_pool_log_record(m.log, in[slot], compute);
        uint32_t scratch = take_on(&m, bytes / 2, compute);
        out[slot] = take_on(&m, bytes, compute);
        give_on(&m, scratch, compute);
    }
    return m.status;
}

const pllm_pool_workload pllm_pool_workloads[] = {
    {"fixed", "six sizes from 256 bytes to 4 MiB, replaced at random", make_fixed},
    {"growing", "16 sequences whose caches are reallocated every 16 tokens", make_growing},
    {"prefill", "prompts of a 7B transformer, four at once", make_prefill},
    {"decode", "a batch of 8 in a 7B transformer, caches concatenated", make_decode},
    {"fragment", "combs of rising sizes, and lives of any size between", make_fragment},
    {"streams", "blocks handed on between four streams", make_streams},
};
const uint32_t pllm_pool_workload_count =
    sizeof pllm_pool_workloads / sizeof pllm_pool_workloads[0];
