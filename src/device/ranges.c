/* ranges.c - see the header. Reservations are few (tens), so the list is an array. */
#include <assert.h>
#include <string.h>
#include "base/bitmap.h"
#include "device/ranges.h"

void pllm_ranges_deinit(pllm_ranges *ranges)
{
    for (uint32_t i = 0; i < ranges->count; i++) {
        pllm_free(ranges->context, ranges->items[i].mapped);
        pllm_free(ranges->context, ranges->items[i].read_only);
    }
    pllm_free(ranges->context, ranges->items);
}

/* Index of the first range that ends after va. */
static uint32_t range_index(const pllm_ranges *ranges, pllm_va va)
{
    uint32_t low = 0, high = ranges->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (ranges->items[middle].va + ranges->items[middle].bytes <= va)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

pllm_range *pllm_ranges_find(const pllm_ranges *ranges, pllm_va va, uint64_t bytes)
{
    uint32_t i = range_index(ranges, va);
    if (i == ranges->count) return NULL;
    pllm_range *range = &ranges->items[i];
    if (va < range->va || bytes > range->bytes || va - range->va > range->bytes - bytes)
        return NULL;
    return range;
}

int pllm_ranges_are(const pllm_ranges *ranges, const pllm_range *range, pllm_va va, uint64_t bytes,
                    uint32_t wanted)
{
    uint64_t first = (va - range->va) / ranges->granularity_bytes;
    uint64_t last = (va - range->va + bytes - 1) / ranges->granularity_bytes;
    uint64_t other = wanted ? pllm_bitmap_find_clear(range->mapped, last + 1, first)
                            : pllm_bitmap_find_set(range->mapped, last + 1, first);
    return other == PLLM_BITMAP_NONE;
}

void pllm_ranges_set(const pllm_ranges *ranges, pllm_range *range, pllm_va va, uint64_t bytes,
                     uint32_t mapped)
{
    uint64_t first = (va - range->va) / ranges->granularity_bytes;
    uint64_t count = bytes / ranges->granularity_bytes;
    if (mapped) {
        pllm_bitmap_set_range(range->mapped, first, count);
        return;
    }
    pllm_bitmap_clear_range(range->mapped, first, count);
    if (range->read_only) pllm_bitmap_clear_range(range->read_only, first, count);
}

int pllm_ranges_set_read_only(const pllm_ranges *ranges, pllm_range *range, pllm_va va,
                              uint64_t bytes)
{
    if (!range->read_only) range->read_only = pllm_ranges_bitmap(ranges, range->bytes);
    if (!range->read_only) return PLLM_ENOMEM;
    pllm_bitmap_set_range(range->read_only, (va - range->va) / ranges->granularity_bytes,
                          bytes / ranges->granularity_bytes);
    return PLLM_OK;
}

int pllm_ranges_check_bytes(const pllm_ranges *ranges, uint64_t bytes, const char *what)
{
    if (bytes > 0 && bytes % ranges->granularity_bytes == 0) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "%s of %llu bytes is not a positive multiple of %llu", what,
                     (unsigned long long)bytes, (unsigned long long)ranges->granularity_bytes);
}

static uint64_t granules_of(const pllm_ranges *ranges, uint64_t bytes)
{
    return bytes / ranges->granularity_bytes + (bytes % ranges->granularity_bytes != 0);
}

uint64_t *pllm_ranges_bitmap(const pllm_ranges *ranges, uint64_t bytes)
{
    uint64_t word_count = pllm_bitmap_words(granules_of(ranges, bytes));
    uint64_t *mapped = pllm_alloc_array(ranges->context, word_count, sizeof *mapped);
    if (!mapped) pllm_fail_memory("a reservation's bitmap", word_count * sizeof *mapped);
    return mapped;
}

static int ranges_grow(pllm_ranges *ranges)
{
    if (ranges->count < ranges->max) return PLLM_OK;
    uint32_t wanted = ranges->max ? ranges->max * 2 : 8;
    pllm_range *grown = pllm_grow(ranges->context, ranges->items, sizeof *grown * ranges->max,
                                  sizeof *grown * wanted);
    if (!grown) return pllm_fail_memory("the list of reservations", sizeof *grown * wanted);
    ranges->items = grown;
    ranges->max = wanted;
    return PLLM_OK;
}

int pllm_ranges_add(pllm_ranges *ranges, pllm_va va, uint64_t bytes, uint64_t *mapped)
{
    int status = ranges_grow(ranges);
    if (status < 0) return status;
    uint32_t at = range_index(ranges, va);
    memmove(ranges->items + at + 1, ranges->items + at,
            sizeof *ranges->items * (ranges->count - at));
    ranges->items[at] = (pllm_range){va, bytes, mapped, NULL};
    ranges->count++;
    return PLLM_OK;
}

