/* generate.c - a model answers under a budget: 4 MB of KV blocks on the device, the rest in host
 * memory and on disk.
 *
 *     cc generate.c $(pkg-config --cflags --libs pagedllm) -o generate
 *     ./generate model.gguf "The capital of France is"
 *
 * run: "$MODEL" "The capital of France is"
 */
#include <stdio.h>
#include <string.h>
#include <pagedllm/engine.h>

static int failed(const char *what)
{
    fprintf(stderr, "generate: %s: %s\n", what, pllm_last_error()->text);
    return 1;
}

static int print(void *user, const char *text, uint64_t bytes)
{
    (void)user;
    return fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout) != 0;
}

static int answer(pllm_engine *engine, pllm_sequence *sequence, const char *prompt)
{
    uint32_t *ids, id_count;
    if (pllm_engine_encode(engine, prompt, strlen(prompt), 0, &ids, &id_count) < 0)
        return failed("encode");
    pllm_generate_options options = {
        .struct_bytes = sizeof options, .max_tokens = 24, .text = print};
    pllm_generate_result result;
    int status = pllm_generate(engine, sequence, ids, id_count, &options, &result);
    pllm_engine_free(engine, ids);
    if (status < 0) return failed("generate");
    printf("\n(%u tokens read, %u written)\n", result.prompt_tokens, result.generated_tokens);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: generate MODEL PROMPT\n");
        return 2;
    }
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .kv_limit_bytes = 4000000,
                                   .host_memory_bytes = 64000000,
                                   .nvme_size_bytes = 256000000,
                                   .nvme_path = "."};
    pllm_engine *engine;
    if (pllm_engine_open(NULL, argv[1], &options, &engine) < 0) return failed("open");
    pllm_sequence *sequence;
    int status = pllm_sequence_open(engine, &sequence) < 0 ? failed("sequence")
                                                           : answer(engine, sequence, argv[2]);
    pllm_engine_close(engine); /* and its sequences */
    return status;
}
