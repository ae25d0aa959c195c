/* replay.c - traces through policies, and Belady's optimum.
 *
 * The optimum walks the trace backwards once to learn, for each access, when its page is needed
 * next; then forwards, with a heap of resident pages by next use, latest first. A page's key only
 * grows while it is resident, so a hit makes it rise and a miss replaces the root. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "pager/replay.h"

enum { NONE = UINT32_MAX };

void pllm_trace_close(pllm_trace *trace)
{
    if (!trace) return;
    pllm_free(trace->context, trace->accesses);
    pllm_free(trace->context, trace->ranks);
    pllm_free(trace->context, trace);
}

static int trace_new(const pllm_context *context, uint32_t page_count, pllm_trace **trace_out)
{
    if (page_count > PLLM_TRACE_PAGES)
        return pllm_fail(PLLM_ELIMIT, 0, "a trace of %u pages: at most %d are understood",
                         page_count, PLLM_TRACE_PAGES);
    pllm_trace *trace = pllm_alloc(context, sizeof *trace);
    if (!trace) return pllm_fail_memory("a trace", sizeof *trace);
    trace->context = context;
    trace->page_count = page_count;
    *trace_out = trace;
    return PLLM_OK;
}

int pllm_trace_open(const pllm_context *context, uint32_t page_count, const uint32_t *ranks,
                    const uint32_t *accesses, uint64_t access_count, pllm_trace **trace_out)
{
    *trace_out = NULL;
    if (access_count > PLLM_TRACE_ACCESSES)
        return pllm_fail(PLLM_ELIMIT, 0, "a trace of %llu accesses: at most %d are understood",
                         (unsigned long long)access_count, PLLM_TRACE_ACCESSES);
    for (uint64_t i = 0; i < access_count; i++)
        if (accesses[i] >= page_count)
            return pllm_fail(PLLM_EINVAL, 0, "access %llu of a trace is page %u of %u",
                             (unsigned long long)i, accesses[i], page_count);
    pllm_trace *trace = NULL;
    int status = trace_new(context, page_count, &trace);
    if (status < 0) return status;
    if (access_count) {
        trace->accesses = pllm_alloc_array(context, access_count, sizeof *accesses);
        if (!trace->accesses) goto fail_memory;
        memcpy(trace->accesses, accesses, access_count * sizeof *accesses);
        trace->access_count = access_count;
    }
    if (ranks && page_count) {
        trace->ranks = pllm_alloc_array(context, page_count, sizeof *ranks);
        if (!trace->ranks) goto fail_memory;
        memcpy(trace->ranks, ranks, page_count * sizeof *ranks);
    }
    *trace_out = trace;
    return PLLM_OK;
fail_memory:
    pllm_trace_close(trace);
    return pllm_fail_memory("a trace", access_count * sizeof *accesses);
}

/* ---- text ---- */

typedef struct trace_reader {
    const char *at, *end;
    uint64_t line;
} trace_reader;

/* Skips blanks and comments, and line ends too unless stay. */
static void skip_blank(trace_reader *reader, int stay)
{
    while (reader->at < reader->end) {
        char c = *reader->at;
        if (c == '#') {
            while (reader->at < reader->end && *reader->at != '\n') reader->at++;
        } else if (c == '\n') {
            if (stay) return;
            reader->line++;
            reader->at++;
        } else if (c == ' ' || c == '\t' || c == '\r') {
            reader->at++;
        } else {
            return;
        }
    }
}

static int fail_line(const trace_reader *reader, const char *what)
{
    return pllm_fail(PLLM_EINVAL, 0, "line %llu of a trace: %s", (unsigned long long)reader->line,
                     what);
}

static int read_word(trace_reader *reader, const char *word)
{
    skip_blank(reader, 0);
    size_t length = strlen(word);
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length)) return 0;
    const char *after = reader->at + length;
    if (after < reader->end && *after != ' ' && *after != '\n' && *after != '\r' && *after != '\t')
        return 0;
    reader->at = after;
    return 1;
}

