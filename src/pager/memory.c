/* memory.c - the pager for one's own tensors, behind include/pagedllm/memory.h.
 *
 *   tensors[i]   generation | bytes | pages[] | written[] | pins[]        by page of the tensor
 *
 * A tensor's pages are pages of one pager; their order on disk follows the tensor's (each page's
 * home follows the one before). The rank of a page is its index in the tensor with the bits in
 * reverse, so that `static` keeps pages that lie evenly over the tensor: then what is read ahead
 * comes while those between are used. A page that was never written has no content in the pager;
 * it is made, zeroed, when it is first touched.
 *
 * Invariants: 1. a slot with pages NULL is free, and its generation is that of its next tensor;
 * 2. tensor.pin_count is the sum of its pins; 3. written[i] says that the pager's page has content.
 * Threads: one caller at a time. */
#include <pagedllm/memory.h>
#include <string.h>
#include "device/open.h"
#include "pager/memory_copy.h"
#include "pager/memory_device.h"
#include "pager/pager.h"
#include "vmm/share.h"

enum {
    TENSOR_MAX = 1024,
    PAGE_BYTES = 1 << 20,
    PAGE_MAX = 1 << 18, /* some 100 bytes of table a page: 26 MB */
};

typedef struct memory_tensor {
    uint32_t generation, page_count, sealed;
    uint32_t next_free; /* slot, while free */
    uint64_t bytes, pin_count;
    pllm_page *pages;
    uint8_t *written;
    uint32_t *pins;
} memory_tensor;

struct pllm_memory {
    const pllm_context *context;
    pllm_device *device, *own_device; /* own: closed with the memory */
    pllm_budget *budget;
    pllm_share *share; /* of a ledger; NULL: none. Every public call that touches pages is inside */
    pllm_pager *pager;
    memory_copier copier;                          /* for devices that the CPU can't read */
    uint64_t page_bytes, tensor_bytes, vram_bytes; /* the last: of the pages, as options say */
    uint32_t tensor_max, tensor_count, free_slot;
    memory_tensor *tensors;
};

/* Inside the share's gate until the function returns, by whichever way. */
static pllm_share *go_inside(const pllm_memory *memory)
{
    pllm_share_enter(memory->share);
    return memory->share;
}

static void go_outside(pllm_share **share)
{
    pllm_share_leave(*share);
}

#define INSIDE(memory) \
    pllm_share *inside __attribute__((cleanup(go_outside), unused)) = go_inside(memory)

/* ---- open and close ---- */

typedef struct memory_plan { /* options with their defaults filled in */
    pllm_policy_kind policy;
    pllm_prefetch_kind prefetch;
    uint64_t page_bytes, vram_bytes;
    uint32_t page_max, tensor_max;
} memory_plan;

