/* generate.c - a prompt in, tokens out, one sequence: sampling, stop strings, whole characters.
 *
 * Text is held back while it may still become a stop string: the tail that is a proper prefix of
 * one stays in a buffer, and everything before it is handed on. */
#include <string.h>
#include "base/clock.h"
#include "engine/engine_internal.h"

typedef struct outlet {
    const pllm_generate_options *options;
    const pllm_context *context;
    pllm_utf8_stream characters;
    char *held;
    uint64_t held_bytes, held_room;
    int canceled, stopped;
} outlet;

typedef struct chooser {
    pllm_sampling sampling;
    uint64_t seed_state;
    uint32_t id;
} chooser;

/* One step of the sequence; the token after it ends up in choice->id. */
static int take_step(pllm_engine *engine, pllm_step_item *item, chooser *choice)
{
    item->logits = LOGITS_NEXT;
    if (choice->sampling.temperature > 0) {
        choice->sampling.random = pllm_sampling_draw(&choice->seed_state);
        item->sampling = &choice->sampling;
    }
    int status = pllm_engine_step(engine, item, 1, NULL, NULL);
    choice->id = item->next_id;
    return status;
}

static void hand_on(outlet *out, uint64_t bytes)
{
    if (bytes == 0) return;
    if (out->options->text && !out->canceled)
        out->canceled = out->options->text(out->options->user, out->held, bytes) != 0;
    memmove(out->held, out->held + bytes, out->held_bytes - bytes);
    out->held_bytes -= bytes;
}

/* Where the first stop string begins, or held_bytes. */
static uint64_t find_stop(const outlet *out)
{
    uint64_t first = out->held_bytes;
    for (uint32_t i = 0; i < out->options->stop_count; i++) {
        size_t length = strlen(out->options->stop[i]);
        if (length == 0 || length > out->held_bytes) continue;
        const char *at = memmem(out->held, out->held_bytes, out->options->stop[i], length);
        if (at && (uint64_t)(at - out->held) < first) first = (uint64_t)(at - out->held);
    }
    return first;
}

/* Bytes at the end that might be the beginning of a stop string. */
static uint64_t undecided(const outlet *out)
{
    uint64_t longest = 0;
    for (uint32_t i = 0; i < out->options->stop_count; i++) {
        size_t length = strlen(out->options->stop[i]);
        for (size_t tail = length ? length - 1 : 0; tail > longest; tail--)
            if (tail <= out->held_bytes &&
                memcmp(out->held + out->held_bytes - tail, out->options->stop[i], tail) == 0)
                longest = tail;
    }
    return longest;
}

static int emit(outlet *out, const char *piece, uint64_t bytes)
{
    uint64_t room = out->held_bytes + PLLM_UTF8_ROOM(bytes);
    if (room > out->held_room) {
        char *grown = pllm_grow(out->context, out->held, out->held_bytes, 2 * room);
        if (!grown) return pllm_fail_memory("generated text", 2 * room);
        out->held = grown;
        out->held_room = 2 * room;
    }
    out->held_bytes +=
        pllm_utf8_stream_push(&out->characters, piece, bytes, out->held + out->held_bytes);
    uint64_t stop = find_stop(out);
    if (stop < out->held_bytes) {
        out->held_bytes = stop; /* what follows is not the answer */
        out->stopped = 1;
        hand_on(out, stop);
        return PLLM_OK;
    }
    hand_on(out, out->held_bytes - undecided(out));
    return PLLM_OK;
}

static int finish(outlet *out)
{
    if (out->stopped) return PLLM_OK;
    char last[3];
    uint64_t bytes = pllm_utf8_stream_finish(&out->characters, last);
    if (bytes && out->held_bytes + bytes <= out->held_room) {
        memcpy(out->held + out->held_bytes, last, bytes);
        out->held_bytes += bytes;
    }
    hand_on(out, out->held_bytes);
    return PLLM_OK;
}

static int is_end(const pllm_engine *engine, uint32_t id)
{
    if (engine->tokenizer) return pllm_tokenizer_is_end(engine->tokenizer, id);
    for (uint32_t i = 0; i < engine->shape.eos_count; i++)
        if (engine->shape.eos_ids[i] == id) return 1;
    return 0;
}

static int run(pllm_engine *engine, pllm_sequence *sequence, const uint32_t *ids, uint32_t id_count,
               const pllm_generate_options *options, chooser *choice, outlet *out,
               pllm_generate_result *result)
{
    uint64_t started = pllm_clock_ns();
    pllm_step_item item = {.sequence = sequence, .ids = ids, .token_count = id_count};
    int status = options->max_tokens > 0 ? take_step(engine, &item, choice)
                                         : pllm_engine_step(engine, &item, 1, NULL, NULL);
    if (status < 0) return status;
    uint64_t now = pllm_clock_ns();
    result->prompt_tokens = id_count;
    result->prefill_ns = now - started;
    started = now;
    while (result->generated_tokens < options->max_tokens) {
        uint32_t id = choice->id;
        if (is_end(engine, id) && !options->ignore_end) {
            result->stop = PLLM_STOP_END;
            break;
        }
        result->generated_tokens++;
        if (options->token && options->token(options->user, id)) out->canceled = 1;
        if (engine->tokenizer && options->text) {
            uint32_t bytes;
            const char *piece = pllm_tokenizer_piece(engine->tokenizer, id, &bytes);
            if ((status = emit(out, piece, bytes)) < 0) return status;
        }
        if (out->stopped || out->canceled) {
            result->stop = out->stopped ? PLLM_STOP_STRING : PLLM_STOP_CANCELED;
            break;
        }
        if (result->generated_tokens == options->max_tokens) break;
        if (pllm_sequence_length(sequence) >= engine->context_max) {
            result->stop = PLLM_STOP_CONTEXT;
            break;
        }
        item = (pllm_step_item){.sequence = sequence, .ids = &id, .token_count = 1, .generated = 1};
        if ((status = take_step(engine, &item, choice)) < 0) return status;
    }
    result->decode_ns = pllm_clock_ns() - started;
    return finish(out);
}

int pllm_generate(pllm_engine *engine, pllm_sequence *sequence, const uint32_t *ids,
                  uint32_t id_count, const pllm_generate_options *options,
                  pllm_generate_result *result_out)
{
    pllm_generate_result ignored, *result = result_out ? result_out : &ignored;
    memset(result, 0, sizeof *result);
    if (!options || options->struct_bytes < sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_generate_options.struct_bytes is %u, not %zu",
                         options ? options->struct_bytes : 0, sizeof *options);
    if (id_count == 0)
        return pllm_fail(PLLM_EINVAL, 0, "the prompt is empty: give at least one token");
    if (options->stop_count && !options->stop)
        return pllm_fail(PLLM_EINVAL, 0, "%u stop strings are announced, but none given",
                         options->stop_count);
    chooser choice = {.sampling = {.temperature = options->temperature,
                                   .top_p = options->top_p,
                                   .top_k = options->top_k},
                      .seed_state = options->seed};
    outlet out = {.options = options, .context = engine->context};
    int status = pllm_sampling_check(&choice.sampling); /* also when greedy */
    if (status < 0) return status;
    status = run(engine, sequence, ids, id_count, options, &choice, &out, result);
    pllm_free(engine->context, out.held);
    return status;
}
