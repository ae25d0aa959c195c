/* log.c - logs of pools: text in and out, and logs made step by step.
 *
 * Reading turns ids into places, of which there are only as many as blocks were live at once: a
 * replay then needs one array. An id is found by hashing while its block lives. */
#include <stdio.h>
#include <string.h>
#include "pool/log.h"

/* ---- text on its way out ---- */

void pool_writer_begin(pool_writer *writer, pllm_pool_write write, void *user)
{
    writer->write = write;
    writer->user = user;
    writer->status = PLLM_OK;
    writer->used = 0;
}

static void writer_flush(pool_writer *writer)
{
    if (writer->used && writer->status == PLLM_OK)
        writer->status = writer->write(writer->user, writer->text, writer->used);
    writer->used = 0;
}

int pool_writer_end(pool_writer *writer)
{
    if (!writer->write) return PLLM_OK;
    writer_flush(writer);
    writer->write = NULL;
    return writer->status;
}

void pool_writer_text(pool_writer *writer, const char *text)
{
    for (; *text; text++) {
        if (writer->used == sizeof writer->text) writer_flush(writer);
        writer->text[writer->used++] = *text;
    }
}

void pool_writer_format(pool_writer *writer, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    pool_writer_text(writer, text);
}

/* Numbers by hand: a recording shall not cost much more than what it records. */
static void put_number(pool_writer *writer, uint64_t number, char after)
{
    char digits[20];
    uint32_t count = 0;
    do digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count > 0) writer->text[writer->used++] = digits[--count];
    writer->text[writer->used++] = after;
}

static void put_step(pool_writer *writer, char kind, uint64_t id, uint64_t bytes, uint32_t stream)
{
    if (writer->used + 80 > sizeof writer->text) writer_flush(writer);
    writer->text[writer->used++] = kind;
    writer->text[writer->used++] = ' ';
    put_number(writer, id, ' ');
    if (kind == 'a') put_number(writer, bytes, ' ');
    put_number(writer, stream, '\n');
}

void pool_writer_allocated(pool_writer *writer, uint64_t id, uint64_t bytes, uint32_t stream)
{
    put_step(writer, 'a', id, bytes, stream);
}

void pool_writer_did(pool_writer *writer, char kind, uint64_t id, uint32_t stream)
{
    put_step(writer, kind, id, 0, stream);
}

int pllm_pool_log_write(const pllm_pool_log *log, pllm_pool_write write, void *user)
{
    pool_writer writer;
    pool_writer_begin(&writer, write, user);
    pool_writer_text(&writer, PLLM_POOL_LOG_HEAD "\n");
    for (uint32_t i = 0; i < log->step_count; i++) {
        const pllm_pool_step *step = &log->steps[i];
        put_step(&writer, (char)step->kind, step->place, step->bytes, step->stream);
    }
    return pool_writer_end(&writer);
}

/* ---- step by step ---- */

int pllm_pool_log_open(const pllm_context *context, pllm_pool_log **log_out)
{
    pllm_pool_log *log = *log_out = pllm_alloc(context, sizeof *log);
    if (!log) return pllm_fail_memory("a log", sizeof *log);
    log->context = context;
    return PLLM_OK;
}

void pllm_pool_log_close(pllm_pool_log *log)
{
    if (!log) return;
    pllm_free(log->context, log->steps);
    pllm_free(log->context, log->unused);
    pllm_free(log->context, log->sizes);
    pllm_free(log->context, log);
}

static int grow(const pllm_context *context, void *array, uint32_t *max, uint32_t wanted,
                uint64_t item_bytes)
{
    void **items = array;
    if (wanted <= *max) return PLLM_OK;
    uint32_t larger = *max ? 2 * *max : 64;
    void *grown = pllm_grow(context, *items, *max * item_bytes, larger * item_bytes);
    if (!grown) return pllm_fail_memory("a log", larger * item_bytes);
    *items = grown;
    *max = larger;
    return PLLM_OK;
}

static int add_step(pllm_pool_log *log, pllm_pool_step step)
{
    if (step.stream >= log->stream_count) log->stream_count = step.stream + 1u;
    log->steps[log->step_count++] = step;
    return PLLM_OK;
}

