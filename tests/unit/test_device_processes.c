/* Memory that two processes share: chunks by descriptors on the host device and on the fake CUDA
 * driver, plain allocations by legacy handle and offset on the latter. The other process is this
 * program run anew, since a driver's state does not survive fork(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "failing_context.h"
#include "../fake/fake_cuda.h"

#define MEBI ((uint64_t)1 << 20)
#define FAKE PLLM_BINARY_DIR "/tests/libfake_cuda.so"

static pllm_device *open_kind(const pllm_context *context, int cuda)
{
    pllm_device *device = NULL;
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = FAKE, .nvml = FAKE};
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = 16 * MEBI};
    int status = cuda ? pllm_device_open_cuda(context, &options, &device)
                      : pllm_device_open_host(context, &host, &device);
    if (status < 0) fprintf(stderr, "%s\n", pllm_last_error()->text);
    return device;
}

/* ---- the other process: its exit status says how far it came ---- */

/* Expects bytes of value at va, and writes value + 1 unless that must be refused. */
static int look(pllm_device *device, pllm_va va, uint64_t bytes, int value, int read_only)
{
    const pllm_device_ops *ops = device->ops;
    pllm_stream *stream;
    unsigned char *seen = malloc(bytes);
    int result = 20;
    if (!seen || ops->stream_open(device, &stream) < 0) goto out;
    result = 21;
    if (pllm_device_read(device, stream, va, bytes, seen) < 0) goto out_stream;
    result = 22;
    for (uint64_t i = 0; i < bytes; i++)
        if (seen[i] != value) goto out_stream;
    result = 23;
    int status = ops->fill(device, stream, va, bytes, (uint8_t)(value + 1));
    if (status != (read_only ? PLLM_EPERM : PLLM_OK)) goto out_stream;
    result = ops->stream_sync(device, stream) == PLLM_OK ? 0 : 24;
out_stream:
    ops->stream_close(device, stream);
out:
    free(seen);
    return result;
}

static int child_chunk(pllm_device *device, char **words)
{
    const pllm_device_ops *ops = device->ops;
    int fd = atoi(words[0]), read_only = atoi(words[1]), value = atoi(words[2]);
    pllm_chunk *chunk;
    pllm_va va;
    if (ops->chunk_import(device, fd, MEBI, (uint32_t)read_only, &chunk) < 0) return 10;
    if (ops->reserve(device, MEBI, &va) < 0) return 11;
    if (ops->map(device, va, &chunk, 1) < 0) return 12;
    int result = look(device, va, MEBI, value, read_only);
    ops->unmap(device, va, chunk);
    ops->chunk_destroy(device, chunk);
    ops->release(device, va, MEBI);
    return result;
}

static int child_plain(pllm_device *device, char **words)
{
    uint8_t handle[PLLM_CUDA_IPC_BYTES];
    uint64_t offset = strtoull(words[1], NULL, 10), bytes;
    int value = atoi(words[2]);
    pllm_va va, again;
    for (int i = 0; i < PLLM_CUDA_IPC_BYTES; i++) {
        unsigned byte;
        if (sscanf(words[0] + 2 * i, "%2x", &byte) != 1) return 10;
        handle[i] = (uint8_t)byte;
    }
    if (pllm_cuda_ipc_open(device, handle, &va, &bytes) < 0) return 11;
    if (bytes != 2 * MEBI) return 12;
    if (pllm_cuda_ipc_open(device, handle, &again, NULL) < 0 || again != va) return 13;
    pllm_cuda_ipc_close(device, again); /* counted: still open */
    int result = look(device, va + offset, 4096, value, 0);
    pllm_cuda_ipc_close(device, va);
    if (result == 0 && look(device, va + offset, 16, value, 0) != 21) result = 14; /* gone */
    pllm_cuda_ipc_close(device, va); /* once too often: none of ours any more */
    return result;
}

static int child(int argc, char **argv)
{
    if (argc < 6) return 1;
    int cuda = strcmp(argv[2], "cuda") == 0;
    fake_cuda *fake = cuda ? fake_cuda_load(FAKE) : NULL;
    pllm_device *device = open_kind(NULL, cuda);
    if (!device || (cuda && !fake)) return 2;
    int result = strcmp(argv[3], "chunk") == 0 ? child_chunk(device, argv + 4)
                                               : child_plain(device, argv + 4);
    pllm_device_close(device);
    return result == 0 && fake && fake->live != 0 ? 3 : result;
}

