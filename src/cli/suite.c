/* suite.c - pagedllm bench --suite: models x contexts x batches, each in an engine of its own.
 *
 * The benchmark that the project was asked for: by default two models, contexts of 2K, 8K, 32K
 * and 128K, batches of 1, 4, 8 and 16. What cannot fit is computed before anything is opened and
 * skipped with the reason; what fails is written down as failed, and the rest goes on.
 *
 * The folder holds suite.json, suite.md, for each model decode-MODEL.svg (speed over context, a
 * line a batch), and prefill.svg (a line a model). All are written again after each point, so that
 * a suite that is cut short leaves what it had. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/clock.h"
#include "base/context.h"
#include "cli/bench.h"
#include "model/model.h"

enum { MODEL_MAX = 16, CELL_MAX = 1024 };

typedef enum cell_state { CELL_WAITING, CELL_MEASURED, CELL_SKIPPED, CELL_FAILED } cell_state;

typedef struct suite_cell {
    uint32_t model;
    cell_state state;
    char reason[400];
    bench_memory memory;
    bench_result result;
    double open_seconds;
    json_t *engine;
} suite_cell;

typedef struct suite {
    cli_program *cli;
    cli_bandwidth machine;
    char *list;                     /* settings->models, cut at its commas */
    const char *names[MODEL_MAX];   /* shapes */
    const char *formats[MODEL_MAX]; /* of their weights */
    char weights[16];
    uint32_t model_count, cell_count;
    uint64_t contexts[PLLM_LIST_MAX], batches[PLLM_LIST_MAX];
    uint32_t context_count, batch_count;
    suite_cell *cells; /* by model, then batch, then context */
} suite;

