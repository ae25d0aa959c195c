/* elastic_share.c - ranges of a pool seen by other processes: a descriptor for each page out, and
 * the same pages mapped in one run on the other side.
 *
 * A page that went out may be looked at for ever: nobody can take a descriptor back. So its chunk
 * is marked, and destroyed when it is freed, where others would be kept. */
#include <string.h>
#include <unistd.h>
#include "vmm/elastic.h"

static void close_all(int *descriptors, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        close(descriptors[i]);
        descriptors[i] = -1;
    }
}

/* The pool's lock is held. */
static int export_pages(pllm_vmm_pool *pool, uint32_t page_first, uint32_t page_count,
                        uint32_t read_only, int *descriptors)
{
    for (uint32_t i = 0; i < page_count; i++) {
        int status = pllm_region_export(pool->region, page_first + i, read_only, &descriptors[i]);
        if (status < 0) {
            close_all(descriptors, i);
            return status;
        }
    }
    return PLLM_OK;
}

int pllm_vmm_export(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, uint32_t read_only,
                    pllm_vmm_share *share_out, int *descriptors, uint32_t descriptor_max)
{
    if (!share_out || (descriptor_max && !descriptors))
        return pllm_fail(PLLM_EINVAL, 0, "model %s: no room for an export's answer", pool->name);
    *share_out = (pllm_vmm_share){.struct_bytes = sizeof *share_out};
    int mapped = pllm_vmm_is_mapped(pool, offset, bytes);
    if (mapped < 0) return mapped;
    uint64_t page_bytes = pool->page_bytes, first = offset / page_bytes;
    uint64_t count = (offset + bytes - 1) / page_bytes - first + 1;
    share_out->page_count = (uint32_t)count;
    share_out->page_bytes = page_bytes;
    share_out->offset = offset - first * page_bytes;
    share_out->bytes = bytes;
    if (descriptor_max < count)
        return pllm_fail(PLLM_EINVAL, 0, "model %s: room for %u descriptors where %llu are needed",
                         pool->name, descriptor_max, (unsigned long long)count);
    pthread_mutex_lock(&pool->lock);
    int status;
    if (pllm_spans_are(&pool->spans, offset, bytes, 1u << PLLM_SPAN_PLACED | 1u << PLLM_SPAN_BLOCK,
                       NULL))
        status = export_pages(pool, (uint32_t)first, share_out->page_count, read_only, descriptors);
    else
        status = pllm_fail(PLLM_EINVAL, 0, "model %s: not all of %llu bytes at %llu is allocated",
                           pool->name, (unsigned long long)bytes, (unsigned long long)offset);
    pthread_mutex_unlock(&pool->lock);
    return status;
}

struct pllm_vmm_import {
    const pllm_context *context;
    pllm_device *device;
    pllm_va base;
    uint64_t page_bytes, offset;
    uint32_t page_count;
    pllm_chunk *chunks[]; /* [page_count] */
};

static int check_share(const pllm_vmm_share *share, uint64_t *bytes_out)
{
    uint64_t end;
    if (!share || share->struct_bytes != sizeof *share)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_vmm_share, or its struct_bytes is not %zu",
                         sizeof *share);
    if (share->page_count > 0 && share->bytes > 0 && share->offset < share->page_bytes &&
        !__builtin_mul_overflow(share->page_bytes, share->page_count, bytes_out) &&
        !__builtin_add_overflow(share->offset, share->bytes, &end) && end <= *bytes_out)
        return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "a share of %llu bytes at %llu in %u pages of %llu",
                     (unsigned long long)share->bytes, (unsigned long long)share->offset,
                     share->page_count, (unsigned long long)share->page_bytes);
}

static void chunks_close(pllm_vmm_import *import)
{
    for (uint32_t i = 0; i < import->page_count; i++)
        import->device->ops->chunk_destroy(import->device, import->chunks[i]);
}

int pllm_vmm_import_open(const pllm_context *context, pllm_device *device,
                         const pllm_vmm_share *share, const int *descriptors, uint32_t read_only,
                         pllm_vmm_import **import_out)
{
    uint64_t bytes = 0;
    *import_out = NULL;
    int status = check_share(share, &bytes);
    if (status < 0) return status;
    if (!device || !descriptors) return pllm_fail(PLLM_EINVAL, 0, "no device or no descriptors");
    uint64_t own = sizeof(pllm_vmm_import) + share->page_count * sizeof(pllm_chunk *);
    pllm_vmm_import *import = pllm_alloc(context, own);
    if (!import) return pllm_fail_memory("an import", own);
    import->context = context;
    import->device = device;
    import->page_bytes = share->page_bytes;
    import->offset = share->offset;
    import->page_count = share->page_count;
    for (uint32_t i = 0; i < share->page_count && status == PLLM_OK; i++)
        status = device->ops->chunk_import(device, descriptors[i], share->page_bytes, read_only,
                                           &import->chunks[i]);
    if (status < 0) goto fail_chunks;
    status = device->ops->reserve(device, bytes, &import->base);
    if (status < 0) goto fail_chunks;
    status = device->ops->map(device, import->base, import->chunks, import->page_count);
    if (status < 0) goto fail_base;
    *import_out = import;
    return PLLM_OK;
fail_base:
    device->ops->release(device, import->base, bytes);
fail_chunks:
    chunks_close(import);
    pllm_free(context, import);
    return status;
}

uint64_t pllm_vmm_import_address(const pllm_vmm_import *import)
{
    return import->base + import->offset;
}

void pllm_vmm_import_close(pllm_vmm_import *import)
{
    if (!import) return;
    pllm_device *device = import->device;
    for (uint32_t i = 0; i < import->page_count; i++)
        device->ops->unmap(device, import->base + i * import->page_bytes, import->chunks[i]);
    chunks_close(import);
    device->ops->release(device, import->base, import->page_count * import->page_bytes);
    pllm_free(import->context, import);
}