static int run_child(const char *device, const char *kind, const char *a, const char *b,
                     const char *c)
{
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "test", "child", device, kind, a, b, c, (char *)NULL);
        _exit(126);
    }
    int result;
    assert_true(pid > 0 && waitpid(pid, &result, 0) == pid);
    return WIFEXITED(result) ? WEXITSTATUS(result) : 255;
}

/* ---- this one ---- */

typedef struct block {
    pllm_va va;
    pllm_chunk *chunk;
} block;

static void fill(pllm_device *device, pllm_stream *stream, pllm_va va, uint64_t bytes,
                 uint8_t value)
{
    assert_int_equal(device->ops->fill(device, stream, va, bytes, value), PLLM_OK);
    assert_int_equal(device->ops->stream_sync(device, stream), PLLM_OK);
}

static uint8_t byte_at(pllm_device *device, pllm_stream *stream, pllm_va va)
{
    uint8_t byte = 0;
    assert_int_equal(pllm_device_read(device, stream, va, 1, &byte), PLLM_OK);
    return byte;
}

static void chunks_are_shared_by_descriptor(void **state)
{
    (void)state;
    for (int cuda = 0; cuda < 2; cuda++) {
        failing_context memory;
        failing_context_init(&memory, FAILING_NEVER);
        pllm_device *device = open_kind(&memory.context, cuda);
        assert_non_null(device);
        const pllm_device_ops *ops = device->ops;
        pllm_stream *stream;
        block b;
        assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
        assert_int_equal(ops->reserve(device, MEBI, &b.va), PLLM_OK);
        assert_int_equal(ops->chunk_create(device, MEBI, &b.chunk), PLLM_OK);
        assert_int_equal(ops->map(device, b.va, &b.chunk, 1), PLLM_OK);
        for (uint32_t read_only = 0; read_only < 2; read_only++) {
            char fd_text[16], value[16];
            int exported, fd;
            assert_int_equal(ops->chunk_export(device, b.chunk, read_only, &exported), PLLM_OK);
            fd = dup(exported); /* without close-on-exec: the child has it by its number */
            close(exported);
            snprintf(fd_text, sizeof fd_text, "%d", fd);
            snprintf(value, sizeof value, "%u", 40 + read_only);
            fill(device, stream, b.va, MEBI, (uint8_t)(40 + read_only));
            const char *name = cuda ? "cuda" : "host";
            assert_int_equal(run_child(name, "chunk", fd_text, read_only ? "1" : "0", value), 0);
            assert_int_equal(byte_at(device, stream, b.va + MEBI - 1), 41);
            if (read_only) /* a reader that wants more gets nothing; a GPU can't tell */
                assert_int_equal(run_child(name, "chunk", fd_text, "0", value), cuda ? 0 : 10);
            close(fd);
        }
        ops->unmap(device, b.va, b.chunk);
        ops->chunk_destroy(device, b.chunk);
        ops->release(device, b.va, MEBI);
        ops->stream_close(device, stream);
        pllm_device_close(device);
        failing_context_check(&memory);
    }
}

static void hex(const uint8_t handle[PLLM_CUDA_IPC_BYTES], char text[2 * PLLM_CUDA_IPC_BYTES + 1])
{
    for (int i = 0; i < PLLM_CUDA_IPC_BYTES; i++) snprintf(text + 2 * i, 3, "%02x", handle[i]);
}

