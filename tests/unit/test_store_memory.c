/* The store's device memory on the host device and on the fake CUDA driver: what a tensor's memory
 * is made of, who may ever have it after another, what is ready, legacy slabs, spilling, adopting;
 * and random lives held against a plain model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "failing_context.h"
#include "store/memory.h"
#include "store_moves.h"
#include "tier/disk_sim.h"
#include "../fake/fake_cuda.h"

#define MEBI ((uint64_t)1 << 20)
#define FAKE PLLM_BINARY_DIR "/tests/libfake_cuda.so"

static const pllm_store_owner ann = {1000, 1000, 0600}, bob = {1001, 1001, 0600},
                              ann_open = {1000, 1000, 0640};

typedef struct fixture {
    failing_context memory;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream;
    pllm_budget *budget;
    pllm_budget_member *member;
    int cuda;
} fixture;

static int setup_kind(void **state, int cuda)
{
    fixture *f = calloc(1, sizeof *f);
    failing_context_init(&f->memory, FAILING_NEVER);
    const pllm_context *context = &f->memory.context;
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = FAKE, .nvml = FAKE};
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = 512 * MEBI};
    f->cuda = cuda;
    assert_int_equal(cuda ? pllm_device_open_cuda(context, &options, &f->device)
                          : pllm_device_open_host(context, &host, &f->device),
                     PLLM_OK);
    f->ops = f->device->ops;
    assert_int_equal(f->ops->stream_open(f->device, &f->stream), PLLM_OK);
    assert_int_equal(pllm_budget_open(context, 256 * MEBI, &f->budget), PLLM_OK);
    assert_int_equal(pllm_budget_join(f->budget, "store", 0, 256 * MEBI, &f->member), PLLM_OK);
    *state = f;
    return 0;
}

static int setup_host(void **state)
{
    return setup_kind(state, 0);
}

static int setup_cuda(void **state)
{
    return setup_kind(state, 1);
}

static int teardown(void **state)
{
    fixture *f = *state;
    assert_int_equal(pllm_budget_charged(f->member), 0);
    pllm_budget_leave(f->member);
    pllm_budget_close(f->budget);
    f->ops->stream_close(f->device, f->stream);
    pllm_device_close(f->device);
    failing_context_check(&f->memory);
    free(f);
    return 0;
}

/* ---- helpers ---- */

static pllm_store_memory *memory_open(fixture *f, uint64_t ready_bytes)
{
    pllm_store_memory *memory;
    pllm_store_memory_options options = {.struct_bytes = sizeof options,
                                         .ready_bytes = ready_bytes,
                                         .legacy_bytes_max = 64 * MEBI,
                                         .slab_bytes = 4 * MEBI,
                                         .spilled_bytes_max = 32 * MEBI};
    assert_int_equal(
        pllm_store_memory_open(&f->memory.context, f->device, f->member, &options, &memory),
        PLLM_OK);
    return memory;
}