static int step_room(pllm_pool_log *log, uint32_t stream)
{
    if (stream >= PLLM_POOL_LOG_STREAMS)
        return pllm_fail(PLLM_ELIMIT, 0, "stream %u of a log: there may be %d", stream,
                         PLLM_POOL_LOG_STREAMS);
    if (log->step_count == PLLM_POOL_LOG_STEPS_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "a log of more than %d steps", PLLM_POOL_LOG_STEPS_MAX);
    return grow(log->context, &log->steps, &log->step_max, log->step_count + 1, sizeof *log->steps);
}

int pllm_pool_log_allocate(pllm_pool_log *log, uint64_t bytes, uint32_t stream, uint32_t *place_out)
{
    uint64_t live;
    if (bytes == 0 || __builtin_add_overflow(log->live_bytes, bytes, &live))
        return pllm_fail(PLLM_EINVAL, 0, "a log with an allocation of %llu bytes",
                         (unsigned long long)bytes);
    int status = step_room(log, stream);
    if (status == PLLM_OK)
        status = grow(log->context, &log->sizes, &log->size_max, log->place_count + 1,
                      sizeof *log->sizes);
    if (status < 0) return status;
    uint32_t place = log->unused_count ? log->unused[--log->unused_count] : log->place_count++;
    log->sizes[place] = bytes;
    log->live_bytes = live;
    log->live_count++;
    if (live > log->peak_bytes) log->peak_bytes = live;
    if (log->live_count > log->peak_count) log->peak_count = log->live_count;
    *place_out = place;
    return add_step(log, (pllm_pool_step){bytes, place, 'a', (uint8_t)stream});
}

static int check_place(const pllm_pool_log *log, uint32_t place)
{
    if (place < log->place_count && log->sizes[place]) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "a log that uses a block it did not allocate");
}

int pllm_pool_log_free(pllm_pool_log *log, uint32_t place, uint32_t stream)
{
    int status = check_place(log, place);
    if (status == PLLM_OK) status = step_room(log, stream);
    if (status == PLLM_OK)
        status = grow(log->context, &log->unused, &log->unused_max, log->unused_count + 1,
                      sizeof *log->unused);
    if (status < 0) return status;
    log->live_bytes -= log->sizes[place];
    log->live_count--;
    log->sizes[place] = 0;
    log->unused[log->unused_count++] = place;
    return add_step(log, (pllm_pool_step){0, place, 'f', (uint8_t)stream});
}

int pllm_pool_log_record(pllm_pool_log *log, uint32_t place, uint32_t stream)
{
    int status = check_place(log, place);
    if (status == PLLM_OK) status = step_room(log, stream);
    if (status < 0) return status;
    return add_step(log, (pllm_pool_step){0, place, 'r', (uint8_t)stream});
}

/* ---- reading ---- */

typedef struct reader {
    const char *at, *end;
    uint32_t line;
    pllm_pool_log *log;
    struct id_entry {
        uint64_t id;
        uint32_t place; /* + 1; 0: none */
    } * ids;            /* open addressing, with room for every live block twice over */
    uint32_t id_size;   /* a power of two */
} reader;

static int refuse(const reader *r, const char *what)
{
    return pllm_fail(PLLM_EINVAL, 0, "line %u of a pool's log: %s", r->line, what);
}

static uint32_t id_home(const reader *r, uint64_t id)
{
    return (uint32_t)(id * 0x9e3779b97f4a7c15u >> 32) & (r->id_size - 1);
}

/* The entry of an id, or the empty one where it would stand. */
static struct id_entry *id_find(const reader *r, uint64_t id)
{
    uint32_t i = id_home(r, id);
    while (r->ids[i].place && r->ids[i].id != id) i = (i + 1) & (r->id_size - 1);
    return &r->ids[i];
}

static void id_remove(const reader *r, struct id_entry *entry)
{
    uint32_t mask = r->id_size - 1, gap = (uint32_t)(entry - r->ids);
    for (uint32_t i = (gap + 1) & mask; r->ids[i].place; i = (i + 1) & mask) {
        if (((i - id_home(r, r->ids[i].id)) & mask) < ((i - gap) & mask)) continue;
        r->ids[gap] = r->ids[i];
        gap = i;
    }
    r->ids[gap].place = 0;
}