static uint64_t add_capped(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static int plan_make(const pllm_memory_options *options, memory_plan *plan)
{
    if (!options || options->struct_bytes < sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_memory_options.struct_bytes is not %zu",
                         sizeof *options);
    *plan = (memory_plan){.policy = PLLM_POLICY_LRU, .prefetch = PLLM_PREFETCH_SEQUENTIAL};
    plan->page_bytes = options->page_bytes ? options->page_bytes : PAGE_BYTES;
    plan->vram_bytes = options->vram_limit_bytes ? options->vram_limit_bytes : UINT64_MAX;
    plan->tensor_max = options->tensor_max ? options->tensor_max : TENSOR_MAX;
    if (plan->page_bytes % 4096 || plan->page_bytes > (uint64_t)1 << 30)
        return pllm_fail(PLLM_EINVAL, 0,
                         "pages of %llu bytes: they must be a multiple of 4,096, up to 1 GiB",
                         (unsigned long long)plan->page_bytes);
    if (plan->tensor_max >= UINT32_MAX / 2)
        return pllm_fail(PLLM_EINVAL, 0, "tensor_max is %u: at most %u", plan->tensor_max,
                         UINT32_MAX / 2 - 1);
    if (plan->vram_bytes < plan->page_bytes)
        return pllm_fail(PLLM_ENODEVMEM, 0,
                         "a device limit of %llu bytes holds no page of %llu; give at least that",
                         (unsigned long long)plan->vram_bytes,
                         (unsigned long long)plan->page_bytes);
    int status = PLLM_OK;
    if (options->policy) status = pllm_policy_from_name(options->policy, &plan->policy);
    if (status == PLLM_OK && options->prefetch_strategy)
        status = pllm_prefetch_from_name(options->prefetch_strategy, &plan->prefetch);
    return status;
}

/* How many pages there may be: a table is made for them at once. */
static int plan_pages(const pllm_memory_options *options, pllm_device *device, memory_plan *plan)
{
    pllm_device_info info;
    int status = device->ops->info(device, &info);
    if (status < 0) return status;
    uint64_t room = plan->vram_bytes < info.total_bytes ? plan->vram_bytes : info.total_bytes;
    uint64_t host = options->host_memory_bytes;
    room = add_capped(room, host < info.total_bytes ? host : info.total_bytes);
    room = add_capped(room, options->nvme_size_bytes);
    uint64_t pages = (options->capacity_bytes ? options->capacity_bytes : room) / plan->page_bytes;
    if (!options->capacity_bytes && pages > PAGE_MAX) pages = PAGE_MAX;
    if (pages == 0 || pages >= UINT32_MAX / 2)
        return pllm_fail(PLLM_EINVAL, 0, "a capacity of %llu pages: there must be 1 to %u",
                         (unsigned long long)pages, UINT32_MAX / 2 - 1);
    plan->page_max = (uint32_t)pages;
    return PLLM_OK;
}

static int pager_open(pllm_memory *memory, const pllm_memory_options *options,
                      const memory_plan *plan)
{
    pllm_tiers_options tiers_options = {
        .struct_bytes = sizeof tiers_options,
        .frame_max = plan->page_max,
        .page_bytes = plan->page_bytes,
        .device_limit_bytes = plan->vram_bytes,
        .host_bytes = options->host_memory_bytes,
        .disk_bytes = options->nvme_size_bytes,
        .disk_folder = options->nvme_path,
        .member_name = "tensors",
    };
    pllm_tiers *tiers;
    int status =
        pllm_tiers_open(memory->context, memory->device, memory->budget, &tiers_options, &tiers);
    if (status < 0) return status;
    pllm_pager_options pager = {
        .struct_bytes = sizeof pager,
        .page_max = plan->page_max,
        .policy = plan->policy,
        .prefetch = plan->prefetch,
        .prefetch_max = options->prefetch_pages,
    };
    status = pllm_pager_open(memory->context, tiers, &pager, &memory->pager);
    if (status < 0) pllm_tiers_close(tiers);
    return status;
}

/* Inside the gate, by whichever thread: pages go until frames are no more than the budget leaves.
 */
static void give_back(void *user)
{
    pllm_memory *memory = user;
    if (memory->pager) (void)pllm_pager_set_device_limit(memory->pager, memory->vram_bytes);
}

static int share_open(pllm_memory *memory, const pllm_memory_options *options)
{
    pllm_share_options share = {.struct_bytes = sizeof share,
                                .priority = options->ledger_priority,
                                .ledger = options->ledger,
                                .name = options->ledger_name,
                                .ledger_limit_bytes = options->ledger_limit_bytes,
                                .minimum_bytes = options->ledger_minimum_bytes,
                                .give_back = give_back,
                                .user = memory};
    return options->ledger ? pllm_share_open(memory->context, &share, &memory->share) : PLLM_OK;
}

/* Its minimum in the ledger is at least what one page needs, in whole chunks. */
static int join_ledger(pllm_memory *memory, const pllm_memory_options *options)
{
    if (!memory->share) return PLLM_OK;
    pllm_device_info device;
    int status = memory->device->ops->info(memory->device, &device);
    if (status < 0) return status;
    uint64_t least = memory->page_bytes + device.chunk_bytes - 1;
    least -= least % device.chunk_bytes;
    if (least > options->ledger_minimum_bytes) status = pllm_share_minimum(memory->share, least);
    if (status == PLLM_OK) pllm_share_attach(memory->share, memory->budget);
    return status;
}

static int parts_open(pllm_memory *memory, const pllm_memory_options *options, memory_plan *plan)
{
    memory->tensors = pllm_alloc_array(memory->context, plan->tensor_max, sizeof *memory->tensors);
    if (!memory->tensors)
        return pllm_fail_memory("a table of tensors", plan->tensor_max * sizeof *memory->tensors);
    for (uint32_t slot = 0; slot < plan->tensor_max; slot++)
        memory->tensors[slot] = (memory_tensor){.generation = 1, .next_free = slot + 1};
    memory->vram_bytes = plan->vram_bytes;
    int status = share_open(memory, options);
    if (status < 0) return status;
    if (!memory->device) {
        pllm_host_device_options host = {.struct_bytes = sizeof host};
        status =
            pllm_device_open_name(memory->context, options->device, &host, &memory->own_device);
        memory->device = memory->own_device;
    }
    if (status == PLLM_OK) status = plan_pages(options, memory->device, plan);
    if (status == PLLM_OK)
        status = pllm_budget_open(memory->context, plan->vram_bytes, &memory->budget);
    if (status == PLLM_OK) status = join_ledger(memory, options);
    if (status == PLLM_OK) status = pager_open(memory, options, plan);
    if (status == PLLM_OK && memory->share)
        pllm_ledger_set_reserved(pllm_share_member(memory->share),
                                 plan->page_max * memory->page_bytes);
    return status;
}

int pllm_memory_open(const pllm_context *context, const pllm_memory_options *options,
                     pllm_memory **memory_out)
{
    return pllm_memory_open_on(context, NULL, options, memory_out);
}

int pllm_memory_open_on(const pllm_context *context, pllm_device *device,
                        const pllm_memory_options *options, pllm_memory **memory_out)
{
    if (!memory_out) return pllm_fail(PLLM_EINVAL, 0, "memory_out is NULL");
    *memory_out = NULL;
    memory_plan plan;
    int status = plan_make(options, &plan);
    if (status < 0) return status;
    pllm_memory *memory = pllm_alloc(context, sizeof *memory);
    if (!memory) return pllm_fail_memory("a memory", sizeof *memory);
    memory->context = context;
    memory->device = device;
    memory->page_bytes = plan.page_bytes;
    memory->tensor_max = plan.tensor_max;
    status = parts_open(memory, options, &plan);
    if (status < 0) {
        pllm_memory_close(memory);
        return status;
    }
    *memory_out = memory;
    pllm_share_leave(memory->share); /* it was inside since its share opened */
    return PLLM_OK;
}

static void tensor_release(pllm_memory *memory, memory_tensor *tensor)
{
    pllm_free(memory->context, tensor->pages);
    pllm_free(memory->context, tensor->written);
    pllm_free(memory->context, tensor->pins);
    tensor->pages = NULL;
    tensor->written = NULL;
    tensor->pins = NULL;
}

void pllm_memory_close(pllm_memory *memory)
{
    if (!memory) return;
    pllm_share_enter(memory->share);
    pllm_share_detach(memory->share);
    pllm_memory_copier_close(&memory->copier);
    pllm_pager_close(memory->pager);
    if (memory->budget) pllm_budget_close(memory->budget);
    pllm_share_close(memory->share);
    pllm_device_close(memory->own_device);
    for (uint32_t slot = 0; memory->tensors && slot < memory->tensor_max; slot++)
        tensor_release(memory, &memory->tensors[slot]);
    pllm_free(memory->context, memory->tensors);
    pllm_free(memory->context, memory);
}

/* ---- tensors ---- */

static memory_tensor *tensor_of(const pllm_memory *memory, pllm_tensor handle)
{
    uint32_t slot = (uint32_t)handle - 1;
    memory_tensor *tensor = slot < memory->tensor_max ? &memory->tensors[slot] : NULL;
    if (tensor && tensor->pages && tensor->generation == handle >> 32) return tensor;
    pllm_fail(PLLM_ESTALE, 0, "tensor %llx was deallocated, or never was",
              (unsigned long long)handle);
    return NULL;
}

/* The pages that a range touches: first, and how many. */
static int range_pages(const pllm_memory *memory, const memory_tensor *tensor, uint64_t offset,
                       uint64_t bytes, uint32_t *first_out, uint32_t *count_out)
{
    *first_out = *count_out = 0;
    if (offset > tensor->bytes || bytes > tensor->bytes - offset)
        return pllm_fail(PLLM_EINVAL, 0, "bytes %llu to %llu of a tensor of %llu",
                         (unsigned long long)offset, (unsigned long long)add_capped(offset, bytes),
                         (unsigned long long)tensor->bytes);
    *first_out = (uint32_t)(offset / memory->page_bytes);
    if (bytes) *count_out = (uint32_t)((offset + bytes - 1) / memory->page_bytes) - *first_out + 1;
    return PLLM_OK;
}

/* The pager answers bare where its caller can do something about it; a user needs a sentence. */
static int explain(const pllm_memory *memory, int status, uint32_t wanted)
{
    if (status != PLLM_EBUSY && status != PLLM_ENODEVMEM) return status;
    pllm_pager_stats stats;
    pllm_pager_stats_get(memory->pager, &stats);
    return pllm_fail(status, 0,
                     "%u pages of %llu bytes are wanted on the device, which holds %u, and %u are "
                     "pinned; unpin some, take smaller ranges or raise the device limit",
                     wanted, (unsigned long long)memory->page_bytes, stats.tiers.frame_limit,
                     stats.pinned);
}

static void pages_free(pllm_memory *memory, memory_tensor *tensor, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) pllm_pager_page_free(memory->pager, tensor->pages[i]);
}