static pllm_store_block *create(pllm_store_memory *memory, uint64_t bytes, uint32_t legacy,
                                const pllm_store_owner *owner)
{
    pllm_store_block *block;
    int status = pllm_store_memory_create(memory, bytes, legacy, owner, &block);
    if (status < 0) print_error("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
    pllm_store_memory_check(memory);
    return block;
}

/* Words that differ by place and by seed; whole words, so that sanitizers keep up. */
static void pattern(uint64_t *to, uint64_t bytes, uint8_t seed)
{
    for (uint64_t i = 0; i < (bytes + 7) / 8; i++)
        to[i] = (i + 1) * 0x9e3779b97f4a7c15u + seed * 0x0101010101010101u;
}

static void put(pllm_store_memory *memory, pllm_store_block *block, uint64_t bytes, uint8_t seed)
{
    uint64_t *from = malloc(bytes + 8);
    pattern(from, bytes, seed);
    assert_int_equal(pllm_store_block_write(memory, block, 0, bytes, from), PLLM_OK);
    free(from);
}

static void expect(pllm_store_memory *memory, pllm_store_block *block, uint64_t bytes, uint8_t seed)
{
    uint64_t *seen = malloc(bytes + 8), *wanted = malloc(bytes + 8);
    pattern(wanted, bytes, seed);
    assert_int_equal(pllm_store_block_read(memory, block, 0, bytes, seen), PLLM_OK);
    assert_int_equal(memcmp(seen, wanted, bytes), 0);
    free(wanted);
    free(seen);
}

static void expect_zero(pllm_store_memory *memory, pllm_store_block *block, uint64_t bytes)
{
    uint8_t *seen = malloc(bytes);
    memset(seen, 1, bytes);
    assert_int_equal(pllm_store_block_read(memory, block, 0, bytes, seen), PLLM_OK);
    assert_true(seen[0] == 0 && memcmp(seen, seen + 1, bytes - 1) == 0);
    free(seen);
}

static pllm_store_block_layout layout_of(const pllm_store_block *block)
{
    pllm_store_block_layout layout;
    pllm_store_block_layout_get(block, &layout);
    return layout;
}

static pllm_store_memory_stats stats_of(const pllm_store_memory *memory)
{
    pllm_store_memory_stats stats;
    pllm_store_memory_stats_get(memory, &stats);
    return stats;
}

/* Which physical memory the first piece is, where that can be seen. */
static uint64_t identity(const pllm_store_block *block)
{
    uint64_t bytes, value = 0;
    int fd;
    struct stat info;
    assert_int_equal(pllm_store_block_piece(block, 0, 0, &bytes, &fd), PLLM_OK);
    assert_int_equal(fstat(fd, &info), 0);
    if (S_ISREG(info.st_mode)) return info.st_ino;
    assert_int_equal(read(fd, &value, sizeof value), sizeof value); /* the fake's: a number */
    assert_int_equal(write(fd, &value, sizeof value), sizeof value);
    return value;
}

/* ---- what a tensor is made of ---- */

static void a_tensor_is_pieces_that_a_client_maps_in_a_row(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 0);
    const uint64_t bytes = 69 * MEBI + 5, sizes[] = {64 * MEBI, 4 * MEBI, 2 * MEBI};
    uint64_t charge;
    assert_int_equal(pllm_store_memory_measure(memory, bytes, 0, &charge), PLLM_OK);
    assert_int_equal(charge, 70 * MEBI);
    pllm_store_block *block = create(memory, bytes, 0, &ann);
    assert_int_equal(layout_of(block).piece_count, 3);
    assert_int_equal(layout_of(block).offset, 0);
    assert_int_equal(pllm_budget_charged(f->member), charge);
    pllm_chunk *chunks[3], *none;
    pllm_va va;
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t piece;
        int fd;
        assert_int_equal(pllm_store_block_piece(block, i, 1, &piece, &fd), PLLM_OK);
        assert_int_equal(piece, sizes[i]);
        assert_int_equal(f->ops->chunk_import(f->device, fd, piece, 0, &chunks[i]), PLLM_OK);
        assert_int_equal(pllm_store_block_piece(block, i, 0, &piece, &fd), PLLM_OK);
        if (!f->cuda) /* the one for reading is no more than that */
            assert_int_equal(f->ops->chunk_import(f->device, fd, piece, 0, &none), PLLM_EPERM);
    }
    uint64_t unused;
    int fd;
    assert_int_equal(pllm_store_block_piece(block, 3, 0, &unused, &fd), PLLM_EINVAL);
    assert_int_equal(fd, -1);
    assert_int_equal(f->ops->reserve(f->device, 70 * MEBI, &va), PLLM_OK);
    assert_int_equal(f->ops->map(f->device, va, chunks, 3), PLLM_OK);
    static const uint64_t places[] = {0, 64 * MEBI - 3, 68 * MEBI - 1, 69 * MEBI};
    for (uint8_t i = 0; i < 4; i++) { /* across the borders of pieces, both ways */
        uint8_t word[5] = {i, 2, 3, 4, (uint8_t)(9 + i)}, seen[5];
        assert_int_equal(pllm_store_block_write(memory, block, places[i], 5, word), PLLM_OK);
        assert_int_equal(pllm_device_read(f->device, f->stream, va + places[i], 5, seen), PLLM_OK);
        assert_memory_equal(word, seen, 5);
        word[0] = (uint8_t)(50 + i);
        assert_int_equal(pllm_device_write(f->device, f->stream, va + places[i], 5, word), PLLM_OK);
        assert_int_equal(pllm_store_block_read(memory, block, places[i], 5, seen), PLLM_OK);
        assert_memory_equal(word, seen, 5);
    }
    assert_int_equal(pllm_store_block_read(memory, block, bytes - 1, 2, &unused), PLLM_EINVAL);
    assert_int_equal(pllm_store_block_read(memory, block, bytes, 0, &unused), PLLM_OK);
    pllm_va at = va;
    for (uint32_t i = 0; i < 3; at += sizes[i++]) {
        f->ops->unmap(f->device, at, chunks[i]);
        f->ops->chunk_destroy(f->device, chunks[i]);
    }
    f->ops->release(f->device, va, 70 * MEBI);
    pllm_store_memory_free(memory, block, 0);
    pllm_store_memory_free(memory, NULL, 0);
    pllm_store_memory_close(memory);
    pllm_store_memory_close(NULL);
}