uint64_t *pllm_ranges_remove(pllm_ranges *ranges, pllm_va va, uint64_t bytes)
{
    pllm_range *range = pllm_ranges_find(ranges, va, bytes);
    assert(range && range->va == va && range->bytes == bytes);
    assert(pllm_ranges_are(ranges, range, va, bytes, 0)); /* nothing is mapped in it */
    uint64_t *mapped = range->mapped;
    pllm_free(ranges->context, range->read_only);
    uint32_t after = ranges->count - 1 - (uint32_t)(range - ranges->items);
    memmove(range, range + 1, sizeof *range * after);
    ranges->count--;
    return mapped;
}

int pllm_ranges_add_mapped(pllm_ranges *ranges, pllm_va va, uint64_t bytes)
{
    uint64_t *mapped = pllm_ranges_bitmap(ranges, bytes);
    if (!mapped) return PLLM_ENOMEM;
    pllm_bitmap_set_range(mapped, 0, granules_of(ranges, bytes));
    int status = pllm_ranges_add(ranges, va, bytes, mapped);
    if (status < 0) pllm_free(ranges->context, mapped);
    return status;
}

void pllm_ranges_remove_mapped(pllm_ranges *ranges, pllm_va va, uint64_t bytes)
{
    pllm_range *range = pllm_ranges_find(ranges, va, bytes);
    assert(range && range->va == va && range->bytes == bytes);
    pllm_bitmap_clear_range(range->mapped, 0, granules_of(ranges, bytes));
    pllm_free(ranges->context, pllm_ranges_remove(ranges, va, bytes));
}

int pllm_ranges_check_map(const pllm_ranges *ranges, pllm_va va, uint64_t bytes,
                          pllm_range **range_out)
{
    *range_out = pllm_ranges_find(ranges, va, bytes);
    if (!*range_out)
        return pllm_fail(PLLM_EINVAL, 0, "map: %llu bytes at %llx lie in no reservation",
                         (unsigned long long)bytes, (unsigned long long)va);
    if (!pllm_ranges_are(ranges, *range_out, va, bytes, 0))
        return pllm_fail(PLLM_EINVAL, 0, "map: %llu bytes at %llx are partly mapped already",
                         (unsigned long long)bytes, (unsigned long long)va);
    return PLLM_OK;
}

static int check_mapped(const pllm_ranges *ranges, pllm_va va, uint64_t bytes, uint32_t written)
{
    pllm_range *range = pllm_ranges_find(ranges, va, bytes);
    if (!range || !pllm_ranges_are(ranges, range, va, bytes, 1))
        return pllm_fail(PLLM_EINVAL, 0, "%llu bytes at device address %llx are not all mapped",
                         (unsigned long long)bytes, (unsigned long long)va);
    if (!written || !range->read_only) return PLLM_OK;
    uint64_t first = (va - range->va) / ranges->granularity_bytes;
    uint64_t last = (va - range->va + bytes - 1) / ranges->granularity_bytes;
    if (pllm_bitmap_find_set(range->read_only, last + 1, first) == PLLM_BITMAP_NONE) return PLLM_OK;
    return pllm_fail(PLLM_EPERM, 0, "%llu bytes at device address %llx are mapped for reading only",
                     (unsigned long long)bytes, (unsigned long long)va);
}

int pllm_ranges_check_copies(const pllm_ranges *ranges, pllm_copy_kind kind,
                             const pllm_copy *copies, uint32_t copy_count)
{
    if ((unsigned)kind > PLLM_COPY_WITHIN || (!copies && copy_count))
        return pllm_fail(PLLM_EINVAL, 0, "copy: no copies, or kind %d is none", (int)kind);
    for (uint32_t i = 0; i < copy_count; i++) {
        const pllm_copy *copy = &copies[i];
        if (copy->bytes == 0) continue;
        uint64_t distance = copy->to > copy->from ? copy->to - copy->from : copy->from - copy->to;
        if (!copy->to || !copy->from || distance < copy->bytes)
            return pllm_fail(PLLM_EINVAL, 0, "copy %u: a NULL side, or sides that overlap", i);
        int status = PLLM_OK;
        if (kind != PLLM_COPY_OUT) status = check_mapped(ranges, copy->to, copy->bytes, 1);
        if (status == PLLM_OK && kind != PLLM_COPY_IN)
            status = check_mapped(ranges, copy->from, copy->bytes, 0);
        if (status < 0) return status;
    }
    return PLLM_OK;
}

int pllm_ranges_check_fill(const pllm_ranges *ranges, pllm_va va, uint64_t bytes)
{
    return bytes == 0 ? PLLM_OK : check_mapped(ranges, va, bytes, 1);
}