static uint32_t bits_reversed(uint32_t value)
{
    uint32_t reversed = 0;
    for (int bit = 0; bit < 32; bit++) reversed |= (value >> bit & 1) << (31 - bit);
    return reversed;
}

static int tensor_fill(pllm_memory *memory, memory_tensor *tensor, uint32_t page_count)
{
    tensor->pages = pllm_alloc_array(memory->context, page_count, sizeof *tensor->pages);
    tensor->written = pllm_alloc(memory->context, page_count);
    tensor->pins = pllm_alloc_array(memory->context, page_count, sizeof *tensor->pins);
    if (!tensor->pages || !tensor->written || !tensor->pins)
        return pllm_fail_memory("a tensor", page_count * sizeof *tensor->pages);
    for (uint32_t i = 0; i < page_count; i++) {
        int status = pllm_pager_page_new(memory->pager, i ? tensor->pages[i - 1] : PLLM_NONE,
                                         bits_reversed(i), &tensor->pages[i]);
        if (status == PLLM_OK) continue;
        pages_free(memory, tensor, i);
        return status;
    }
    return PLLM_OK;
}

static int check_advice(pllm_memory_advice advice)
{
    if ((uint32_t)advice <= PLLM_MEMORY_SEQUENTIAL) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "there is no advice %d", (int)advice);
}

