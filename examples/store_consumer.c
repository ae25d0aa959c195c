/* store_consumer.c - a program that reads a tensor while another one fills it: store_producer.c.
 *
 * It waits until there is a tensor of that name, then for row after row, checks what it reads, and
 * deletes the tensor. Should the producer die, a wait says so at once instead of hanging. */
#include <poll.h>
#include <stdio.h>
#include <pagedllm/tensor_store.h>

enum { ROWS = 1000, COLUMNS = 1024, TRIES = 1000, WAIT_MS = 10000 };

static int failed(const char *what)
{
    fprintf(stderr, "store_consumer: %s: %s\n", what, pllm_last_error()->text);
    return 1;
}

/* pllm_store_watch would tell without asking again and again; this is shorter. */
static int open_when_there(pllm_store *store, const char *name, pllm_store_tensor **tensor)
{
    int status = PLLM_ENOTFOUND;
    for (int i = 0; i < TRIES && status == PLLM_ENOTFOUND; i++) {
        if (i > 0) poll(NULL, 0, 10);
        status = pllm_store_open_tensor(store, name, 0, tensor); /* for reading */
    }
    return status;
}

static int consume(pllm_store_tensor *tensor)
{
    const float *data = pllm_store_tensor_data(tensor);
    if (!data || pllm_store_tensor_bytes(tensor) != sizeof *data * ROWS * COLUMNS) {
        fprintf(stderr, "store_consumer: the tensor has another size, or is on a GPU\n");
        return 1;
    }
    double sum = 0;
    for (int row = 0; row < ROWS; row++) {
        if (pllm_store_wait(tensor, (uint64_t)row + 1, WAIT_MS) < 0) return failed("wait");
        for (int i = 0; i < COLUMNS; i++) {
            if (data[row * COLUMNS + i] != (float)(row + i)) {
                fprintf(stderr, "store_consumer: row %d is wrong at %d\n", row, i);
                return 1;
            }
            sum += data[row * COLUMNS + i];
        }
    }
    printf("consumed %d rows, their sum is %.0f\n", ROWS, sum);
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
    else if (open_when_there(store, name, &tensor) < 0)
        result = failed(name);
    else
        result = consume(tensor);
    if (result == 0 && pllm_store_delete(store, name) < 0) result = failed("delete");
    pllm_store_close_tensor(tensor);
    pllm_store_close(store);
    return result;
}