static void plain_memory_is_shared_by_handle_and_offset(void **state)
{
    (void)state;
    fake_cuda *fake = fake_cuda_load(FAKE);
    failing_context memory;
    failing_context_init(&memory, FAILING_NEVER);
    pllm_device *device = open_kind(&memory.context, 1);
    assert_true(fake && device);
    pllm_stream *stream;
    pllm_va va, none;
    uint8_t handle[PLLM_CUDA_IPC_BYTES];
    char text[2 * PLLM_CUDA_IPC_BYTES + 1];
    uint64_t offset;
    assert_int_equal(device->ops->stream_open(device, &stream), PLLM_OK);
    assert_int_equal(pllm_cuda_plain_alloc(device, 2 * MEBI - 100, &va), PLLM_OK);
    fill(device, stream, va, 2 * MEBI, 1);
    fill(device, stream, va + 512, 4096, 60);
    assert_int_equal(pllm_cuda_ipc_export(device, va + 512, handle, &offset), PLLM_OK);
    assert_int_equal(offset, 512); /* the handle is the whole allocation's */
    hex(handle, text);
    assert_int_equal(run_child("cuda", "plain", text, "512", "60"), 0);
    assert_int_equal(byte_at(device, stream, va + 512 + 4095), 61);
    assert_int_equal(byte_at(device, stream, va + 511), 1);
    assert_int_equal(byte_at(device, stream, va + 512 + 4096), 1);
    assert_int_equal(pllm_cuda_ipc_open(device, handle, &none, NULL), PLLM_EINVAL); /* our own */
    assert_int_equal(none, 0);
    pllm_cuda_plain_free(device, va);
    assert_int_equal(run_child("cuda", "plain", text, "512", "60"), 11); /* its memory is gone */
    handle[0] ^= 1;
    assert_int_equal(pllm_cuda_ipc_open(device, handle, &none, NULL), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_ipc_export(device, va, handle, NULL), PLLM_EINVAL);
    device->ops->stream_close(device, stream);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
    failing_context_check(&memory);
}

static void plain_memory_counts_and_is_refused_like_chunks(void **state)
{
    (void)state;
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = FAKE, .nvml = FAKE, .capacity_bytes = 4 * MEBI};
    pllm_device *device, *faulty, *host = open_kind(NULL, 0);
    pllm_va va, more;
    pllm_chunk *chunk;
    pllm_device_info info;
    assert_int_equal(pllm_device_open_cuda(NULL, &options, &device), PLLM_OK);
    assert_int_equal(pllm_cuda_plain_alloc(host, MEBI, &va), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_plain_alloc(device, 0, &va), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_plain_alloc(device, UINT64_MAX, &va), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_plain_alloc(device, 3 * MEBI, &va), PLLM_OK);
    assert_int_equal(device->ops->info(device, &info), PLLM_OK);
    assert_int_equal(info.free_bytes, MEBI);
    assert_int_equal(pllm_cuda_plain_alloc(device, MEBI + 1, &more), PLLM_ENODEVMEM);
    assert_int_equal(device->ops->chunk_create(device, 2 * MEBI, &chunk), PLLM_ENODEVMEM);
    pllm_cuda_plain_free(device, va);
    pllm_cuda_plain_free(device, 0);
    assert_int_equal(device->ops->chunk_create(device, 4 * MEBI, &chunk), PLLM_OK);
    device->ops->chunk_destroy(device, chunk);
    /* Whatever the driver refuses leaves nothing. */
    fake_cuda *fake = fake_cuda_load(FAKE);
    fake->fail_call = "cuMemAlloc";
    fake->fail_at = fake->calls = 0;
    fake->fail_count = 1;
    fake->fail_code = 2;
    assert_int_equal(pllm_cuda_plain_alloc(device, 4 * MEBI, &va), PLLM_ENODEVMEM);
    assert_int_equal(pllm_cuda_plain_alloc(device, 4 * MEBI, &va), PLLM_OK);
    fake->fail_code = 0;
    pllm_cuda_plain_free(device, va);
    assert_int_equal(pllm_device_open_faulty(NULL, device, NULL, &faulty), PLLM_OK);
    pllm_faulty_device_arm(faulty, 0);
    assert_int_equal(pllm_cuda_plain_alloc(faulty, MEBI, &va), PLLM_EDEVICE);
    assert_int_equal(pllm_cuda_plain_alloc(faulty, MEBI, &va), PLLM_OK);
    pllm_cuda_plain_free(faulty, va);
    pllm_device_close(faulty);
    pllm_device_close(device);
    pllm_device_close(host);
    assert_int_equal(fake->live, 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "child") == 0) return child(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_are_shared_by_descriptor),
        cmocka_unit_test(plain_memory_is_shared_by_handle_and_offset),
        cmocka_unit_test(plain_memory_counts_and_is_refused_like_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