int pllm_memory_allocate(pllm_memory *memory, uint64_t bytes, pllm_memory_advice advice,
                         pllm_tensor *tensor_out)
{
    INSIDE(memory);
    *tensor_out = 0;
    int status = check_advice(advice);
    if (status < 0) return status;
    uint64_t page_count = bytes / memory->page_bytes + (bytes % memory->page_bytes != 0);
    if (bytes == 0 || page_count >= UINT32_MAX / 2)
        return pllm_fail(PLLM_EINVAL, 0, "a tensor of %llu bytes", (unsigned long long)bytes);
    uint32_t slot = memory->free_slot;
    if (slot >= memory->tensor_max)
        return pllm_fail(PLLM_ELIMIT, 0, "%u tensors exist, which is tensor_max",
                         memory->tensor_max);
    memory_tensor *tensor = &memory->tensors[slot];
    status = tensor_fill(memory, tensor, (uint32_t)page_count);
    if (status < 0) {
        tensor_release(memory, tensor);
        return status;
    }
    memory->free_slot = tensor->next_free;
    tensor->page_count = (uint32_t)page_count;
    tensor->bytes = bytes;
    tensor->sealed = 0;
    tensor->pin_count = 0;
    memory->tensor_count++;
    memory->tensor_bytes += bytes;
    pllm_tensor handle = (uint64_t)tensor->generation << 32 | (slot + 1);
    status = pllm_memory_advise(memory, handle, 0, bytes, advice);
    if (status < 0)
        (void)pllm_memory_deallocate(memory, handle); /* nothing of it is pinned */
    else
        *tensor_out = handle;
    return status;
}

int pllm_memory_deallocate(pllm_memory *memory, pllm_tensor handle)
{
    INSIDE(memory);
    memory_tensor *tensor = tensor_of(memory, handle);
    if (!tensor) return PLLM_ESTALE;
    if (tensor->pin_count)
        return pllm_fail(PLLM_EBUSY, 0, "tensor %llx is pinned; unpin it first",
                         (unsigned long long)handle);
    pages_free(memory, tensor, tensor->page_count);
    tensor_release(memory, tensor);
    memory->tensor_count--;
    memory->tensor_bytes -= tensor->bytes;
    tensor->generation++;
    tensor->next_free = memory->free_slot;
    memory->free_slot = (uint32_t)(tensor - memory->tensors);
    return PLLM_OK;
}

int pllm_memory_size(const pllm_memory *memory, pllm_tensor handle, uint64_t *bytes_out,
                     uint64_t *page_bytes_out)
{
    const memory_tensor *tensor = tensor_of(memory, handle);
    if (page_bytes_out) *page_bytes_out = memory->page_bytes;
    if (!tensor) return PLLM_ESTALE;
    *bytes_out = tensor->bytes;
    return PLLM_OK;
}