static void bad_requests_are_refused(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 0);
    pllm_store_block *block;
    uint64_t charge;
    assert_int_equal(pllm_store_memory_create(memory, 0, 0, &ann, &block), PLLM_EINVAL);
    assert_null(block);
    assert_int_equal(pllm_store_memory_create(memory, UINT64_MAX, 0, &ann, &block), PLLM_ELIMIT);
    assert_int_equal(pllm_store_memory_create(memory, UINT64_MAX, 1, &ann, &block), PLLM_ELIMIT);
    assert_int_equal(pllm_store_memory_measure(memory, (uint64_t)252 << 30, 0, &charge), PLLM_OK);
    assert_int_equal(pllm_store_memory_measure(memory, ((uint64_t)252 << 30) + 1, 0, &charge),
                     PLLM_ELIMIT);
    assert_int_equal(pllm_store_memory_create(memory, 257 * MEBI, 0, &ann, &block), PLLM_ENODEVMEM);
    assert_int_equal(pllm_store_memory_create(memory, MEBI, 1, &ann, &block),
                     f->cuda ? PLLM_OK : PLLM_EUNSUPPORTED);
    pllm_store_memory_free(memory, block, 0);
    assert_int_equal(stats_of(memory).block_count, 0);
    pllm_store_memory_close(memory);
    pllm_store_memory_options options = {.struct_bytes = sizeof options};
    static const uint64_t bad_pieces[] = {3 * MEBI, MEBI, 5};
    for (int i = 0; i < 3; i++) {
        options.piece_bytes_max = bad_pieces[i];
        assert_int_equal(
            pllm_store_memory_open(&f->memory.context, f->device, f->member, &options, &memory),
            PLLM_EINVAL);
        assert_null(memory);
    }
    options.struct_bytes = 3;
    assert_int_equal(pllm_store_memory_open(NULL, f->device, f->member, &options, &memory),
                     PLLM_EINVAL);
    assert_int_equal(pllm_store_memory_open(NULL, NULL, f->member, NULL, &memory), PLLM_EINVAL);
}

/* ---- who has it next ---- */

/* The memory of before reads as zero, whichever way it took through the stock. */
static void what_is_used_again_is_zero(void **state)
{
    fixture *f = *state;
    for (int way = 0; way < 3; way++) {
        pllm_store_memory *memory = memory_open(f, 16 * MEBI);
        pllm_store_block *block = create(memory, 4 * MEBI, 0, &ann);
        uint64_t same = identity(block);
        put(memory, block, 4 * MEBI, 3);
        pllm_store_memory_free(memory, block, 0);
        assert_int_equal(stats_of(memory).dirty_bytes, 4 * MEBI);
        if (way == 1) assert_int_equal(pllm_store_memory_tick(memory), 1); /* being zeroed */
        if (way == 2) pllm_store_memory_prepare(memory);
        uint64_t misses = stats_of(memory).ready_misses;
        block = create(memory, 4 * MEBI, 0, &ann);
        assert_int_equal(identity(block), same);
        assert_int_equal(stats_of(memory).ready_misses - misses, way == 2 ? 0 : 1);
        expect_zero(memory, block, 4 * MEBI);
        pllm_store_memory_free(memory, block, 0);
        pllm_store_memory_close(memory);
    }
}

/* Its descriptors may have been kept by whoever could open it: another never gets it. */
static void memory_is_used_again_by_its_owner_alone(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 8 * MEBI);
    pllm_store_block *held = create(memory, 4 * MEBI, 0, &ann);
    uint64_t anns = identity(held);
    /* As a client that kept what it was given, and says that it unmapped it. */
    uint64_t bytes;
    int fd, kept;
    assert_int_equal(pllm_store_block_piece(held, 0, 1, &bytes, &fd), PLLM_OK);
    kept = dup(fd);
    pllm_store_memory_free(memory, held, 0);
    pllm_store_memory_prepare(memory);
    pllm_store_block *others[] = {create(memory, 4 * MEBI, 0, &bob),
                                  create(memory, 4 * MEBI, 0, &ann_open)};
    for (int i = 0; i < 2; i++) {
        assert_int_not_equal(identity(others[i]), anns);
        put(memory, others[i], 4 * MEBI, (uint8_t)i);
        pllm_store_memory_free(memory, others[i], 0);
    }
    close(kept);
    pllm_store_memory_close(memory);
}

static void abandoned_memory_is_given_up(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 16 * MEBI);
    pllm_store_block *large = create(memory, 4 * MEBI, 0, &ann);
    pllm_store_block *a = create(memory, 1000, 0, &ann), *b = create(memory, 1000, 0, &ann);
    assert_int_equal(identity(a), identity(b));
    uint64_t piece = identity(large), area = identity(a);
    pllm_store_memory_free(memory, large, 1);
    assert_int_equal(stats_of(memory).dirty_bytes, 0);
    large = create(memory, 4 * MEBI, 0, &ann);
    if (!f->cuda) assert_int_not_equal(identity(large), piece); /* inode numbers are not reused */
    pllm_store_memory_free(memory, a, 1);
    a = create(memory, 1000, 0, &ann); /* b's piece takes no more */
    assert_int_not_equal(identity(a), area);
    assert_int_equal(identity(b), area);
    pllm_store_memory_free(memory, b, 0); /* and goes with b */
    assert_int_equal(stats_of(memory).dirty_bytes, 0);
    pllm_store_memory_free(memory, a, 0);
    assert_int_equal(stats_of(memory).dirty_bytes, 2 * MEBI);
    pllm_store_memory_free(memory, large, 0);
    pllm_store_memory_close(memory);
}

