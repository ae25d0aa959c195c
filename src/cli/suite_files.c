/* suite_files.c - what a suite leaves: suite.json, suite.md, for each model decode-MODEL.svg (speed
 * over context, a line a batch), and prefill.svg (a line a model); and suite.json read back.
 *
 * A point that an earlier run measured is kept as its JSON, whose figures also go into the tables
 * and plots. Points of another device or with other options are not comparable: such a file is
 * refused. */
#include <string.h>
#include "base/context.h"
#include "base/text.h"
#include "cli/suite.h"

const char *const suite_state_names[] = {"waiting", "measured", "skipped", "failed"};

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

static int has(const suite *s, uint32_t model, int measured)
{
    uint32_t count = s->context_count * s->batch_count;
    for (uint32_t i = 0; i < count; i++) {
        cell_state state = s->cells[model * count + i].state;
        if (measured ? state == CELL_MEASURED : state != CELL_WAITING) return 1;
    }
    return 0;
}

/* What figures depend on besides the device. */
static json_t *settings_json(const suite *s)
{
    static const char *const names[] = {"kv_format", "compute",     "vram_limit",
                                        "kv_limit",  "host_memory", "link_bandwidth"};
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char text[PLLM_SIZE_TEXT_BYTES];
        pllm_settings_text(s->cli->settings, pllm_option_find(names[i]), text, sizeof text);
        json_object_set_new(o, names[i], json_string(text));
    }
    json_object_set_new(o, "decode", json_integer((json_int_t)s->decode));
    json_object_set_new(o, "threads", json_integer((json_int_t)s->machine.memory.threads));
    return o;
}

static json_t *cell_json(const suite *s, const suite_cell *c)
{
    if (c->kept) return json_deep_copy(c->kept);
    json_t *o = json_pack("{s:s,s:s,s:s}", "shape", s->names[c->model], "weights",
                          s->formats[c->model], "state", suite_state_names[c->state]);
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
    return o;
}

json_t *suite_json(const suite *s)
{
    json_t *root = json_object(), *list = json_array();
    json_object_set_new(root, "device", json_string(s->cli->settings->device.last));
    json_object_set_new(root, "device_name", cli_json_text(s->machine.device.name));
    json_object_set_new(root, "device_read_bytes_per_second",
                        json_real(s->machine.read_bytes_per_second));
    json_object_set_new(root, "link_bytes_per_second", json_real(s->machine.link_bytes_per_second));
    json_object_set_new(root, "settings", settings_json(s));
    for (uint32_t i = 0; i < s->cell_count; i++) {
        if (s->cells[i].state != CELL_WAITING)
            json_array_append_new(list, cell_json(s, &s->cells[i]));
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
        fprintf(file, "%s: %s | | | | | | |\n", suite_state_names[c->state], c->reason);
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
            s->cli->settings->device.last, s->machine.device.name,
            s->machine.read_bytes_per_second * 1e-9, s->machine.link_bytes_per_second * 1e-9);
    for (uint32_t m = 0; m < s->model_count; m++) {
        const suite_cell *cells = &s->cells[m * each];
        if (!has(s, m, 0)) continue;
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
        for (uint32_t i = 0; i < each; i++)
            if (cells[i].state != CELL_WAITING) write_row(&cells[i], file);
    }
    fputc('\n', file);
    for (uint32_t m = 0; m < s->model_count; m++)
        if (has(s, m, 1))
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
    plot_line lines[SUITE_MODEL_MAX] = {0};
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

int suite_write(const suite *s)
{
    int status = write_file(s, "suite.json", 0);
    if (status == PLLM_OK) status = write_file(s, "suite.md", 0);
    if (status == PLLM_OK) status = write_file(s, "prefill.svg", 0);
    for (uint32_t m = 0; status == PLLM_OK && m < s->model_count; m++) {
        char name[128];
        if (!has(s, m, 1)) continue;
        snprintf(name, sizeof name, "decode-%.60s-%s.svg", s->names[m], s->formats[m]);
        status = write_file(s, name, m);
    }
    return status;
}

/* ---- reading back ---------------------------------------------------------------------------- */

static double number(const json_t *point, const char *name)
{
    return json_number_value(json_object_get(point, name));
}

static int is(const json_t *point, const char *name, const char *text)
{
    const char *value = json_string_value(json_object_get(point, name));
    return value && strcmp(value, text) == 0;
}

/* What tables, plots and foretelling read. */
static void keep_cell(suite_cell *cell, json_t *point)
{
    bench_result *r = &cell->result;
    cell->state = CELL_MEASURED;
    cell->kept = json_deep_copy(point);
    cell->open_seconds = number(point, "open_seconds");
    r->fill_ms = number(point, "fill_ms");
    r->fill_tps = number(point, "fill_tokens_per_second");
    r->decode_tps = number(point, "decode_tokens_per_second");
    r->decode_ms_median = number(point, "decode_ms_median");
    r->bound_ms = number(point, "bound_ms");
    r->of_bound = number(point, "of_bound");
    r->bound_by = is(point, "bound_by", "link") ? "link" : "device memory";
    r->read_per_token = (uint64_t)number(point, "read_bytes_per_token");
    r->host_per_token = (uint64_t)number(point, "host_to_device_bytes_per_token");
    r->disk_per_token = (uint64_t)number(point, "disk_to_device_bytes_per_token");
}

static void keep_point(suite *s, json_t *point)
{
    if (!is(point, "state", "measured")) return;
    for (uint32_t i = 0; i < s->cell_count; i++) {
        suite_cell *cell = &s->cells[i];
        if (cell->state == CELL_WAITING && is(point, "shape", s->names[cell->model]) &&
            is(point, "weights", s->formats[cell->model]) &&
            json_integer_value(json_object_get(point, "batch")) == (json_int_t)cell->result.batch &&
            json_integer_value(json_object_get(point, "depth")) == (json_int_t)cell->result.depth)
            keep_cell(cell, point);
    }
}

/* Is the file of this device, and of these options? */
static int alike(const suite *s, const json_t *root)
{
    json_t *own = settings_json(s);
    int same = is(root, "device", s->cli->settings->device.last) &&
               is(root, "device_name", s->machine.device.name) &&
               json_equal(own, json_object_get(root, "settings"));
    json_decref(own);
    return same;
}

int suite_keep(suite *s)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/suite.json", s->cli->settings->output);
    FILE *file = fopen(path, "re");
    if (!file) return PLLM_OK;
    json_error_t error;
    json_t *root = json_loadf(file, 0, &error), *point;
    fclose(file);
    size_t i;
    int status = PLLM_OK;
    if (!json_is_array(json_object_get(root, "points")))
        status = pllm_fail(PLLM_EINVAL, 0, "%s is no suite's file: remove it, or leave --keep out",
                           path);
    else if (!alike(s, root))
        status = pllm_fail(PLLM_EINVAL, 0,
                           "%s was measured on another device or with other options: give another "
                           "--output, or leave --keep out",
                           path);
    if (status == PLLM_OK)
        json_array_foreach(json_object_get(root, "points"), i, point) keep_point(s, point);
    json_decref(root);
    return status;
}