/* ---- touching ---- */

static int page_pin(pllm_memory *memory, memory_tensor *tensor, uint32_t index, pllm_pin_mode mode,
                    void **view_out)
{
    int status = pllm_pager_pin(memory->pager, &tensor->pages[index], 1, mode, view_out);
    return status < 0 ? explain(memory, status, 1) : PLLM_OK;
}

/* Bytes into a pinned page (from NULL: zeros) or out of it, by its view or by the device. */
static int page_store(pllm_memory *memory, memory_tensor *tensor, uint32_t index, void *view,
                      uint64_t within, const void *from, uint64_t bytes)
{
    if (view) {
        if (from)
            memcpy((char *)view + within, from, bytes);
        else
            memset((char *)view + within, 0, bytes);
        return PLLM_OK;
    }
    pllm_va to = pllm_pager_page_va(memory->pager, tensor->pages[index]) + within;
    int status = pllm_memory_copier_open(&memory->copier, memory->device);
    if (status < 0) return status;
    return from ? pllm_memory_copy_in(&memory->copier, to, from, bytes)
                : pllm_memory_copy_zero(&memory->copier, to, bytes);
}

static int page_load(pllm_memory *memory, memory_tensor *tensor, uint32_t index, const void *view,
                     uint64_t within, void *to, uint64_t bytes)
{
    if (view) {
        memcpy(to, (const char *)view + within, bytes);
        return PLLM_OK;
    }
    pllm_va from = pllm_pager_page_va(memory->pager, tensor->pages[index]) + within;
    int status = pllm_memory_copier_open(&memory->copier, memory->device);
    return status < 0 ? status : pllm_memory_copy_out(&memory->copier, to, from, bytes);
}

/* Gives content, zero, to a page that has none. */
static int page_make(pllm_memory *memory, memory_tensor *tensor, uint32_t index)
{
    if (tensor->written[index]) return PLLM_OK;
    void *view;
    int status = page_pin(memory, tensor, index, PLLM_PIN_NEW, &view);
    if (status < 0) return status;
    status = page_store(memory, tensor, index, view, 0, NULL, memory->page_bytes);
    if (status == PLLM_OK) tensor->written[index] = 1;
    if (status == PLLM_OK && tensor->sealed) pllm_pager_seal(memory->pager, tensor->pages[index]);
    pllm_pager_unpin(memory->pager, &tensor->pages[index], 1);
    return status;
}

static int fail_sealed(pllm_tensor handle)
{
    return pllm_fail(PLLM_EINVAL, 0, "tensor %llx is sealed and cannot be written",
                     (unsigned long long)handle);
}

int pllm_memory_write(pllm_memory *memory, pllm_tensor handle, uint64_t offset, uint64_t bytes,
                      const void *data)
{
    INSIDE(memory);
    memory_tensor *tensor = tensor_of(memory, handle);
    uint32_t index, count;
    if (!tensor) return PLLM_ESTALE;
    if (tensor->sealed) return fail_sealed(handle);
    int status = range_pages(memory, tensor, offset, bytes, &index, &count);
    const char *from = data;
    uint64_t within = offset % memory->page_bytes;
    for (; status == PLLM_OK && count > 0; index++, count--, within = 0) {
        uint64_t part = memory->page_bytes - within;
        if (part > bytes) part = bytes;
        int whole = part == memory->page_bytes;
        if (!whole) status = page_make(memory, tensor, index);
        void *view;
        if (status == PLLM_OK)
            status = page_pin(memory, tensor, index, whole ? PLLM_PIN_NEW : PLLM_PIN_WRITE, &view);
        if (status < 0) break;
        status = page_store(memory, tensor, index, view, within, from, part);
        if (status == PLLM_OK) tensor->written[index] = 1;
        pllm_pager_unpin(memory->pager, &tensor->pages[index], 1);
        from += part;
        bytes -= part;
    }
    return status;
}