static void small_tensors_share_within_one_owner(void **state)
{
    fixture *f = *state;
    enum { COUNT = 20 };
    pllm_store_memory *memory = memory_open(f, 0);
    pllm_store_block *blocks[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        blocks[i] = create(memory, 1 + i * 700, 0, &ann);
        assert_int_equal(layout_of(blocks[i]).offset % 512, 0);
        assert_int_equal(layout_of(blocks[i]).piece_count, 1);
        assert_int_equal(identity(blocks[i]), identity(blocks[0]));
        put(memory, blocks[i], 1 + i * 700, (uint8_t)i);
    }
    pllm_store_block *bobs = create(memory, 100, 0, &bob);
    pllm_store_block *open = create(memory, 100, 0, &ann_open);
    assert_int_not_equal(identity(bobs), identity(blocks[0]));
    assert_int_not_equal(identity(open), identity(blocks[0]));
    assert_int_not_equal(identity(open), identity(bobs));
    assert_int_equal(pllm_budget_charged(f->member), 6 * MEBI);
    for (uint32_t i = 0; i < COUNT; i++) expect(memory, blocks[i], 1 + i * 700, (uint8_t)i);
    uint64_t offset = layout_of(blocks[4]).offset;
    pllm_store_memory_free(memory, blocks[4], 0);
    blocks[4] = create(memory, 1 + 4 * 700, 0, &ann);
    assert_int_equal(layout_of(blocks[4]).offset, offset); /* the same place, and clean */
    expect_zero(memory, blocks[4], 1 + 4 * 700);
    expect(memory, blocks[3], 1 + 3 * 700, 3);
    expect(memory, blocks[5], 1 + 5 * 700, 5);
    pllm_store_block *full[3] = {create(memory, MEBI, 0, &ann), create(memory, MEBI, 0, &ann)};
    assert_int_not_equal(identity(full[1]), identity(blocks[0])); /* there was room for one only */
    full[2] = create(memory, MEBI + 1, 0, &ann);                  /* too large to share */
    assert_int_equal(layout_of(full[2]).offset, 0);
    assert_int_equal(pllm_budget_charged(f->member), 10 * MEBI);
    for (uint32_t i = 0; i < 3; i++) pllm_store_memory_free(memory, full[i], 0);
    for (uint32_t i = 0; i < COUNT; i++) pllm_store_memory_free(memory, blocks[i], 0);
    pllm_store_memory_free(memory, bobs, 0);
    pllm_store_memory_free(memory, open, 0);
    assert_int_equal(pllm_budget_charged(f->member), 0);
    pllm_store_memory_close(memory);
}

/* ---- ready ---- */

static void ready_pieces_follow_what_is_asked_for(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 32 * MEBI);
    assert_int_equal(stats_of(memory).ready_bytes, 0);
    pllm_store_memory_prepare(memory);
    uint64_t first = stats_of(memory).ready_bytes;
    assert_true(first >= 24 * MEBI && first <= 32 * MEBI);
    assert_int_equal(pllm_budget_charged(f->member), first);
    assert_int_equal(pllm_store_memory_tick(memory), 0);
    for (int round = 0; round < 40; round++) { /* each a piece that nobody has had: bob's, ann's */
        pllm_store_block *block = create(memory, 8 * MEBI, 0, round % 2 ? &ann : &bob);
        pllm_store_memory_free(memory, block, 0);
        pllm_store_memory_prepare(memory);
        assert_true(stats_of(memory).ready_bytes <= 32 * MEBI);
        pllm_store_memory_check(memory);
    }
    uint64_t misses = stats_of(memory).ready_misses;
    pllm_store_block *blocks[3];
    for (int i = 0; i < 3; i++) blocks[i] = create(memory, 8 * MEBI, 0, &ann);
    assert_true(stats_of(memory).ready_misses - misses <= 1); /* nearly all are 8 MiB by now */
    for (int i = 0; i < 3; i++) pllm_store_memory_free(memory, blocks[i], 0);
    pllm_store_memory_prepare(memory);
    uint64_t ready = stats_of(memory).ready_bytes;
    assert_true(pllm_store_memory_trim(memory, 5 * MEBI) >= 5 * MEBI);
    assert_true(stats_of(memory).ready_bytes <= ready - 5 * MEBI);
    assert_int_equal(pllm_store_memory_tick(memory), 0); /* not taken again at once */
    pllm_store_memory_close(memory);
}

static void what_is_ready_makes_room_under_pressure(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 128 * MEBI);
    pllm_store_memory_prepare(memory);
    assert_true(stats_of(memory).ready_bytes >= 64 * MEBI);
    pllm_store_block *block = create(memory, 254 * MEBI, 0, &ann), *more; /* of 256 */
    assert_true(stats_of(memory).ready_bytes <= 2 * MEBI);
    assert_int_equal(pllm_store_memory_create(memory, 4 * MEBI, 0, &ann, &more), PLLM_ENODEVMEM);
    assert_null(more);
    pllm_store_memory_check(memory);
    assert_int_equal(pllm_store_memory_tick(memory), 0);
    pllm_store_memory_free(memory, block, 0);
    pllm_store_memory_close(memory);
}

/* ---- legacy ---- */