static int read_number(trace_reader *reader, uint32_t *number_out)
{
    uint64_t number = 0;
    const char *start = reader->at;
    for (; reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9'; reader->at++) {
        number = number * 10 + (uint64_t)(*reader->at - '0');
        if (number >= UINT32_MAX) return 0;
    }
    *number_out = (uint32_t)number;
    return reader->at > start;
}

static int read_spaced_number(trace_reader *reader, uint32_t *number_out)
{
    skip_blank(reader, 1);
    return read_number(reader, number_out);
}

static int append_run(pllm_trace *trace, uint64_t *room, uint32_t first, uint32_t last)
{
    uint64_t count = (uint64_t)last - first + 1, needed = trace->access_count + count;
    if (needed > PLLM_TRACE_ACCESSES)
        return pllm_fail(PLLM_ELIMIT, 0, "a trace has more than %d accesses", PLLM_TRACE_ACCESSES);
    if (needed > *room) {
        uint64_t wanted = needed + needed / 2 + 64;
        uint32_t *grown = pllm_grow(trace->context, trace->accesses,
                                    trace->access_count * sizeof *grown, wanted * sizeof *grown);
        if (!grown) return pllm_fail_memory("a trace", wanted * sizeof *grown);
        trace->accesses = grown;
        *room = wanted;
    }
    for (uint32_t page = first; page <= last; page++) trace->accesses[trace->access_count++] = page;
    return PLLM_OK;
}

static int read_ranks(trace_reader *reader, pllm_trace *trace)
{
    while (read_word(reader, "rank")) {
        uint32_t page, rank;
        if (!read_spaced_number(reader, &page) || !read_spaced_number(reader, &rank))
            return fail_line(reader, "a rank is 'rank PAGE RANK'");
        if (page >= trace->page_count) return fail_line(reader, "a rank of a page beyond 'pages'");
        if (!trace->ranks) {
            trace->ranks =
                pllm_alloc_array(trace->context, trace->page_count, sizeof *trace->ranks);
            if (!trace->ranks) return pllm_fail_memory("a trace", trace->page_count * 4ull);
            for (uint32_t i = 0; i < trace->page_count; i++) trace->ranks[i] = i;
        }
        trace->ranks[page] = rank;
    }
    return PLLM_OK;
}

static int read_accesses(trace_reader *reader, pllm_trace *trace)
{
    uint64_t room = 0;
    for (;;) {
        skip_blank(reader, 0);
        if (reader->at == reader->end) return PLLM_OK;
        uint32_t first, last;
        if (!read_number(reader, &first)) return fail_line(reader, "a page number was expected");
        last = first;
        if (reader->at < reader->end && *reader->at == '-') {
            reader->at++;
            if (!read_number(reader, &last) || last < first)
                return fail_line(reader, "a run is FIRST-LAST, ascending");
        }
        if (last >= trace->page_count)
            return fail_line(reader, "a page number beyond what 'pages' says");
        int status = append_run(trace, &room, first, last);
        if (status < 0) return status;
    }
}

int pllm_trace_parse(const pllm_context *context, const char *text, uint64_t bytes,
                     pllm_trace **trace_out)
{
    *trace_out = NULL;
    trace_reader reader = {text, text + bytes, 1};
    uint32_t version, page_count;
    if (!read_word(&reader, "pagedllm") || !read_word(&reader, "trace") ||
        !read_spaced_number(&reader, &version) || version != 1)
        return fail_line(&reader, "it should begin with 'pagedllm trace 1'");
    if (!read_word(&reader, "pages") || !read_spaced_number(&reader, &page_count))
        return fail_line(&reader, "'pages N' was expected");
    pllm_trace *trace = NULL;
    int status = trace_new(context, page_count, &trace);
    if (status < 0) return status;
    status = read_ranks(&reader, trace);
    if (status == PLLM_OK) status = read_accesses(&reader, trace);
    if (status < 0) {
        pllm_trace_close(trace);
        return status;
    }
    *trace_out = trace;
    return PLLM_OK;
}