int pllm_memory_read(pllm_memory *memory, pllm_tensor handle, uint64_t offset, uint64_t bytes,
                     void *data)
{
    INSIDE(memory);
    memory_tensor *tensor = tensor_of(memory, handle);
    uint32_t index, count;
    if (!tensor) return PLLM_ESTALE;
    int status = range_pages(memory, tensor, offset, bytes, &index, &count);
    char *to = data;
    uint64_t within = offset % memory->page_bytes;
    for (; status == PLLM_OK && count > 0; index++, count--, within = 0) {
        uint64_t part = memory->page_bytes - within;
        if (part > bytes) part = bytes;
        if (tensor->written[index]) {
            void *view;
            status = page_pin(memory, tensor, index, PLLM_PIN_READ, &view);
            if (status < 0) break;
            status = page_load(memory, tensor, index, view, within, to, part);
            pllm_pager_unpin(memory->pager, &tensor->pages[index], 1);
        } else {
            memset(to, 0, part); /* needs no page */
        }
        to += part;
        bytes -= part;
    }
    return status;
}

/* Where pinned pages are; neighbours become one. */
typedef struct place_list {
    pllm_memory_view *views; /* or */
    pllm_memory_place *places;
    uint32_t max;
} place_list;

static void place_set(const pllm_memory *memory, const place_list *list, uint32_t index, pllm_va va,
                      uint64_t bytes)
{
    if (list->places)
        list->places[index] = (pllm_memory_place){va, bytes};
    else
        list->views[index] =
            (pllm_memory_view){memory->device->ops->host_view(memory->device, va), bytes};
}

/* Returns how many there are, or EINVAL. */
static int places_fill(const pllm_memory *memory, const memory_tensor *tensor, uint64_t offset,
                       uint64_t bytes, const place_list *list)
{
    uint32_t used = 0;
    uint64_t within = offset % memory->page_bytes, length = 0;
    pllm_va start = 0;
    for (uint32_t index = (uint32_t)(offset / memory->page_bytes); bytes > 0; index++, within = 0) {
        uint64_t part = memory->page_bytes - within;
        if (part > bytes) part = bytes;
        pllm_va va = pllm_pager_page_va(memory->pager, tensor->pages[index]) + within;
        bytes -= part;
        if (used && start + length == va) {
            length += part;
        } else {
            if (used == list->max)
                return pllm_fail(PLLM_EINVAL, 0, "%u views are too few for a pinned range",
                                 list->max);
            start = va, length = part;
            used++;
        }
        place_set(memory, list, used - 1, start, length);
    }
    return (int)used;
}

/* Pins pages, which then are written as a whole: their content is not brought in. */
static int pin_new(pllm_memory *memory, memory_tensor *tensor, uint32_t first, uint32_t count)
{
    int status = pllm_pager_pin(memory->pager, tensor->pages + first, count, PLLM_PIN_NEW, NULL);
    if (status == PLLM_OK) memset(tensor->written + first, 1, count);
    return status;
}

/* Pins pages, which keep their content. */
static int pin_kept(pllm_memory *memory, memory_tensor *tensor, uint32_t first, uint32_t count,
                    pllm_pin_mode mode)
{
    int status = PLLM_OK;
    for (uint32_t i = 0; status == PLLM_OK && i < count; i++)
        status = page_make(memory, tensor, first + i);
    if (status < 0) return status;
    return pllm_pager_pin(memory->pager, tensor->pages + first, count, mode, NULL);
}

/* Overwriting: the pages at the ends may be covered in part, and then keep the rest. */
static int pin_overwritten(pllm_memory *memory, memory_tensor *tensor, uint64_t offset,
                           uint64_t bytes, uint32_t first, uint32_t count)
{
    uint64_t end = offset + bytes;
    uint32_t head = count > 0 && offset % memory->page_bytes != 0;
    uint32_t tail = count > head && end % memory->page_bytes != 0 && end != tensor->bytes;
    int status = pin_kept(memory, tensor, first, head, PLLM_PIN_WRITE);
    if (status < 0) return status;
    status = pin_kept(memory, tensor, first + count - tail, tail, PLLM_PIN_WRITE);
    if (status == PLLM_OK) {
        status = pin_new(memory, tensor, first + head, count - head - tail);
        if (status == PLLM_OK) return PLLM_OK;
        pllm_pager_unpin(memory->pager, tensor->pages + first + count - tail, tail);
    }
    pllm_pager_unpin(memory->pager, tensor->pages + first, head);
    return status;
}

