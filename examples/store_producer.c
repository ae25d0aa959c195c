/* store_producer.c - a program that fills a tensor which another one reads meanwhile.
 *
 *     pagedllm store serve &
 *     cc store_producer.c $(pkg-config --cflags --libs pagedllm) -o store_producer
 *     ./store_producer rows & ./store_consumer rows
 *
 * The tensor is [ROWS, COLUMNS] of f32, on the host device. It is made here, or opened if somebody
 * made it already (store_redis.py does, through Redis). Its fence counts the rows that are
 * complete. It is kept: the consumer may come later, and deletes it. */
#include <stdio.h>
#include <pagedllm/tensor_store.h>

enum { ROWS = 1000, COLUMNS = 1024 };

static int failed(const char *what)
{
    fprintf(stderr, "store_producer: %s: %s\n", what, pllm_last_error()->text);
    return 1;
}

static int open_or_create(pllm_store *store, const char *name, pllm_store_tensor **tensor)
{
    const pllm_store_spec spec = {.struct_bytes = sizeof spec,
                                  .dtype = PLLM_STORE_F32,
                                  .rank = 2,
                                  .shape = {ROWS, COLUMNS},
                                  .flags = PLLM_STORE_KEPT};
    int status = pllm_store_create(store, name, &spec, tensor);
    return status == PLLM_EEXIST ? pllm_store_open_tensor(store, name, 1, tensor) : status;
}

static int produce(pllm_store_tensor *tensor)
{
    float *data = pllm_store_tensor_data(tensor); /* shared memory: no copy, no message */
    if (!data || pllm_store_tensor_bytes(tensor) != sizeof *data * ROWS * COLUMNS) {
        fprintf(stderr, "store_producer: the tensor has another size, or is on a GPU\n");
        return 1;
    }
    for (int row = 0; row < ROWS; row++) {
        for (int i = 0; i < COLUMNS; i++) data[row * COLUMNS + i] = (float)(row + i);
        /* Everything written so far is there for whoever waits for row + 1. */
        if (pllm_store_signal(tensor, NULL, (uint64_t)row + 1) < 0) return failed("signal");
    }
    printf("produced %d rows\n", ROWS);
    return 0;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "rows";
    pllm_store *store = NULL;
    pllm_store_tensor *tensor = NULL;
    int result;
    if (pllm_store_open(NULL, NULL, &store) < 0)
        result = failed("no store");
    else if (open_or_create(store, name, &tensor) < 0)
        result = failed(name);
    else
        result = produce(tensor);
    pllm_store_close_tensor(tensor);
    pllm_store_close(store);
    return result;
}