static void legacy_tensors_lie_in_slabs_of_one_owner(void **state)
{
    fixture *f = *state;
    if (!f->cuda) return; /* EUNSUPPORTED: bad_requests_are_refused */
    pllm_store_memory *memory = memory_open(f, 0);
    uint8_t handles[4][PLLM_STORE_LEGACY_HANDLE_BYTES];
    pllm_store_block *blocks[4] = {create(memory, 1000, 1, &ann), create(memory, 3 * MEBI, 1, &ann),
                                   create(memory, 100, 1, &bob), create(memory, 9 * MEBI, 1, &ann)};
    for (int i = 0; i < 4; i++) {
        pllm_store_block_layout layout = layout_of(blocks[i]);
        assert_int_equal(layout.legacy, 1);
        assert_int_equal(layout.piece_count, 0);
        assert_int_equal(layout.offset % 512, 0);
        assert_int_equal(pllm_store_block_handle(blocks[i], handles[i]), PLLM_OK);
        expect_zero(memory, blocks[i], layout.bytes);
        put(memory, blocks[i], layout.bytes, (uint8_t)i);
    }
    assert_memory_equal(handles[0], handles[1], sizeof handles[0]);
    assert_int_equal(layout_of(blocks[1]).offset, 1024);
    assert_memory_not_equal(handles[0], handles[2], sizeof handles[0]);
    assert_memory_not_equal(handles[0], handles[3], sizeof handles[0]);
    assert_int_equal(stats_of(memory).slab_bytes, (4 + 4 + 10) * MEBI);
    assert_int_equal(pllm_budget_charged(f->member), 18 * MEBI);
    assert_int_equal(spill_now(memory, blocks[0]), PLLM_EUNSUPPORTED);
    for (int i = 0; i < 4; i++) expect(memory, blocks[i], layout_of(blocks[i]).bytes, (uint8_t)i);
    pllm_store_block *more;
    assert_int_equal(pllm_store_memory_create(memory, 50 * MEBI, 1, &ann, &more), PLLM_ELIMIT);
    pllm_store_memory_free(memory, blocks[3], 0); /* one of its own size goes at once */
    assert_int_equal(stats_of(memory).slab_bytes, 8 * MEBI);
    pllm_store_memory_free(memory, blocks[0], 0);
    pllm_store_memory_free(memory, blocks[1], 0); /* an ordinary one is kept, for its owner */
    assert_int_equal(stats_of(memory).slab_bytes, 8 * MEBI);
    assert_int_equal(stats_of(memory).slab_used_bytes, 512);
    more = create(memory, 1000, 1, &ann_open);
    uint8_t handle[PLLM_STORE_LEGACY_HANDLE_BYTES];
    assert_int_equal(pllm_store_block_handle(more, handle), PLLM_OK);
    assert_memory_not_equal(handle, handles[0], sizeof handle);
    blocks[0] = create(memory, 2000, 1, &ann);
    assert_int_equal(pllm_store_block_handle(blocks[0], handle), PLLM_OK);
    assert_memory_equal(handle, handles[0], sizeof handle);
    expect_zero(memory, blocks[0], 2000);
    pllm_store_memory_free(memory, blocks[0], 1); /* somebody has it open: not again */
    assert_int_equal(stats_of(memory).slab_bytes, 8 * MEBI);
    pllm_store_memory_free(memory, blocks[2], 0);
    pllm_store_memory_free(memory, more, 0); /* the one spare is the newest */
    assert_int_equal(stats_of(memory).slab_bytes, 4 * MEBI);
    assert_int_equal(pllm_store_memory_trim(memory, 1), 4 * MEBI);
    assert_int_equal(stats_of(memory).slab_bytes, 0);
    pllm_store_memory_close(memory);
}

/* ---- spilling ---- */

static void spilled_bytes_come_back(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 0);
    const uint64_t sizes[] = {7 * MEBI + 3, 900};
    pllm_store_block *blocks[2], *large = create(memory, 30 * MEBI, 0, &ann);
    for (uint8_t i = 0; i < 2; i++) {
        blocks[i] = create(memory, sizes[i], 0, &ann);
        put(memory, blocks[i], sizes[i], (uint8_t)(20 + i));
        assert_int_equal(spill_now(memory, blocks[i]), PLLM_OK);
        assert_int_equal(spill_now(memory, blocks[i]), PLLM_OK);
        assert_int_equal(layout_of(blocks[i]).spilled, 1);
        uint64_t bytes;
        int fd;
        assert_int_equal(pllm_store_block_piece(blocks[i], 0, 0, &bytes, &fd), PLLM_EINVAL);
        expect(memory, blocks[i], sizes[i], (uint8_t)(20 + i)); /* from the host */
    }
    assert_int_equal(pllm_budget_charged(f->member), 30 * MEBI);
    assert_int_equal(stats_of(memory).spilled_bytes, sizes[0] + sizes[1]);
    assert_int_equal(spill_now(memory, large), PLLM_ELIMIT);
    assert_int_equal(layout_of(large).spilled, 0);
    uint8_t word = 99;
    assert_int_equal(pllm_store_block_write(memory, blocks[1], 5, 1, &word), PLLM_OK);
    for (uint8_t i = 0; i < 2; i++) {
        assert_int_equal(restore_now(memory, blocks[i]), PLLM_OK);
        assert_int_equal(restore_now(memory, blocks[i]), PLLM_OK);
        pllm_store_memory_check(memory);
    }
    expect(memory, blocks[0], sizes[0], 20);
    uint8_t seen;
    assert_int_equal(pllm_store_block_read(memory, blocks[1], 5, 1, &seen), PLLM_OK);
    assert_int_equal(seen, 99);
    assert_int_equal(stats_of(memory).spilled_bytes, 0);
    assert_int_equal(spill_now(memory, blocks[1]), PLLM_OK);
    for (uint32_t i = 0; i < 2; i++) pllm_store_memory_free(memory, blocks[i], 0);
    /* No room: it stays where it is. */
    assert_int_equal(spill_now(memory, large), PLLM_OK);
    pllm_store_block *full = create(memory, 250 * MEBI, 0, &ann);
    assert_int_equal(restore_now(memory, large), PLLM_ENODEVMEM);
    assert_int_equal(layout_of(large).spilled, 1);
    pllm_store_memory_free(memory, full, 0);
    assert_int_equal(restore_now(memory, large), PLLM_OK);
    expect_zero(memory, large, 30 * MEBI);
    pllm_store_memory_free(memory, large, 0);
    pllm_store_memory_close(memory);
}