static int ids_room(reader *r)
{
    if ((r->log->live_count + 1) * 2 <= r->id_size) return PLLM_OK;
    reader larger = *r;
    larger.id_size = r->id_size ? 2 * r->id_size : 64;
    larger.ids = pllm_alloc_array(r->log->context, larger.id_size, sizeof *larger.ids);
    if (!larger.ids) return pllm_fail_memory("a log's ids", larger.id_size * sizeof *larger.ids);
    for (uint32_t i = 0; i < r->id_size; i++)
        if (r->ids[i].place) *id_find(&larger, r->ids[i].id) = r->ids[i];
    pllm_free(r->log->context, r->ids);
    *r = larger;
    return PLLM_OK;
}

static int read_number(reader *r, uint64_t *number_out)
{
    uint64_t number = 0;
    if (r->at == r->end || *r->at != ' ') return refuse(r, "a number is missing");
    r->at++;
    const char *first = r->at;
    for (; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++)
        if (__builtin_mul_overflow(number, (uint64_t)10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*r->at - '0'), &number))
            return refuse(r, "a number of more than 64 bits");
    if (r->at == first) return refuse(r, "no number where one should be");
    *number_out = number;
    return PLLM_OK;
}

static int read_step(reader *r)
{
    char kind = *r->at++;
    uint64_t id, bytes = 0, stream;
    uint32_t place;
    if (kind != 'a' && kind != 'f' && kind != 'r')
        return refuse(r, "begins with none of a, f, r and #");
    int status = read_number(r, &id);
    if (status == PLLM_OK && kind == 'a') status = read_number(r, &bytes);
    if (status == PLLM_OK) status = read_number(r, &stream);
    if (status < 0) return status;
    if (r->at < r->end && *r->at == '\r') r->at++;
    if (r->at < r->end && *r->at != '\n') return refuse(r, "more on the line than there should be");
    if (stream >= PLLM_POOL_LOG_STREAMS) return refuse(r, "a stream above 63");
    if (kind == 'a') status = ids_room(r);
    if (status < 0) return status;
    struct id_entry *entry = r->id_size ? id_find(r, id) : NULL;
    int known = entry && entry->place;
    if (kind == 'a' && (known || bytes == 0))
        return refuse(r, known ? "that id is in use" : "an allocation of 0 bytes");
    if (kind != 'a' && !known) return refuse(r, "no block has that id");
    if (kind == 'r') return pllm_pool_log_record(r->log, entry->place - 1, (uint32_t)stream);
    if (kind == 'f') {
        status = pllm_pool_log_free(r->log, entry->place - 1, (uint32_t)stream);
        if (status == PLLM_OK) id_remove(r, entry);
        return status;
    }
    status = pllm_pool_log_allocate(r->log, bytes, (uint32_t)stream, &place);
    if (status == PLLM_OK) *entry = (struct id_entry){id, place + 1};
    return status;
}

static int read_all(reader *r)
{
    size_t head = strlen(PLLM_POOL_LOG_HEAD);
    r->line = 1;
    if ((size_t)(r->end - r->at) < head || memcmp(r->at, PLLM_POOL_LOG_HEAD, head) != 0 ||
        (r->at + head < r->end && r->at[head] != '\n' && r->at[head] != '\r'))
        return refuse(r, "a log begins with \"" PLLM_POOL_LOG_HEAD "\"");
    while (r->at < r->end) {
        const char *line_end = memchr(r->at, '\n', (size_t)(r->end - r->at));
        r->at = line_end ? line_end + 1 : r->end;
        r->line++;
        if (r->at == r->end || *r->at == '#' || *r->at == '\n' || *r->at == '\r') continue;
        int status = read_step(r);
        if (status < 0) return status;
    }
    return PLLM_OK;
}

int pllm_pool_log_parse(const pllm_context *context, const char *text, uint64_t bytes,
                        pllm_pool_log **log_out)
{
    *log_out = NULL;
    if (!text) return pllm_fail(PLLM_EINVAL, 0, "no text of a log");
    reader r = {.at = text, .end = text + bytes};
    int status = pllm_pool_log_open(context, &r.log);
    if (status < 0) return status;
    status = read_all(&r);
    pllm_free(context, r.ids);
    if (status < 0)
        pllm_pool_log_close(r.log);
    else
        *log_out = r.log;
    return status;
}