static const char *const state_names[] = {"waiting", "measured", "skipped", "failed"};

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
        if (s->model_count == MODEL_MAX)
            return pllm_fail(PLLM_ELIMIT, 0, "--models: a suite takes at most %d", MODEL_MAX);
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
    if (s->cell_count == 0 || s->cell_count > CELL_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "a suite has 1 to %d points, not %u", CELL_MAX,
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

/* All points of the cell's model were skipped, for one reason. */
static int skipped_alike(const suite *s, uint32_t model)
{
    uint32_t count = s->context_count * s->batch_count;
    const suite_cell *cells = &s->cells[model * count];
    for (uint32_t i = 0; i < count; i++)
        if (cells[i].state != CELL_SKIPPED || strcmp(cells[i].reason, cells[0].reason) != 0)
            return 0;
    return 1;
}

static int has_plot(const suite *s, uint32_t model)
{
    uint32_t count = s->context_count * s->batch_count;
    for (uint32_t i = 0; i < count; i++)
        if (s->cells[model * count + i].state == CELL_MEASURED) return 1;
    return 0;
}

/* ---- files ---------------------------------------------------------------------------------- */

static json_t *suite_json(const suite *s)
{
    json_t *root = json_object(), *list = json_array();
    json_object_set_new(root, "device", json_string(s->cli->settings->device));
    json_object_set_new(root, "device_name", cli_json_text(s->machine.device.name));
    json_object_set_new(root, "device_read_bytes_per_second",
                        json_real(s->machine.read_bytes_per_second));
    json_object_set_new(root, "link_bytes_per_second", json_real(s->machine.link_bytes_per_second));
    for (uint32_t i = 0; i < s->cell_count; i++) {
        const suite_cell *c = &s->cells[i];
        if (c->state == CELL_WAITING) continue;
        json_t *o = json_pack("{s:s,s:s,s:s}", "shape", s->names[c->model], "weights",
                              s->formats[c->model], "state", state_names[c->state]);
        if (c->reason[0]) json_object_set_new(o, "reason", cli_json_text(c->reason));
        json_object_set_new(o, "weight_bytes", json_integer((json_int_t)c->memory.weight_bytes));
        json_object_set_new(o, "kv_bytes", json_integer((json_int_t)c->memory.kv_bytes));
        json_object_set_new(o, "batch", json_integer((json_int_t)c->result.batch));
        json_object_set_new(o, "depth", json_integer((json_int_t)c->result.depth));
        if (c->state == CELL_MEASURED) {
            json_t *result = bench_result_json(&c->result);
            json_object_update(o, result);
            json_decref(result);
            json_object_set(o, "engine", c->engine);
            json_object_set_new(o, "open_seconds", json_real(c->open_seconds));
        }
        json_array_append_new(list, o);
    }
    json_object_set_new(root, "points", list);
    return root;
}

static void write_json(const suite *s, FILE *file)
{
    json_t *root = suite_json(s);
    json_dumpf(root, file, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    fputc('\n', file);
    json_decref(root);
}

static void write_row(const suite_cell *c, FILE *file)
{
    const bench_result *r = &c->result;
    fprintf(file, "| %llu | %llu | ", (unsigned long long)r->batch, (unsigned long long)r->depth);
    if (c->state != CELL_MEASURED) {
        fprintf(file, "%s: %s | | | | | | |\n", state_names[c->state], c->reason);
        return;
    }
    fprintf(file, "%.1f | %.2f | ", r->decode_tps, r->decode_ms_median);
    if (r->bound_ms > 0) fprintf(file, "%.0f%% by %s", 100 * r->of_bound, r->bound_by);
    fprintf(file, " | %.1f | %.1f | %.0f | %.3f |\n", (double)r->read_per_token * 1e-6,
            (double)(r->host_per_token + r->disk_per_token) * 1e-6, r->fill_tps, r->fill_ms * 1e-3);
}

static void write_markdown(const suite *s, FILE *file)
{
    uint32_t each = s->context_count * s->batch_count;
    fprintf(file,
            "# pagedllm bench --suite\n\nDevice %s (%s): memory is read at %.1f GB/s, the link "
            "carries %.1f GB/s. Decode: tokens a second over all sequences. Of bound: the least "
            "time a step could take, by the bytes it reads or must move, over the median step. "
            "Prefill: filling the context; first token: of one sequence.\n",
            s->cli->settings->device, s->machine.device.name,
            s->machine.read_bytes_per_second * 1e-9, s->machine.link_bytes_per_second * 1e-9);
    for (uint32_t m = 0; m < s->model_count; m++) {
        const suite_cell *cells = &s->cells[m * each];
        if (cells[0].state == CELL_WAITING) break;
        fprintf(file, "\n## %s, weights %s\n\n", s->names[m], s->formats[m]);
        if (skipped_alike(s, m)) {
            fprintf(file, "Skipped: %s.\n", cells[0].reason);
            continue;
        }
        fputs(
            "| batch | context | decode tok/s | ms a step | of bound | MB read / token | MB moved "
            "/ token | prefill tok/s | first token s |\n"
            "|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
            file);
        for (uint32_t i = 0; i < each && cells[i].state != CELL_WAITING; i++)
            write_row(&cells[i], file);
    }
    fputc('\n', file);
    for (uint32_t m = 0; m < s->model_count; m++)
        if (has_plot(s, m))
            fprintf(file, "![decode of %s](decode-%s-%s.svg)\n", s->names[m], s->names[m],
                    s->formats[m]);
    fputs("![prefill](prefill.svg)\n", file);
}

static void add_point(plot_line *line, const suite_cell *cell, double y)
{
    if (cell->state != CELL_MEASURED || line->count == PLOT_POINT_MAX) return;
    line->x[line->count] = cell->result.depth ? (double)cell->result.depth : 1;
    line->y[line->count++] = y;
}

static void write_decode_plot(const suite *s, uint32_t model, FILE *file)
{
    plot_line lines[PLLM_LIST_MAX] = {0};
    for (uint32_t b = 0; b < s->batch_count; b++) {
        snprintf(lines[b].name, sizeof lines[b].name, "batch %llu",
                 (unsigned long long)s->batches[b]);
        for (uint32_t c = 0; c < s->context_count; c++) {
            const suite_cell *cell = &s->cells[(model * s->batch_count + b) * s->context_count + c];
            add_point(&lines[b], cell, cell->result.decode_tps);
        }
    }
    char title[128];
    snprintf(title, sizeof title, "%s, weights %s: decode", s->names[model], s->formats[model]);
    plot_write(file, title, "tokens in the context", "tokens a second, all sequences", lines,
               s->batch_count);
}

static void write_prefill_plot(const suite *s, FILE *file)
{
    plot_line lines[MODEL_MAX] = {0};
    for (uint32_t m = 0; m < s->model_count; m++) {
        snprintf(lines[m].name, sizeof lines[m].name, "%s %s", s->names[m], s->formats[m]);
        for (uint32_t c = 0; c < s->context_count; c++) { /* the first batch that was measured */
            const suite_cell *cell = NULL;
            for (uint32_t b = 0; b < s->batch_count; b++) {
                cell = &s->cells[(m * s->batch_count + b) * s->context_count + c];
                if (cell->state == CELL_MEASURED) break;
            }
            add_point(&lines[m], cell, cell->result.fill_tps);
        }
    }
    plot_write(file, "prefill", "tokens in the prompt", "tokens a second", lines, s->model_count);
}

static int write_file(const suite *s, const char *name, uint32_t model)
{
    char path[4096];
    cli_output output;
    snprintf(path, sizeof path, "%s/%s", s->cli->settings->output, name);
    int status = cli_output_open(&output, path);
    if (status < 0) return status;
    if (strcmp(name, "suite.json") == 0)
        write_json(s, output.file);
    else if (strcmp(name, "suite.md") == 0)
        write_markdown(s, output.file);
    else if (strcmp(name, "prefill.svg") == 0)
        write_prefill_plot(s, output.file);
    else
        write_decode_plot(s, model, output.file);
    return cli_output_finish(&output);
}

static int write_all(const suite *s)
{
    int status = write_file(s, "suite.json", 0);
    if (status == PLLM_OK) status = write_file(s, "suite.md", 0);
    if (status == PLLM_OK) status = write_file(s, "prefill.svg", 0);
    for (uint32_t m = 0; status == PLLM_OK && m < s->model_count; m++) {
        char name[128];
        if (!has_plot(s, m)) continue;
        snprintf(name, sizeof name, "decode-%.60s-%s.svg", s->names[m], s->formats[m]);
        status = write_file(s, name, m);
    }
    return status;
}

/* ---- the run -------------------------------------------------------------------------------- */

static int measure_cell(suite *s, suite_cell *cell)
{
    const pllm_settings *settings = s->cli->settings;
    bench_plan plan = {.need = {.shape = s->names[cell->model],
                                .weights = s->formats[cell->model],
                                .sequence_max = (uint32_t)cell->result.batch},
                       /* Filling the context is the prefill that is timed. */
                       .prefill = 0,
                       .decode = pllm_settings_given(settings, "decode") ? settings->decode : 32,
                       .seed = settings->seed,
                       .depth_max = cell->result.depth};
    int status = bench_plan_context(&plan);
    if (status < 0) return status;
    cell->state = CELL_SKIPPED;
    status = bench_memory_of(s->cli, &plan, &cell->memory);
    /* A point that streams takes minutes and says something else: only where it was asked for. */
    int below = pllm_settings_given(settings, "host_memory") ||
                pllm_settings_given(settings, "vram_limit") ||
                pllm_settings_given(settings, "kv_limit");
    if (status == PLLM_OK) status = bench_fits(s->cli, &cell->memory, &s->machine, below);
    if (status < 0) return status;
    cell->state = CELL_FAILED;
    pllm_engine *engine;
    uint64_t begun = pllm_clock_ns();
    status = cli_engine_open(s->cli, &plan.need, &engine);
    cell->open_seconds = (double)(pllm_clock_ns() - begun) * 1e-9;
    if (status == PLLM_OK) status = bench_measure(engine, &plan, &s->machine, &cell->result);
    if (status == PLLM_OK) {
        cell->engine = bench_engine_json(engine, &s->machine);
        cell->state = CELL_MEASURED;
    }
    pllm_engine_close(engine);
    return status;
}

static void say_cell(const suite *s, const suite_cell *c)
{
    const bench_result *r = &c->result;
    if (s->cli->settings->json) return;
    printf("%-16s %-5s batch %-3llu context %-7llu ", s->names[c->model], s->formats[c->model],
           (unsigned long long)r->batch, (unsigned long long)r->depth);
    if (c->state == CELL_MEASURED)
        printf("%9.1f tok/s, %8.2f ms a step, %3.0f%% of the bound; prefill %9.1f tok/s\n",
               r->decode_tps, r->decode_ms_median, 100 * r->of_bound, r->fill_tps);
    else
        printf("%s: %s\n", state_names[c->state], c->reason);
    fflush(stdout);
}

static int run_cells(suite *s)
{
    int status = PLLM_OK;
    for (uint32_t i = 0; status == PLLM_OK && i < s->cell_count; i++) {
        suite_cell *cell = &s->cells[i];
        int measured = measure_cell(s, cell);
        if (cli_interrupted()) return cli_canceled();
        if (measured < 0)
            snprintf(cell->reason, sizeof cell->reason, "%.390s", pllm_last_error()->text);
        say_cell(s, cell);
        status = write_all(s);
    }
    return status;
}

int bench_suite(cli_program *cli)
{
    suite s = {.cli = cli};
    const char *folder = cli->settings->output;
    int status = read_models(&s);
    if (status == PLLM_OK) status = make_cells(&s);
    if (status == PLLM_OK && mkdir(folder, 0777) != 0 && errno != EEXIST)
        status = pllm_fail(PLLM_EIO, errno, "%s cannot be made: %s", folder, strerror(errno));
    if (status == PLLM_OK) status = write_all(&s); /* a place that cannot be written: found now */
    if (status == PLLM_OK) status = cli_measure_bandwidth(cli, &s.machine);
    if (status == PLLM_OK) status = run_cells(&s);
    uint32_t measured = 0, failed = 0;
    for (uint32_t i = 0; s.cells && i < s.cell_count; i++) {
        measured += s.cells[i].state == CELL_MEASURED;
        failed += s.cells[i].state == CELL_FAILED;
    }
    if (status == PLLM_OK && cli->settings->json)
        status = cli_print_json(suite_json(&s));
    else if (status == PLLM_OK)
        printf("%u of %u points measured, %u failed; see %s/suite.md\n", measured, s.cell_count,
               failed, folder);
    if (status == PLLM_OK && measured == 0 && failed == 0)
        status = pllm_fail(PLLM_ENOTFOUND, 0,
                           "no point of the suite was measured; %s/suite.md says "
                           "why",
                           folder);
    if (status == PLLM_OK && failed)
        status = pllm_fail(PLLM_EIO, 0, "%u points of the suite failed; %s/suite.md says why",
                           failed, folder);
    for (uint32_t i = 0; s.cells && i < s.cell_count; i++) json_decref(s.cells[i].engine);
    free(s.cells);
    free(s.list);
    return status;
}