/* What host memory has no room for goes to disk, and comes back; a bit that the disk changed costs
 * its own tensor, which stays spilled and says ECORRUPT, until the disk returns what was written.
 */
static void disk_takes_what_is_too_much(void **state)
{
    fixture *f = *state;
    for (int spoiled = 0; spoiled < 2; spoiled++) {
        pllm_store_memory_options options = {.struct_bytes = sizeof options,
                                             .spilled_bytes_max = 1 * MEBI,
                                             .disk_bytes = 16 * MEBI,
                                             .disk_folder = PLLM_BINARY_DIR};
        pllm_sim_disk_options sim = {
            .struct_bytes = sizeof sim, .bytes = 16 * MEBI, .seed = 3, .latency_ns_max = 1000};
        pllm_faulty_disk_options none = pllm_faulty_disk_none();
        pllm_disk *inner;
        if (spoiled) {
            assert_int_equal(pllm_disk_open_sim(&f->memory.context, &sim, &inner), PLLM_OK);
            assert_int_equal(pllm_disk_open_faulty(&f->memory.context, inner, &none, &options.disk),
                             PLLM_OK);
        }
        pllm_store_memory *memory;
        assert_int_equal(
            pllm_store_memory_open(&f->memory.context, f->device, f->member, &options, &memory),
            PLLM_OK);
        const uint64_t sizes[] = {3 * MEBI, 5 * MEBI + 7};
        pllm_store_block *blocks[2];
        for (uint8_t i = 0; i < 2; i++) {
            blocks[i] = create(memory, sizes[i], 0, &ann);
            put(memory, blocks[i], sizes[i], (uint8_t)(30 + i));
            assert_int_equal(spill_now(memory, blocks[i]), PLLM_OK);
        }
        assert_int_equal(stats_of(memory).disk_pages, 2 * 16 + 5 * 16 + 1);
        pllm_store_block *large = create(memory, 12 * MEBI, 0, &ann);
        assert_int_equal(spill_now(memory, large), PLLM_ELIMIT);
        if (spoiled) {
            pllm_faulty_disk_options *faults = pllm_faulty_disk_options_of(options.disk);
            faults->corrupt_permille = 1000;
            assert_int_equal(restore_now(memory, blocks[0]), PLLM_ECORRUPT);
            assert_int_equal(layout_of(blocks[0]).spilled, 1);
            faults->corrupt_permille = 0;
        }
        for (uint8_t i = 0; i < 2; i++) {
            assert_int_equal(restore_now(memory, blocks[i]), PLLM_OK);
            expect(memory, blocks[i], sizes[i], (uint8_t)(30 + i));
            pllm_store_memory_free(memory, blocks[i], 0);
        }
        assert_int_equal(stats_of(memory).disk_pages, 0);
        pllm_store_memory_free(memory, large, 0);
        pllm_store_memory_close(memory);
    }
}

/* ---- adopting ---- */

typedef struct offer { /* what a client has of a tensor when its daemon is gone */
    uint64_t bytes, offset, sizes[4];
    int fds[4];
    pllm_chunk *chunks[4]; /* it holds the memory */
    uint32_t count;
} offer;

static offer offer_of(fixture *f, const pllm_store_block *block, uint32_t writable)
{
    offer o = {.bytes = layout_of(block).bytes,
               .offset = layout_of(block).offset,
               .count = layout_of(block).piece_count};
    for (uint32_t i = 0; i < o.count; i++) {
        int fd;
        assert_int_equal(pllm_store_block_piece(block, i, writable, &o.sizes[i], &fd), PLLM_OK);
        o.fds[i] = dup(fd);
        assert_int_equal(
            f->ops->chunk_import(f->device, o.fds[i], o.sizes[i], !writable, &o.chunks[i]),
            PLLM_OK);
    }
    return o;
}

static void offer_end(fixture *f, offer *o)
{
    for (uint32_t i = 0; i < o->count; i++) {
        f->ops->chunk_destroy(f->device, o->chunks[i]);
        close(o->fds[i]);
    }
}

