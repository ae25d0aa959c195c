/* suite_time.c - how long a point of a suite will take, from the points before it.
 *
 * Nearly all of a point is filling its context. A prompt of n tokens takes n (a + b n): products
 * are the same for every token, attention grows with the tokens before it. Two points of a model
 * with different contexts give a and b; points run from the cheapest on, so those are known when it
 * matters. One point alone is taken to grow with the root of the context, which is more than has
 * been seen. Steps are taken to run at two thirds of the bound by bytes.
 *
 * What is foretold wrongly is stopped: --point-seconds and --seconds are deadlines too. A point
 * that met one is not tried with a larger batch or context. */
#include <math.h>
#include <stdlib.h>
#include "base/clock.h"
#include "base/context.h"
#include "cli/suite.h"

/* Seconds a token of a prompt of count tokens; 0: not known. */
static double token_seconds(const suite *s, uint32_t model, double count)
{
    double n[2] = {0}, seconds[2] = {0}; /* of the two largest contexts; [0] is the largest */
    for (uint32_t i = 0; i < s->cell_count; i++) {
        const suite_cell *c = &s->cells[i];
        double depth = (double)c->result.depth;
        if (c->model != model || c->state != CELL_MEASURED || c->result.fill_ms <= 0 ||
            depth <= 0 || depth == n[0] || depth <= n[1])
            continue;
        double token = c->result.fill_ms * 1e-3 / depth;
        int place = depth > n[0] ? 0 : 1;
        if (place == 0) n[1] = n[0], seconds[1] = seconds[0];
        n[place] = depth, seconds[place] = token;
    }
    if (n[0] == 0) return 0;
    if (n[1] == 0) return seconds[0] * (count > n[0] ? sqrt(count / n[0]) : 1);
    double more = (seconds[0] - seconds[1]) / (n[0] - n[1]);
    double token = seconds[0] + (more > 0 ? more : 0) * (count - n[0]);
    double most = count > n[0] ? seconds[0] * count / n[0] : seconds[0]; /* a is no less than 0 */
    if (token > most) token = most;
    return token > seconds[1] / 2 ? token : seconds[1] / 2;
}

double suite_foretell(const suite *s, const suite_cell *cell)
{
    double batch = (double)cell->result.batch, depth = (double)cell->result.depth, open = 0;
    double token = token_seconds(s, cell->model, depth);
    if (token == 0) return 0;
    for (uint32_t i = 0; i < s->cell_count; i++)
        if (s->cells[i].model == cell->model && s->cells[i].open_seconds > open)
            open = s->cells[i].open_seconds;
    double step = 0;
    if (s->machine.read_bytes_per_second > 0)
        step = 1.5 * (double)(cell->memory.weight_bytes + cell->memory.kv_bytes) /
               s->machine.read_bytes_per_second;
    return open + batch * depth * token + step * (double)(s->decode + 4);
}

int suite_may_begin(const suite *s, const suite_cell *cell, uint64_t *deadline_ns_out)
{
    const pllm_settings *settings = s->cli->settings;
    double point = settings->point_seconds, all = settings->seconds;
    double left = all - (double)(pllm_clock_ns() - s->begun_ns) * 1e-9;
    double takes = suite_foretell(s, cell), most = point;
    *deadline_ns_out = 0;
    for (uint32_t i = 0; i < s->cell_count; i++) {
        const suite_cell *c = &s->cells[i];
        if (c->timed_out && c->model == cell->model && c->result.batch <= cell->result.batch &&
            c->result.depth <= cell->result.depth)
            return pllm_fail(PLLM_ETIMEDOUT, 0, "batch %llu at context %llu took too long already",
                             (unsigned long long)c->result.batch,
                             (unsigned long long)c->result.depth);
    }
    if (point > 0 && takes > point)
        return pllm_fail(PLLM_ETIMEDOUT, 0, "would take about %.0f s, --point-seconds is %g", takes,
                         point);
    if (all > 0 && left <= 0)
        return pllm_fail(PLLM_ETIMEDOUT, 0, "no time is left of --seconds %g", all);
    if (all > 0 && takes > left)
        return pllm_fail(PLLM_ETIMEDOUT, 0,
                         "would take about %.0f s, and %.0f are left of --seconds %g", takes, left,
                         all);
    if (all > 0 && (most == 0 || left < most)) most = left;
    if (most > 0) *deadline_ns_out = pllm_clock_ns() + (uint64_t)(most * 1e9);
    return PLLM_OK;
}

typedef struct priced {
    double cost;
    uint32_t index;
} priced;

static int by_cost(const void *left, const void *right)
{
    const priced *a = left, *b = right;
    if (a->cost != b->cost) return a->cost < b->cost ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

uint32_t suite_order(const suite *s, uint32_t *order)
{
    priced list[SUITE_CELL_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->cell_count; i++) {
        const suite_cell *c = &s->cells[i];
        if (c->state != CELL_WAITING) continue;
        double tokens = (double)c->result.batch * ((double)c->result.depth + (double)s->decode);
        list[count++] = (priced){tokens * (double)c->memory.weight_bytes, i};
    }
    qsort(list, count, sizeof *list, by_cost);
    for (uint32_t i = 0; i < count; i++) order[i] = list[i].index;
    return count;
}