int pllm_trace_read(const pllm_context *context, const char *path, pllm_trace **trace_out)
{
    *trace_out = NULL;
    FILE *file = fopen(path, "rb");
    if (!file) {
        int native = errno;
        return pllm_fail(PLLM_EIO, native, "%s cannot be read: %s", path, strerror(native));
    }
    char *text = NULL;
    uint64_t bytes = 0, room = 0;
    int status = PLLM_OK;
    for (size_t got = 1; got > 0; bytes += got) {
        if (room - bytes < 4096) {
            uint64_t wanted = room * 2 + 65536;
            char *grown = pllm_grow(context, text, bytes, wanted);
            if (!grown) {
                status = pllm_fail_memory("a trace", wanted);
                goto done;
            }
            text = grown;
            room = wanted;
        }
        got = fread(text + bytes, 1, room - bytes, file);
    }
    if (ferror(file))
        status = pllm_fail(PLLM_EIO, errno, "%s cannot be read: %s", path, strerror(errno));
    else if ((status = pllm_trace_parse(context, text, bytes, trace_out)) == PLLM_EINVAL)
        pllm_fail(status, 0, "%s: %s", path, pllm_last_error()->text);
done:
    pllm_free(context, text);
    fclose(file);
    return status;
}

int pllm_trace_write(const pllm_trace *trace, const char *path)
{
    FILE *file = fopen(path, "wb");
    if (!file) {
        int native = errno;
        return pllm_fail(PLLM_EIO, native, "%s cannot be written: %s", path, strerror(native));
    }
    fprintf(file, "pagedllm trace 1\npages %u\n", trace->page_count);
    for (uint32_t page = 0; trace->ranks && page < trace->page_count; page++)
        if (trace->ranks[page] != page) fprintf(file, "rank %u %u\n", page, trace->ranks[page]);
    for (uint64_t i = 0, on_line = 0; i < trace->access_count; on_line++) {
        uint32_t first = trace->accesses[i], last = first;
        for (i++; i < trace->access_count && trace->accesses[i] == last + 1; i++) last++;
        char before = on_line == 0 ? 0 : on_line % 12 ? ' ' : '\n';
        if (before) fputc(before, file);
        if (first == last)
            fprintf(file, "%u", first);
        else
            fprintf(file, "%u-%u", first, last);
    }
    fputc('\n', file);
    int bad = ferror(file), native = errno;
    if (fclose(file) != 0) bad = 1, native = errno;
    return bad ? pllm_fail(PLLM_EIO, native, "%s cannot be written: %s", path, strerror(native))
               : PLLM_OK;
}

/* ---- replay ---- */

static int check_frames(uint32_t frame_count)
{
    return frame_count ? PLLM_OK : pllm_fail(PLLM_EINVAL, 0, "a replay needs at least one frame");
}

int pllm_replay_policy(const pllm_trace *trace, pllm_policy_kind kind, uint32_t frame_count,
                       uint64_t *hits_out)
{
    *hits_out = 0;
    int status = check_frames(frame_count);
    if (status < 0 || !trace->access_count) return status;
    uint64_t bytes = pllm_policy_bytes(trace->page_count);
    void *memory = pllm_alloc(trace->context, bytes);
    if (!memory) return pllm_fail_memory("a replay", bytes);
    pllm_policy policy;
    pllm_policy_init(&policy, kind, trace->page_count, frame_count, memory);
    for (uint32_t page = 0; page < trace->page_count; page++)
        policy.rank[page] = trace->ranks ? trace->ranks[page] : page;
    uint32_t resident = 0;
    for (uint64_t i = 0; i < trace->access_count; i++) {
        uint32_t page = trace->accesses[i];
        if (pllm_policy_is_resident(&policy, page)) {
            ++*hits_out;
            pllm_policy_access(&policy, page);
            continue;
        }
        if (resident == frame_count)
            pllm_policy_leave(&policy, pllm_policy_victim(&policy, NULL, NULL), 1);
        else
            resident++;
        pllm_policy_arrive(&policy, page, 0);
    }
    pllm_free(trace->context, memory);
    return PLLM_OK;
}

