/* storm_content.c - what the storm's tensors hold, so that a reader knows whether it is right.
 *
 *     0    lock     the writer's pid: writers take turns, and one that died is followed
 *     8    seq      odd while it is written; 0: never was
 *     16   birth    the tensor's generation when it was written first
 *     24   counter  how often it was written; the fence is raised to it afterwards
 *     32   bytes    of the tensor
 *     40   name     that it was first written under, then a hash of all of this
 *     128  words that follow from birth, counter and place: all, or eight a page of large ones
 *
 * A reader takes what it read only if seq was the same before and after, and even. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/hash.h"
#include "storm.h"

enum { ALL_BYTES = 64 << 10, PAGE = 4096, BODY = 128 };

typedef struct content {
    _Atomic uint32_t lock;
    uint32_t zero;
    _Atomic uint64_t seq;
    uint64_t birth, counter, bytes;
    char name[24];
    uint64_t hash;
} content;
_Static_assert(sizeof(content) <= BODY, "the body begins behind it");

static uint64_t word_at(const content *c, uint64_t at)
{
    uint64_t state = c->birth * 31 + c->counter * UINT64_C(0x100000001b3) + at;
    return storm_random(&state);
}

static uint64_t hash_of(const content *c)
{
    return pllm_hash64(&c->birth, offsetof(content, hash) - offsetof(content, birth), 1);
}

/* The next word's place after at; the end if there is none. Starts from BODY. */
static uint64_t next_place(uint64_t at, uint64_t bytes)
{
    at += 8;
    if (bytes > ALL_BYTES && at % PAGE == 64) at += PAGE - 64;
    if (at >= bytes / 8 * 8) return bytes;
    return at;
}

static uint64_t first_place(uint64_t bytes)
{
    return bytes > ALL_BYTES ? PAGE : BODY;
}

int storm_content_write(storm_shared *shared, pllm_store_tensor *tensor, const char *name,
                        uint64_t *counter_out)
{
    content *c = pllm_store_tensor_data(tensor);
    const uint64_t bytes = pllm_store_tensor_bytes(tensor);
    uint32_t self = (uint32_t)getpid(), holder = 0;
    (void)shared;
    if (!atomic_compare_exchange_strong(&c->lock, &holder, self)) {
        if (kill((pid_t)holder, 0) == 0 || errno != ESRCH) return 0;
        if (!atomic_compare_exchange_strong(&c->lock, &holder, self)) return 0;
    }
    uint64_t seq = atomic_load(&c->seq);
    atomic_store(&c->seq, seq | 1);
    storm_barrier();
    if (!c->birth) {
        pllm_store_info info = {.struct_bytes = sizeof info};
        pllm_store_tensor_info(tensor, &info);
        c->bytes = bytes;
        snprintf(c->name, sizeof c->name, "%s", name);
        c->birth = info.generation; /* last: who dies before leaves it to the next */
    }
    c->counter++;
    c->hash = hash_of(c);
    for (uint64_t at = first_place(bytes); at < bytes; at = next_place(at, bytes))
        *(uint64_t *)((char *)c + at) = word_at(c, at);
    *counter_out = c->counter;
    storm_barrier();
    atomic_store(&c->seq, (seq | 1) + 1);
    atomic_store(&c->lock, 0);
    return 1;
}

/* The first place where the body is wrong, or bytes. */
static uint64_t wrong_place(const content *c, const content *head, uint64_t bytes)
{
    for (uint64_t at = first_place(bytes); at < bytes; at = next_place(at, bytes))
        if (*(const volatile uint64_t *)((const char *)c + at) != word_at(head, at)) return at;
    return bytes;
}

static void copy_head(const content *c, content *head)
{
    head->birth = *(const volatile uint64_t *)&c->birth;
    head->counter = *(const volatile uint64_t *)&c->counter;
    head->bytes = *(const volatile uint64_t *)&c->bytes;
    memcpy(head->name, c->name, sizeof head->name);
    head->hash = *(const volatile uint64_t *)&c->hash;
}