static int adopt(pllm_store_memory *memory, const offer *o, uint32_t read_only,
                 pllm_store_block **block)
{
    return pllm_store_memory_adopt(memory, o->bytes, o->offset, o->fds, o->sizes, o->count,
                                   read_only, &ann, block);
}

static void a_new_daemon_takes_over_what_clients_hold(void **state)
{
    fixture *f = *state;
    pllm_store_memory *memory = memory_open(f, 0);
    const uint64_t sizes[4] = {9 * MEBI, 3 * MEBI, 2000, 5000};
    pllm_store_block *blocks[4], *none;
    offer offers[4];
    for (uint8_t i = 0; i < 4; i++) {
        blocks[i] = create(memory, sizes[i], 0, &ann);
        put(memory, blocks[i], sizes[i], i);
        offers[i] = offer_of(f, blocks[i], i != 1);
    }
    for (uint32_t i = 0; i < 4; i++) pllm_store_memory_free(memory, blocks[i], 0);
    pllm_store_memory_close(memory); /* dead, and there again */
    memory = memory_open(f, 0);
    for (uint8_t i = 0; i < 4; i++) {
        assert_int_equal(adopt(memory, &offers[i], i == 1, &blocks[i]), PLLM_OK);
        pllm_store_memory_check(memory);
        expect(memory, blocks[i], sizes[i], i);
        assert_int_equal(layout_of(blocks[i]).offset, offers[i].offset);
        assert_int_equal(layout_of(blocks[i]).read_only, i == 1);
    }
    /* Both small ones lie in one piece, which only the host device can see. */
    assert_int_equal(pllm_budget_charged(f->member), (10 + 4 + (f->cuda ? 4 : 2)) * MEBI);
    uint64_t bytes;
    int fd;
    assert_int_equal(pllm_store_block_piece(blocks[1], 0, 1, &bytes, &fd), PLLM_EPERM);
    assert_int_equal(pllm_store_block_piece(blocks[1], 0, 0, &bytes, &fd), PLLM_OK);
    uint8_t word = 1;
    assert_int_equal(pllm_store_block_write(memory, blocks[1], 0, 1, &word), PLLM_EPERM);
    assert_int_equal(pllm_store_block_write(memory, blocks[0], 0, 1, &word), PLLM_OK);
    pllm_chunk *chunk; /* what it gives out is the same memory */
    pllm_va va;
    assert_int_equal(pllm_store_block_piece(blocks[0], 0, 0, &bytes, &fd), PLLM_OK);
    assert_int_equal(f->ops->chunk_import(f->device, fd, bytes, 1, &chunk), PLLM_OK);
    assert_int_equal(f->ops->reserve(f->device, bytes, &va), PLLM_OK);
    assert_int_equal(f->ops->map(f->device, va, &chunk, 1), PLLM_OK);
    assert_int_equal(pllm_device_read(f->device, f->stream, va + 1, 1, &word), PLLM_OK);
    assert_int_equal(word, 0x7c); /* the second byte of the pattern's first word */
    f->ops->unmap(f->device, va, chunk);
    f->ops->chunk_destroy(f->device, chunk);
    f->ops->release(f->device, va, bytes);
    /* Offers that are not so. */
    offer bad = offers[2];
    if (!f->cuda) assert_int_equal(adopt(memory, &bad, 0, &none), PLLM_EINVAL); /* there already */
    bad.offset += 100;
    assert_int_equal(adopt(memory, &bad, 0, &none), PLLM_EINVAL);
    bad.offset = 2 * MEBI - 512;
    assert_int_equal(adopt(memory, &bad, 0, &none), PLLM_EINVAL);
    bad = offers[0];
    bad.bytes = 11 * MEBI;
    assert_int_equal(adopt(memory, &bad, 0, &none), PLLM_EINVAL);
    bad = offers[0];
    bad.sizes[1] = 4 * MEBI; /* another size than the descriptor's */
    assert_int_equal(adopt(memory, &bad, 0, &none), PLLM_EINVAL);
    bad.sizes[1] = UINT64_MAX / MEBI * 2 * MEBI;
    assert_int_equal(adopt(memory, &bad, 0, &none), PLLM_EINVAL);
    bad.count = 0;
    assert_int_equal(adopt(memory, &bad, 0, &none), PLLM_EINVAL);
    assert_null(none);
    pllm_store_memory_check(memory);
    /* It spills and is the daemon's own afterwards, even where it came for reading. */
    assert_int_equal(spill_now(memory, blocks[1]), PLLM_OK);
    assert_int_equal(restore_now(memory, blocks[1]), PLLM_OK);
    expect(memory, blocks[1], sizes[1], 1);
    assert_int_equal(pllm_store_block_piece(blocks[1], 0, 1, &bytes, &fd), PLLM_OK);
    for (uint32_t i = 0; i < 4; i++) {
        pllm_store_memory_free(memory, blocks[i], 0);
        offer_end(f, &offers[i]);
    }
    assert_int_equal(pllm_budget_charged(f->member), 0);
    pllm_store_memory_close(memory);
}

