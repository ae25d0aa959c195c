/* logits.c - pagedllm logits: the logits of every position, written as they are computed. */
#include <stdlib.h>
#include "base/context.h"
#include "cli/cli.h"

typedef struct output {
    npy_writer writer;
    int status;
} output;

static int write_row(void *user, uint32_t item, uint32_t position, const float *logits)
{
    output *out = user;
    (void)item;
    (void)position;
    out->status = cli_interrupted() ? cli_canceled() : npy_write_row(&out->writer, logits);
    return out->status < 0;
}

static int write_all(const pllm_settings *settings, pllm_engine *engine, const uint32_t *ids,
                     uint32_t count)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    int status = pllm_engine_info_get(engine, &info);
    if (status < 0) return status;
    if (count > info.context_max)
        return pllm_fail(PLLM_ELIMIT, 0, "%s holds %u ids; the model's context is %u",
                         settings->ids, count, info.context_max);
    pllm_sequence *sequence;
    status = pllm_sequence_open(engine, &sequence);
    if (status < 0) return status;
    output out = {.status = PLLM_OK};
    status = npy_open(&out.writer, settings->output, count, info.vocab_size);
    if (status == PLLM_OK) {
        pllm_step_item item = {.sequence = sequence, .ids = ids, .token_count = count, .logits = 2};
        status = pllm_engine_step(engine, &item, 1, write_row, &out);
        pllm_error kept = *pllm_last_error();
        int finished = npy_finish(&out.writer);
        if (out.status < 0 && out.status != PLLM_ECANCELED)
            status = pllm_fail(PLLM_EIO, kept.native, "%s could not be written to the end",
                               settings->output);
        else if (cli_interrupted())
            status = cli_canceled();
        else if (status < 0)
            pllm_fail(kept.status, kept.native, "%s", kept.text);
        else
            status = finished;
    }
    pllm_sequence_close(sequence);
    return status < 0 ? status : cli_stats(settings, engine, NULL);
}

int command_logits(const pllm_settings *settings)
{
    if (!settings->ids || !settings->output)
        return pllm_fail(PLLM_EINVAL, 0, "logits needs --ids FILE and --output FILE.npy");
    uint32_t *ids, count;
    int status = cli_read_ids(settings->ids, &ids, &count);
    if (status < 0) return status;
    pllm_engine *engine;
    status = cli_engine_open(settings, 1, 0, &engine);
    if (status == PLLM_OK) status = write_all(settings, engine, ids, count);
    pllm_engine_close(engine);
    free(ids);
    return status;
}