/* Everybody who sees that generation has to see the same birth. */
static void birth_check(storm_shared *shared, const pllm_store_info *info, uint64_t birth)
{
    if (birth == info->generation) return;
    if (birth >> 32 >= info->generation >> 32)
        storm_fail(shared, "%s (generation %llx) has the content of generation %llx", info->name,
                   (unsigned long long)info->generation, (unsigned long long)birth);
    uint64_t at = pllm_hash64(&info->generation, 8, 0);
    for (uint32_t i = 0; i < 64; i++, at++) {
        atomic_uint_least64_t *pair = shared->births[at % STORM_BIRTHS];
        uint64_t key = 0;
        if (atomic_compare_exchange_strong(&pair[0], &key, info->generation))
            key = info->generation;
        if (key != info->generation) continue;
        uint64_t known = 0;
        if (atomic_compare_exchange_strong(&pair[1], &known, birth) || known == birth) return;
        storm_fail(shared, "%s (generation %llx) has the content of %llx here and of %llx there",
                   info->name, (unsigned long long)info->generation, (unsigned long long)birth,
                   (unsigned long long)known);
    }
}

void storm_content_check(storm_shared *shared, const pllm_store_tensor *tensor, uint64_t fence)
{
    const content *c = pllm_store_tensor_data(tensor);
    const uint64_t bytes = pllm_store_tensor_bytes(tensor);
    pllm_store_info info = {.struct_bytes = sizeof info};
    content head = {0};
    pllm_store_tensor_info(tensor, &info);
    uint64_t seq = atomic_load(&c->seq);
    copy_head(c, &head);
    uint64_t wrong = seq ? wrong_place(c, &head, bytes) : bytes;
    storm_barrier();
    if (seq % 2 || atomic_load(&c->seq) != seq) {
        atomic_fetch_add(&shared->torn, 1);
        return;
    }
    if (seq == 0) {
        if (fence && fence != UINT64_MAX)
            storm_fail(shared, "%s (generation %llx) was signalled %llu, and is not written",
                       info.name, (unsigned long long)info.generation, (unsigned long long)fence);
        atomic_fetch_add(&shared->unwritten, 1);
        return;
    }
    if (head.hash != hash_of(&head) || head.bytes != bytes || wrong < bytes)
        storm_fail(
            shared,
            "%s (generation %llx, %llu bytes) has a wrong content: birth %llx, counter %llu, "
            "bytes %llu, name %.24s, first wrong word at %llu",
            info.name, (unsigned long long)info.generation, (unsigned long long)bytes,
            (unsigned long long)head.birth, (unsigned long long)head.counter,
            (unsigned long long)head.bytes, head.name, (unsigned long long)wrong);
    if (fence != UINT64_MAX && head.counter < fence)
        storm_fail(shared, "%s (generation %llx) was signalled %llu and shows %llu", info.name,
                   (unsigned long long)info.generation, (unsigned long long)fence,
                   (unsigned long long)head.counter);
    birth_check(shared, &info, head.birth);
    atomic_fetch_add(&shared->checked, 1);
}

int storm_content_whole(const pllm_store_tensor *tensor)
{
    const content *c = pllm_store_tensor_data(tensor);
    return atomic_load(&c->seq) % 2 == 0;
}

void storm_content_zero(storm_shared *shared, const pllm_store_tensor *tensor)
{
    const content *c = pllm_store_tensor_data(tensor);
    const uint64_t bytes = pllm_store_tensor_bytes(tensor);
    pllm_store_info info = {.struct_bytes = sizeof info};
    pllm_store_tensor_info(tensor, &info);
    uint64_t step = bytes > ALL_BYTES ? PAGE : 8;
    for (uint64_t at = 0; at + 8 <= bytes; at += step) {
        /* Another may have it open for writing already: then it says so first. */
        if (*(const volatile uint64_t *)((const char *)c + at) == 0) continue;
        if (atomic_load(&c->lock) || atomic_load(&c->seq)) return;
        storm_fail(shared, "%s (generation %llx) is new, and not zero at %llu", info.name,
                   (unsigned long long)info.generation, (unsigned long long)at);
    }
}