static int pin_range(pllm_memory *memory, pllm_tensor handle, uint64_t offset, uint64_t bytes,
                     pllm_memory_mode mode, const place_list *list, uint32_t *count_out)
{
    INSIDE(memory);
    if (count_out) *count_out = 0;
    memory_tensor *tensor = tensor_of(memory, handle);
    uint32_t first, count;
    if (!tensor) return PLLM_ESTALE;
    if ((uint32_t)mode > PLLM_MEMORY_OVERWRITE)
        return pllm_fail(PLLM_EINVAL, 0, "there is no mode %d to pin in", (int)mode);
    if (mode != PLLM_MEMORY_READ && tensor->sealed) return fail_sealed(handle);
    int status = range_pages(memory, tensor, offset, bytes, &first, &count);
    if (status < 0) return status;
    if (mode == PLLM_MEMORY_OVERWRITE)
        status = pin_overwritten(memory, tensor, offset, bytes, first, count);
    else
        status = pin_kept(memory, tensor, first, count,
                          mode == PLLM_MEMORY_WRITE ? PLLM_PIN_WRITE : PLLM_PIN_READ);
    if (status < 0) return explain(memory, status, count);
    int used = list->views || list->places ? places_fill(memory, tensor, offset, bytes, list) : 0;
    if (used < 0) {
        pllm_pager_unpin(memory->pager, tensor->pages + first, count);
        return used;
    }
    if (count_out) *count_out = (uint32_t)used;
    for (uint32_t i = 0; i < count; i++) tensor->pins[first + i]++;
    tensor->pin_count += count;
    return PLLM_OK;
}

int pllm_memory_pin(pllm_memory *memory, pllm_tensor tensor, uint64_t offset, uint64_t bytes,
                    pllm_memory_mode mode, pllm_memory_view *views, uint32_t view_max,
                    uint32_t *view_count_out)
{
    place_list list = {.views = views, .max = view_max};
    return pin_range(memory, tensor, offset, bytes, mode, &list, view_count_out);
}

int pllm_memory_pin_device(pllm_memory *memory, pllm_tensor tensor, uint64_t offset, uint64_t bytes,
                           pllm_memory_mode mode, pllm_memory_place *places, uint32_t place_max,
                           uint32_t *place_count_out)
{
    place_list list = {.places = places, .max = place_max};
    return pin_range(memory, tensor, offset, bytes, mode, &list, place_count_out);
}

int pllm_memory_unpin(pllm_memory *memory, pllm_tensor handle, uint64_t offset, uint64_t bytes)
{
    INSIDE(memory);
    memory_tensor *tensor = tensor_of(memory, handle);
    uint32_t first, count;
    if (!tensor) return PLLM_ESTALE;
    int status = range_pages(memory, tensor, offset, bytes, &first, &count);
    if (status < 0) return status;
    for (uint32_t i = 0; i < count; i++)
        if (!tensor->pins[first + i])
            return pllm_fail(PLLM_EINVAL, 0, "a range is unpinned that is not pinned");
    for (uint32_t i = 0; i < count; i++) tensor->pins[first + i]--;
    tensor->pin_count -= count;
    pllm_pager_unpin(memory->pager, tensor->pages + first, count);
    return PLLM_OK;
}

int pllm_memory_ensure_resident(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                                uint64_t bytes)
{
    INSIDE(memory);
    int status = pllm_memory_pin(memory, tensor, offset, bytes, PLLM_MEMORY_READ, NULL, 0, NULL);
    return status < 0 ? status : pllm_memory_unpin(memory, tensor, offset, bytes);
}

int pllm_memory_advise(pllm_memory *memory, pllm_tensor handle, uint64_t offset, uint64_t bytes,
                       pllm_memory_advice advice)
{
    INSIDE(memory);
    static const pllm_hint hints[] = {
        [PLLM_MEMORY_NORMAL] = PLLM_NORMAL,
        [PLLM_MEMORY_WILL_NEED] = PLLM_WILL_NEED,
        [PLLM_MEMORY_DONT_NEED] = PLLM_DONT_NEED,
        [PLLM_MEMORY_KEEP] = PLLM_KEEP,
    };
    memory_tensor *tensor = tensor_of(memory, handle);
    uint32_t first, count;
    if (!tensor) return PLLM_ESTALE;
    int status = range_pages(memory, tensor, offset, bytes, &first, &count);
    if (status == PLLM_OK) status = check_advice(advice);
    if (status < 0) return status;
    if (advice == PLLM_MEMORY_SEQUENTIAL)
        return pllm_pager_scan(memory->pager, tensor->pages + first, count);
    pllm_pager_hint(memory->pager, tensor->pages + first, count, hints[advice]);
    return PLLM_OK;
}

