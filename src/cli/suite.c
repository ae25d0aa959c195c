/* suite.c - pagedllm bench --suite: models x contexts x batches, each in an engine of its own.
 *
 * The benchmark that the project was asked for: by default two models, contexts of 2K, 8K, 32K
 * and 128K, batches of 1, 4, 8 and 16. What cannot fit is computed before anything is opened and
 * skipped with the reason; what fails is written down as failed, and the rest goes on. The others
 * are measured from the cheapest on, within --seconds and --point-seconds (suite_time.c).
 *
 * The folder (suite_files.c) is written again after each point, so that a suite that is cut short
 * leaves what it had, and --keep can go on from there. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/clock.h"
#include "base/context.h"
#include "cli/suite.h"
#include "model/model.h"

/* ---- what to measure ------------------------------------------------------------------------ */

static int read_models(suite *s)
{
    const pllm_settings *settings = s->cli->settings;
    pllm_settings_text(settings, pllm_option_find("weights"), s->weights, sizeof s->weights);
    s->list = strdup(settings->models);
    if (!s->list) return pllm_fail_memory("a list of models", strlen(settings->models));
    char *rest = s->list, *name;
    while ((name = strsep(&rest, ","))) {
        if (!*name) continue;
        if (s->model_count == SUITE_MODEL_MAX)
            return pllm_fail(PLLM_ELIMIT, 0, "--models: a suite takes at most %d", SUITE_MODEL_MAX);
        char *format = strchr(name, ':');
        static const char *const known[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"};
        int found = !format;
        if (format) *format++ = '\0';
        for (size_t i = 0; !found && i < sizeof known / sizeof known[0]; i++)
            found = strcmp(format, known[i]) == 0;
        if (!found)
            return pllm_fail(PLLM_EINVAL, 0,
                             "--models %s:%s: weights are bf16, f16, f32, q8_0, q4_0 or q4_1", name,
                             format);
        pllm_shape_options shape = {.struct_bytes = sizeof shape, .name = name};
        pllm_model *model;
        int status = pllm_model_open_shape(s->cli->context, &shape, &model);
        if (status == PLLM_OK) pllm_model_close(model);
        /* A mistyped name is not a reason to skip; one that does not run yet is. */
        if (status < 0 && status != PLLM_EUNSUPPORTED) return status;
        s->names[s->model_count] = name;
        s->formats[s->model_count++] = format ? format : s->weights;
    }
    return s->model_count ? PLLM_OK : pllm_fail(PLLM_EINVAL, 0, "--models names none");
}

static uint32_t take_list(const pllm_settings *settings, const char *option,
                          const pllm_uint_list *given, const uint64_t *standard,
                          uint32_t standard_count, uint64_t *into)
{
    int own = pllm_settings_given(settings, option);
    uint32_t count = own ? given->count : standard_count;
    for (uint32_t i = 0; i < count; i++) into[i] = own ? given->items[i] : standard[i];
    return count;
}

static int make_cells(suite *s)
{
    static const uint64_t contexts[] = {2048, 8192, 32768, 131072}, batches[] = {1, 4, 8, 16};
    const pllm_settings *settings = s->cli->settings;
    s->context_count = take_list(settings, "depth", &settings->depth, contexts, 4, s->contexts);
    s->batch_count = take_list(settings, "batch", &settings->batch, batches, 4, s->batches);
    s->cell_count = s->model_count * s->context_count * s->batch_count;
    if (s->cell_count == 0 || s->cell_count > SUITE_CELL_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "a suite has 1 to %d points, not %u", SUITE_CELL_MAX,
                         s->cell_count);
    s->cells = calloc(s->cell_count, sizeof *s->cells);
    if (!s->cells) return pllm_fail_memory("a suite", s->cell_count * sizeof *s->cells);
    for (uint32_t i = 0; i < s->cell_count; i++) {
        s->cells[i].model = i / (s->context_count * s->batch_count);
        s->cells[i].result.batch = s->batches[i / s->context_count % s->batch_count];
        s->cells[i].result.depth = s->contexts[i % s->context_count];
    }
    return PLLM_OK;
}

/* ---- the run -------------------------------------------------------------------------------- */

static bench_plan plan_of(const suite *s, const suite_cell *cell)
{
    return (bench_plan){.need = {.shape = s->names[cell->model],
                                 .weights = s->formats[cell->model],
                                 .sequence_max = (uint32_t)cell->result.batch},
                        /* Filling the context is the prefill that is timed. */
                        .prefill = 0,
                        .decode = s->decode,
                        .seed = s->cli->settings->seed,
                        .depth_max = cell->result.depth};
}

/* Why a cell is not measured, as its reason: the last error. */
static void leave_cell(suite_cell *cell, cell_state state)
{
    cell->state = state;
    snprintf(cell->reason, sizeof cell->reason, "%.390s", pllm_last_error()->text);
}

/* Computed; nothing is opened. */
static int check_cell(suite *s, suite_cell *cell)
{
    const pllm_settings *settings = s->cli->settings;
    bench_plan plan = plan_of(s, cell);
    int status = bench_plan_context(&plan);
    if (status < 0) return status;
    status = bench_memory_of(s->cli, &plan, &cell->memory);
    /* A point that streams takes minutes and says something else: only where it was asked for. */
    int below = pllm_settings_given(settings, "host_memory") ||
                pllm_settings_given(settings, "vram_limit") ||
                pllm_settings_given(settings, "kv_limit");
    if (status == PLLM_OK) status = bench_fits(s->cli, &cell->memory, &s->machine, below);
    if (status < 0) leave_cell(cell, CELL_SKIPPED);
    return PLLM_OK;
}

static void measure_cell(suite *s, suite_cell *cell)
{
    bench_plan plan = plan_of(s, cell);
    if (bench_plan_context(&plan) < 0 || suite_may_begin(s, cell, &plan.deadline_ns) < 0) {
        leave_cell(cell, CELL_SKIPPED);
        return;
    }
    pllm_engine *engine;
    uint64_t begun = pllm_clock_ns();
    s->cli->open_deadline_ns = plan.deadline_ns;
    int status = cli_engine_open(s->cli, &plan.need, &engine);
    s->cli->open_deadline_ns = 0;
    cell->open_seconds = (double)(pllm_clock_ns() - begun) * 1e-9;
    if (status == PLLM_OK) status = bench_measure(engine, &plan, &s->machine, &cell->result);
    if (status == PLLM_OK) {
        cell->engine = bench_engine_json(engine, &s->machine);
        cell->state = CELL_MEASURED;
    } else {
        cell->timed_out = plan.deadline_ns && pllm_clock_ns() >= plan.deadline_ns;
        if (cell->timed_out)
            pllm_fail(PLLM_ETIMEDOUT, 0, "was not done after %.0f s",
                      (double)(pllm_clock_ns() - begun) * 1e-9);
        /* Foretelling memory is no more than that either. */
        int no_room = status == PLLM_ENODEVMEM || status == PLLM_ENOMEM || status == PLLM_ELIMIT;
        leave_cell(cell, cell->timed_out || no_room ? CELL_SKIPPED : CELL_FAILED);
    }
    pllm_engine_close(engine);
}

static void say_cell(const suite *s, const suite_cell *c)
{
    const bench_result *r = &c->result;
    if (s->cli->settings->json) return;
    printf("%-16s %-5s batch %-3llu context %-7llu ", s->names[c->model], s->formats[c->model],
           (unsigned long long)r->batch, (unsigned long long)r->depth);
    if (c->state == CELL_MEASURED)
        printf("%9.1f tok/s, %8.2f ms a step, %3.0f%% of the bound; prefill %9.1f tok/s%s\n",
               r->decode_tps, r->decode_ms_median, 100 * r->of_bound, r->fill_tps,
               c->kept ? " (kept)" : "");
    else
        printf("%s: %s\n", suite_state_names[c->state], c->reason);
    fflush(stdout);
}

static int run_cells(suite *s)
{
    uint32_t order[SUITE_CELL_MAX];
    int status = PLLM_OK;
    for (uint32_t i = 0; status == PLLM_OK && i < s->cell_count; i++) {
        if (s->cells[i].state == CELL_WAITING) status = check_cell(s, &s->cells[i]);
        if (s->cells[i].state != CELL_WAITING) say_cell(s, &s->cells[i]);
    }
    uint32_t count = suite_order(s, order);
    for (uint32_t i = 0; status == PLLM_OK && i < count; i++) {
        suite_cell *cell = &s->cells[order[i]];
        measure_cell(s, cell);
        if (cli_interrupted()) return cli_canceled();
        say_cell(s, cell);
        status = suite_write(s);
    }
    return status == PLLM_OK ? suite_write(s) : status;
}

static int run_suite(suite *s)
{
    const char *folder = s->cli->settings->output;
    int status = read_models(s);
    if (status == PLLM_OK) status = make_cells(s);
    if (status == PLLM_OK && mkdir(folder, 0777) != 0 && errno != EEXIST)
        status = pllm_fail(PLLM_EIO, errno, "%s cannot be made: %s", folder, strerror(errno));
    if (status == PLLM_OK) status = cli_measure_bandwidth(s->cli, &s->machine);
    if (status == PLLM_OK && s->cli->settings->keep) status = suite_keep(s);
    if (status == PLLM_OK) status = suite_write(s); /* a place that cannot be written: found now */
    return status == PLLM_OK ? run_cells(s) : status;
}

int bench_suite(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    suite s = {.cli = cli,
               .begun_ns = pllm_clock_ns(),
               .decode = pllm_settings_given(settings, "decode") ? settings->decode : 32};
    const char *folder = settings->output;
    int status = run_suite(&s);
    uint32_t measured = 0, failed = 0;
    for (uint32_t i = 0; s.cells && i < s.cell_count; i++) {
        measured += s.cells[i].state == CELL_MEASURED;
        failed += s.cells[i].state == CELL_FAILED;
    }
    if (status == PLLM_OK && settings->json)
        status = cli_print_json(suite_json(&s));
    else if (status == PLLM_OK)
        printf("%u of %u points measured, %u failed; see %s/suite.md\n", measured, s.cell_count,
               failed, folder);
    if (status == PLLM_OK && measured == 0 && failed == 0)
        status = pllm_fail(PLLM_ENOTFOUND, 0,
                           "no point of the suite was measured; %s/suite.md says why", folder);
    if (status == PLLM_OK && failed)
        status = pllm_fail(PLLM_EIO, 0, "%u points of the suite failed; %s/suite.md says why",
                           failed, folder);
    for (uint32_t i = 0; s.cells && i < s.cell_count; i++) {
        json_decref(s.cells[i].engine);
        json_decref(s.cells[i].kept);
    }
    free(s.cells);
    free(s.list);
    return status;
}