/* ---- random lives ---- */

typedef struct life {
    pllm_store_block *block;
    uint64_t bytes;
    uint8_t seed;
    const pllm_store_owner *owner;
} life;

static uint64_t random_next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    return *x ^= *x << 17;
}

static void random_lives_keep_their_bytes(void **state)
{
    fixture *f = *state;
    enum { LIVES = 24, STEPS = 800 };
    const pllm_store_owner *const owners[] = {&ann, &bob, &ann_open};
    life lives[LIVES] = {{0}};
    uint64_t random = 0x5eed0001u + (uint64_t)f->cuda, refused = 0;
    pllm_store_memory *memory = memory_open(f, 24 * MEBI);
    assert_int_equal(pllm_budget_member_set(f->member, 0, 40 * MEBI), PLLM_OK);
    for (int step = 0; step < STEPS; step++) {
        life *l = &lives[random_next(&random) % LIVES];
        uint64_t what = random_next(&random) % 16;
        if (!l->block) {
            uint64_t r = random_next(&random);
            uint64_t bytes = what < 8    ? 1 + r % 40000
                             : what < 13 ? 1 + r % (3 * MEBI)
                                         : 1 + r % (12 * MEBI);
            uint32_t legacy = f->cuda && r % 5 == 0;
            l->owner = owners[r / 8 % 3];
            int status = pllm_store_memory_create(memory, bytes, legacy, l->owner, &l->block);
            if (status < 0) {
                assert_true(status == PLLM_ENODEVMEM || status == PLLM_ELIMIT);
                assert_null(l->block);
                refused++;
                continue;
            }
            l->bytes = bytes;
            l->seed = (uint8_t)r;
            expect_zero(memory, l->block, bytes);
            put(memory, l->block, bytes, l->seed);
        } else if (what < 6) {
            expect(memory, l->block, l->bytes, l->seed);
            pllm_store_memory_free(memory, l->block, what == 0);
            l->block = NULL;
        } else if (what < 8) {
            int status = spill_now(memory, l->block);
            assert_true(status == PLLM_OK || status == PLLM_ELIMIT || status == PLLM_EUNSUPPORTED);
        } else if (what < 10) {
            int status = restore_now(memory, l->block);
            assert_true(status == PLLM_OK || status == PLLM_ENODEVMEM);
        } else if (what == 10) {
            (void)pllm_store_memory_trim(memory, random_next(&random) % (8 * MEBI));
        } else if (what < 14) {
            (void)pllm_store_memory_tick(memory);
        } else {
            expect(memory, l->block, l->bytes, l->seed);
        }
        pllm_store_memory_check(memory);
    }
    for (uint32_t i = 0; i < LIVES; i++)
        if (lives[i].block) {
            expect(memory, lives[i].block, lives[i].bytes, lives[i].seed);
            pllm_store_memory_free(memory, lives[i].block, 0);
        }
    print_message("refused for want of room: %u of %u steps\n", (unsigned)refused, STEPS);
    assert_int_equal(stats_of(memory).block_count, 0);
    assert_int_equal(stats_of(memory).piece_bytes, 0);
    assert_int_equal(stats_of(memory).slab_used_bytes, 0);
    pllm_store_memory_close(memory);
}

int main(void)
{
#define CASES(setup)                                                                               \
    cmocka_unit_test_setup_teardown(a_tensor_is_pieces_that_a_client_maps_in_a_row, setup,         \
                                    teardown),                                                     \
        cmocka_unit_test_setup_teardown(bad_requests_are_refused, setup, teardown),                \
        cmocka_unit_test_setup_teardown(what_is_used_again_is_zero, setup, teardown),              \
        cmocka_unit_test_setup_teardown(memory_is_used_again_by_its_owner_alone, setup, teardown), \
        cmocka_unit_test_setup_teardown(abandoned_memory_is_given_up, setup, teardown),            \
        cmocka_unit_test_setup_teardown(small_tensors_share_within_one_owner, setup, teardown),    \
        cmocka_unit_test_setup_teardown(ready_pieces_follow_what_is_asked_for, setup, teardown),   \
        cmocka_unit_test_setup_teardown(what_is_ready_makes_room_under_pressure, setup, teardown), \
        cmocka_unit_test_setup_teardown(legacy_tensors_lie_in_slabs_of_one_owner, setup,           \
                                        teardown),                                                 \
        cmocka_unit_test_setup_teardown(spilled_bytes_come_back, setup, teardown),                 \
        cmocka_unit_test_setup_teardown(disk_takes_what_is_too_much, setup, teardown),             \
        cmocka_unit_test_setup_teardown(a_new_daemon_takes_over_what_clients_hold, setup,          \
                                        teardown),                                                 \
        cmocka_unit_test_setup_teardown(random_lives_keep_their_bytes, setup, teardown)
    const struct CMUnitTest host[] = {CASES(setup_host)}, cuda[] = {CASES(setup_cuda)};
    int failed = cmocka_run_group_tests_name("host", host, NULL, NULL);
    return failed + cmocka_run_group_tests_name("cuda, fake", cuda, NULL, NULL);
}
