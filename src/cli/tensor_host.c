/* tensor_host.c - filling and summing by one thread of the processor.
 *
 * Normal numbers by inversion: 16 random bits choose one of 65,536 quantiles from a table, four to
 * a 64-bit number of the SplitMix64 sequence (Steele, Lea and Flood, 2014), which is its own
 * function of the index. A nanosecond each, so that memory is what is measured. */
#include <math.h>
#include <string.h>
#include "cli/tensor.h"

enum { QUANTILES = 1 << 16, LANES = 16 };

typedef struct host_worker {
    tensor_worker base;
    float *quantiles;
    double *sums, total;
} host_worker;

/* quantiles[i] solves P(X < x) = (i + 1/2) / 65,536, by Newton's steps from its neighbour. */
static void quantiles_make(float *quantiles)
{
    double x = 0;
    for (int i = QUANTILES / 2; i < QUANTILES; i++) {
        double above = 1 - (i + 0.5) / QUANTILES;
        for (int step = 0; step < 20; step++) {
            double error = 0.5 * erfc(x * 0.70710678118654752) - above;
            double move = error / (0.3989422804014327 * exp(-0.5 * x * x));
            x += move;
            if (fabs(move) < 1e-12) break;
        }
        quantiles[i] = (float)x;
        quantiles[QUANTILES - 1 - i] = (float)-x;
    }
}

static uint64_t split_mix(uint64_t index, uint64_t seed)
{
    uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static float *piece_data(const host_worker *w, const tensor_piece *piece)
{
    return w->base.device->ops->host_view(w->base.device, piece->address);
}

static int host_fill(tensor_worker *worker, const tensor_piece *pieces, uint32_t count)
{
    const host_worker *w = (host_worker *)worker;
    const float *quantiles = w->quantiles;
    for (; count > 0; count--, pieces++) {
        float *data = piece_data(w, pieces);
        for (uint64_t i = 0; i < pieces->elements; i += 4) {
            uint64_t bits = split_mix((pieces->first + i) / 4, worker->seed);
            float four[4] = {quantiles[bits & 65535], quantiles[bits >> 16 & 65535],
                             quantiles[bits >> 32 & 65535], quantiles[bits >> 48]};
            uint64_t left = pieces->elements - i;
            memcpy(data + i, four, left < 4 ? left * sizeof *four : sizeof four);
        }
    }
    return PLLM_OK;
}

static double tile_sum(const float *data, uint64_t elements)
{
    float lanes[LANES] = {0};
    uint64_t i = 0;
    for (; i + LANES <= elements; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += data[i + l];
    double sum = 0;
    for (; i < elements; i++) sum += data[i];
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

static int host_sum(tensor_worker *worker, const tensor_piece *pieces, uint32_t count)
{
    const host_worker *w = (host_worker *)worker;
    for (; count > 0; count--, pieces++) {
        const float *data = piece_data(w, pieces);
        for (uint64_t i = 0; i < pieces->elements; i += TENSOR_TILE) {
            uint64_t left = pieces->elements - i;
            w->sums[(pieces->first + i) / TENSOR_TILE] =
                tile_sum(data + i, left < TENSOR_TILE ? left : TENSOR_TILE);
        }
    }
    return PLLM_OK;
}

static int host_wait(tensor_worker *worker, uint64_t call)
{
    (void)worker;
    (void)call;
    return PLLM_OK; /* done when it returned */
}

static int host_add(tensor_worker *worker)
{
    host_worker *w = (host_worker *)worker;
    w->total = 0;
    for (uint64_t i = 0; i < worker->tiles; i++) w->total += w->sums[i];
    return PLLM_OK;
}

static double host_total(tensor_worker *worker)
{
    return ((host_worker *)worker)->total;
}

static void host_close(tensor_worker *worker)
{
    host_worker *w = (host_worker *)worker;
    pllm_free(worker->context, w->quantiles);
    pllm_free(worker->context, w->sums);
    pllm_free(worker->context, w);
}

static const tensor_worker_ops host_ops = {
    .close = host_close,
    .fill = host_fill,
    .sum = host_sum,
    .add = host_add,
    .wait = host_wait,
    .total = host_total,
};

int tensor_worker_open_host(const pllm_context *context, pllm_device *device, uint64_t tiles,
                            uint64_t seed, tensor_worker **worker_out)
{
    *worker_out = NULL;
    host_worker *w = pllm_alloc(context, sizeof *w);
    if (!w) return pllm_fail_memory("a worker", sizeof *w);
    w->base = (tensor_worker){&host_ops, context, device, tiles, seed};
    w->quantiles = pllm_alloc_array(context, QUANTILES, sizeof *w->quantiles);
    w->sums = pllm_alloc_array(context, tiles, sizeof *w->sums);
    if (!w->quantiles || !w->sums) {
        host_close(&w->base);
        return pllm_fail_memory("a worker's tables", tiles * sizeof *w->sums);
    }
    quantiles_make(w->quantiles);
    *worker_out = &w->base;
    return PLLM_OK;
}