typedef struct optimum {
    uint32_t *next;  /* by access: when its page is needed again; NONE: never */
    uint32_t *key;   /* by page: when it is needed next, while resident */
    uint32_t *index; /* by page: in the heap, NONE if not resident */
    uint32_t *heap;  /* pages, the latest need first */
    uint32_t count;
} optimum;

static void optimum_put(optimum *state, uint32_t index, uint32_t page)
{
    state->heap[index] = page;
    state->index[page] = index;
}

static void optimum_rise(optimum *state, uint32_t index, uint32_t page)
{
    while (index > 0) {
        uint32_t parent = (index - 1) / 2, other = state->heap[parent];
        if (state->key[other] >= state->key[page]) break;
        optimum_put(state, index, other);
        index = parent;
    }
    optimum_put(state, index, page);
}

static void optimum_replace_root(optimum *state, uint32_t page)
{
    uint32_t index = 0;
    state->index[state->heap[0]] = NONE;
    for (uint32_t child; (child = 2 * index + 1) < state->count; index = child) {
        if (child + 1 < state->count &&
            state->key[state->heap[child + 1]] > state->key[state->heap[child]])
            child++;
        if (state->key[state->heap[child]] <= state->key[page]) break;
        optimum_put(state, index, state->heap[child]);
    }
    optimum_put(state, index, page);
}

static uint64_t optimum_run(optimum *state, const pllm_trace *trace, uint32_t frame_count)
{
    uint64_t hits = 0;
    for (uint32_t page = 0; page < trace->page_count; page++) state->key[page] = NONE;
    for (uint64_t i = trace->access_count; i-- > 0;) {
        state->next[i] = state->key[trace->accesses[i]];
        state->key[trace->accesses[i]] = (uint32_t)i;
    }
    for (uint32_t page = 0; page < trace->page_count; page++) state->index[page] = NONE;
    for (uint64_t i = 0; i < trace->access_count; i++) {
        uint32_t page = trace->accesses[i];
        state->key[page] = state->next[i];
        if (state->index[page] != NONE) {
            hits++;
            optimum_rise(state, state->index[page], page);
        } else if (state->count < frame_count) {
            optimum_rise(state, state->count++, page);
        } else {
            optimum_replace_root(state, page);
        }
    }
    return hits;
}

int pllm_replay_optimum(const pllm_trace *trace, uint32_t frame_count, uint64_t *hits_out)
{
    *hits_out = 0;
    int status = check_frames(frame_count);
    if (status < 0 || !trace->access_count) return status;
    uint32_t frames = frame_count < trace->page_count ? frame_count : trace->page_count;
    optimum state = {
        .next = pllm_alloc_array(trace->context, trace->access_count, sizeof(uint32_t)),
        .key = pllm_alloc_array(trace->context, trace->page_count, sizeof(uint32_t)),
        .index = pllm_alloc_array(trace->context, trace->page_count, sizeof(uint32_t)),
        .heap = pllm_alloc_array(trace->context, frames, sizeof(uint32_t)),
    };
    if (state.next && state.key && state.index && state.heap)
        *hits_out = optimum_run(&state, trace, frames);
    else
        status = pllm_fail_memory("a replay", trace->access_count * sizeof(uint32_t));
    pllm_free(trace->context, state.heap);
    pllm_free(trace->context, state.index);
    pllm_free(trace->context, state.key);
    pllm_free(trace->context, state.next);
    return status;
}