int pllm_memory_seal(pllm_memory *memory, pllm_tensor handle)
{
    INSIDE(memory);
    memory_tensor *tensor = tensor_of(memory, handle);
    if (!tensor) return PLLM_ESTALE;
    tensor->sealed = 1;
    for (uint32_t i = 0; i < tensor->page_count; i++)
        if (tensor->written[i]) pllm_pager_seal(memory->pager, tensor->pages[i]);
    return PLLM_OK;
}

/* ---- limits ---- */

static int evicted_out(const pllm_memory *memory, int gone, uint64_t *evicted_bytes_out)
{
    if (evicted_bytes_out) *evicted_bytes_out = gone > 0 ? (uint64_t)gone * memory->page_bytes : 0;
    return gone < 0 ? gone : PLLM_OK;
}

int pllm_memory_evict(pllm_memory *memory, uint64_t bytes, uint64_t *evicted_bytes_out)
{
    INSIDE(memory);
    uint64_t frames = bytes / memory->page_bytes + (bytes % memory->page_bytes != 0);
    uint32_t count = frames < INT32_MAX ? (uint32_t)frames : INT32_MAX;
    return evicted_out(memory, pllm_pager_evict(memory->pager, count), evicted_bytes_out);
}

int pllm_memory_evict_range(pllm_memory *memory, pllm_tensor handle, uint64_t offset,
                            uint64_t bytes, uint64_t *evicted_bytes_out)
{
    INSIDE(memory);
    if (evicted_bytes_out) *evicted_bytes_out = 0;
    memory_tensor *tensor = tensor_of(memory, handle);
    uint32_t first, count;
    if (!tensor) return PLLM_ESTALE;
    int status = range_pages(memory, tensor, offset, bytes, &first, &count);
    if (status < 0) return status;
    int gone = pllm_pager_evict_pages(memory->pager, tensor->pages + first, count);
    return evicted_out(memory, gone, evicted_bytes_out);
}

int pllm_memory_set_vram_limit(pllm_memory *memory, uint64_t bytes)
{
    INSIDE(memory);
    if (bytes == 0) bytes = UINT64_MAX;
    if (bytes < memory->page_bytes)
        return pllm_fail(PLLM_EINVAL, 0, "a device limit of %llu bytes holds no page of %llu",
                         (unsigned long long)bytes, (unsigned long long)memory->page_bytes);
    int status = pllm_budget_set_limit(memory->budget, bytes);
    if (status == PLLM_OK) memory->vram_bytes = bytes;
    if (status == PLLM_OK) status = pllm_pager_set_device_limit(memory->pager, bytes);
    return explain(memory, status, 0);
}

int pllm_memory_poll(pllm_memory *memory)
{
    INSIDE(memory);
    int status = pllm_pager_poll(memory->pager);
    if (status == PLLM_OK) pllm_pager_tidy(memory->pager); /* no step is under way here */
    return status;
}

int pllm_memory_stats_get(const pllm_memory *memory, pllm_memory_stats *stats)
{
    INSIDE(memory);
    if (!stats || stats->struct_bytes < sizeof *stats)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_memory_stats.struct_bytes is not %zu",
                         sizeof *stats);
    pllm_pager_stats pager;
    pllm_pager_stats_get(memory->pager, &pager);
    uint64_t page = memory->page_bytes;
    const uint64_t(*bytes)[3] = pager.transfers.bytes;
    *stats = (pllm_memory_stats){
        .struct_bytes = stats->struct_bytes,
        .tensors = memory->tensor_count,
        .tensor_bytes = memory->tensor_bytes,
        .page_bytes = page,
        .pages = pager.pages,
        .resident_bytes = pager.resident * page,
        .resident_peak_bytes = pager.resident_peak * page,
        .vram_limit_bytes = pager.tiers.frame_limit * page,
        .host_bytes = pager.tiers.host_used * page,
        .disk_bytes = pager.tiers.disk_used * page,
        .hits = pager.hits,
        .misses = pager.misses,
        .evictions = pager.evictions,
        .prefetched = pager.prefetched,
        .prefetch_used = pager.prefetch_used,
        .bytes_in = bytes[PLLM_AT_HOST][PLLM_AT_DEVICE] + bytes[PLLM_AT_DISK][PLLM_AT_DEVICE],
        .bytes_out = bytes[PLLM_AT_DEVICE][PLLM_AT_HOST] + bytes[PLLM_AT_DEVICE][PLLM_AT_DISK],
        .disk_read_bytes = pager.transfers.disk_read_bytes,
        .disk_write_bytes = pager.transfers.disk_write_bytes,
    };
    return PLLM_OK;
}
