/* elastic.c - a vmm: the models registered in it, its limit, and the thread that maps ahead of them
 * and unmaps behind them. elastic.h has the picture and the order of locks. */
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "device/cuda.h"
#include "vmm/elastic.h"

#define PAGE_BYTES_MAX ((uint64_t)1 << 30)
#define HOST_PAGE_BYTES_MIN ((uint64_t)64 << 10)
#define POLL_NS 1000000 /* how often fences are asked while any is open */
enum { WAIT_MS = 500 };

/* ---- the background ---- */

void pllm_vmm_wake(pllm_vmm *vmm)
{
    if (!vmm->has_thread) return;
    pthread_mutex_lock(&vmm->wake_lock);
    if (!vmm->wanted) pthread_cond_signal(&vmm->wake);
    vmm->wanted = 1;
    pthread_mutex_unlock(&vmm->wake_lock);
}

int pllm_vmm_poll(pllm_vmm *vmm)
{
    uint64_t waiting = 0;
    pthread_mutex_lock(&vmm->lock);
    for (pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next) {
        pool->pins++;
        pthread_mutex_unlock(&vmm->lock);
        pthread_mutex_lock(&pool->lock);
        pllm_vmm_pool_settle(pool);
        pllm_vmm_pool_ahead(pool);
        waiting += pool->fence_count;
        pthread_mutex_unlock(&pool->lock);
        pthread_mutex_lock(&vmm->lock);
        pool->pins--;
        pthread_cond_broadcast(&vmm->unpinned);
    }
    pthread_mutex_unlock(&vmm->lock);
    return waiting < INT32_MAX ? (int)waiting : INT32_MAX;
}

static void *background(void *argument)
{
    pllm_vmm *vmm = argument;
    int waiting = 0;
    /* Whoever wakes it should go on at once, and not make way for it. */
    struct sched_param none = {0};
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
    pthread_mutex_lock(&vmm->wake_lock);
    while (!vmm->stopping) {
        struct timespec at;
        clock_gettime(CLOCK_MONOTONIC, &at);
        at.tv_nsec += POLL_NS;
        if (at.tv_nsec >= 1000000000) at.tv_sec++, at.tv_nsec -= 1000000000;
        if (!vmm->wanted && waiting)
            pthread_cond_timedwait(&vmm->wake, &vmm->wake_lock, &at);
        else if (!vmm->wanted)
            pthread_cond_wait(&vmm->wake, &vmm->wake_lock);
        if (vmm->stopping) break;
        if (!vmm->wanted && !waiting) continue;
        vmm->wanted = 0;
        pthread_mutex_unlock(&vmm->wake_lock);
        waiting = pllm_vmm_poll(vmm);
        pthread_mutex_lock(&vmm->wake_lock);
    }
    pthread_mutex_unlock(&vmm->wake_lock);
    return NULL;
}

int pllm_vmm_thread_start(pthread_t *thread, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

static int thread_start(pllm_vmm *vmm)
{
    int code = pllm_vmm_thread_start(&vmm->thread, background, vmm);
    if (code) return pllm_fail(PLLM_ENOMEM, code, "could not start a thread for a vmm");
    vmm->has_thread = 1;
    return PLLM_OK;
}

static void thread_stop(pllm_vmm *vmm)
{
    if (!vmm->has_thread) return;
    pthread_mutex_lock(&vmm->wake_lock);
    vmm->stopping = 1;
    pthread_cond_signal(&vmm->wake);
    pthread_mutex_unlock(&vmm->wake_lock);
    pthread_join(vmm->thread, NULL);
    vmm->has_thread = 0;
}

/* ---- other processes ---- */

uint64_t pllm_vmm_ledger_free(pllm_vmm *vmm)
{
    const pllm_ledger_core *core = pllm_ledger_lock(vmm->ledger);
    const pllm_ledger_row *own = &core->rows[pllm_ledger_member_row(vmm->ledger_member)];
    uint64_t bytes =
        core->held_bytes < core->limit_bytes ? core->limit_bytes - core->held_bytes : 0;
    if (own->charged_bytes < own->minimum_bytes) bytes += own->minimum_bytes - own->charged_bytes;
    uint64_t room =
        own->limit_bytes > own->charged_bytes ? own->limit_bytes - own->charged_bytes : 0;
    if (bytes > room) bytes = room;
    pllm_ledger_unlock(vmm->ledger);
    return bytes;
}

/* Another process asks: what nobody uses goes, then what models can spare. */
static uint64_t give_back(void *user, uint64_t bytes, uint64_t deadline_ns)
{
    uint64_t freed = pllm_vmm_reclaim(user, NULL, bytes, 1);
    return freed < bytes ? freed + pllm_vmm_ask_all(user, bytes - freed, deadline_ns) : freed;
}

static int ledger_open(pllm_vmm *vmm, const pllm_vmm_options *options)
{
    if (!options->ledger) return PLLM_OK;
    pllm_ledger_member_options member = {.struct_bytes = sizeof member,
                                         .priority = options->ledger_priority,
                                         .name = options->ledger_name,
                                         .minimum_bytes = options->ledger_minimum_bytes,
                                         .wait_ms = options->wait_ms,
                                         .reclaim = give_back,
                                         .user = vmm};
    int status =
        pllm_ledger_open(vmm->context, options->ledger, options->ledger_limit_bytes, &vmm->ledger);
    if (status < 0) return status;
    status = pllm_ledger_join(vmm->ledger, &member, &vmm->ledger_member);
    if (status < 0) {
        pllm_ledger_close(vmm->ledger);
        return status;
    }
    pllm_budget_attach(vmm->budget, vmm->ledger_member);
    return PLLM_OK;
}

static void ledger_close(pllm_vmm *vmm)
{
    if (!vmm->ledger) return;
    pllm_budget_attach(vmm->budget, NULL);
    pllm_ledger_leave(vmm->ledger_member); /* nobody asks any more */
    pllm_ledger_close(vmm->ledger);
}

/* ---- a vmm's life ---- */

int pllm_vmm_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    int code = pthread_condattr_init(&attributes);
    if (code) return code;
    code = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (!code) code = pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
    return code;
}

static int locks_open(pllm_vmm *vmm)
{
    if (pllm_vmm_cond_init(&vmm->wake)) goto fail;
    if (pllm_vmm_cond_init(&vmm->answered)) goto fail_wake;
    if (pthread_cond_init(&vmm->unpinned, NULL)) goto fail_answered;
    if (pthread_mutex_init(&vmm->lock, NULL)) goto fail_unpinned;
    if (pthread_mutex_init(&vmm->wake_lock, NULL)) goto fail_lock;
    if (pthread_mutex_init(&vmm->ask_lock, NULL)) goto fail_wake_lock;
    return PLLM_OK;
fail_wake_lock:
    pthread_mutex_destroy(&vmm->wake_lock);
fail_lock:
    pthread_mutex_destroy(&vmm->lock);
fail_unpinned:
    pthread_cond_destroy(&vmm->unpinned);
fail_answered:
    pthread_cond_destroy(&vmm->answered);
fail_wake:
    pthread_cond_destroy(&vmm->wake);
fail:
    return pllm_fail(PLLM_ENOMEM, 0, "could not make the locks of a vmm");
}

static void locks_close(pllm_vmm *vmm)
{
    pthread_mutex_destroy(&vmm->ask_lock);
    pthread_mutex_destroy(&vmm->wake_lock);
    pthread_mutex_destroy(&vmm->lock);
    pthread_cond_destroy(&vmm->unpinned);
    pthread_cond_destroy(&vmm->answered);
    pthread_cond_destroy(&vmm->wake);
}

int pllm_vmm_open(const pllm_context *context, pllm_device *device, const pllm_vmm_options *options,
                  pllm_vmm **vmm_out)
{
    if (!vmm_out) return pllm_fail(PLLM_EINVAL, 0, "vmm_out is NULL");
    *vmm_out = NULL;
    pllm_vmm_options chosen = {.struct_bytes = sizeof chosen};
    if (options) chosen = *options;
    if (!device || chosen.struct_bytes != sizeof chosen)
        return pllm_fail(PLLM_EINVAL, 0, "no device, or pllm_vmm_options.struct_bytes is not %zu",
                         sizeof chosen);
    pllm_device_info info;
    int status = device->ops->info(device, &info);
    if (status < 0) return status;
    pllm_vmm *vmm = pllm_alloc(context, sizeof *vmm);
    if (!vmm) return pllm_fail_memory("a vmm", sizeof *vmm);
    vmm->context = context;
    vmm->device = device;
    vmm->wait_ns = (uint64_t)(chosen.wait_ms ? chosen.wait_ms : WAIT_MS) * 1000000u;
    uint64_t limit = chosen.limit_bytes ? chosen.limit_bytes : info.total_bytes;
    status = pllm_budget_open(context, limit, &vmm->budget);
    if (status < 0) goto fail_vmm;
    status = locks_open(vmm);
    if (status < 0) goto fail_budget;
    status = ledger_open(vmm, &chosen);
    if (status < 0) goto fail_locks;
    if (!chosen.no_background) status = thread_start(vmm);
    if (status < 0) goto fail_ledger;
    *vmm_out = vmm;
    return PLLM_OK;
fail_ledger:
    ledger_close(vmm);
fail_locks:
    locks_close(vmm);
fail_budget:
    pllm_budget_close(vmm->budget);
fail_vmm:
    pllm_free(context, vmm);
    return status;
}

void pllm_vmm_close(pllm_vmm *vmm)
{
    if (!vmm) return;
    thread_stop(vmm);
    while (vmm->pools) pllm_vmm_unregister(vmm->pools);
    ledger_close(vmm);
    locks_close(vmm);
    pllm_budget_close(vmm->budget);
    pllm_free(vmm->context, vmm);
}

/* A limit is lower, or a minimum higher: what is unused goes, as far as it is in the way. */
static void shed_all(pllm_vmm *vmm)
{
    uint64_t freed;
    do { /* shares are in proportion: who has nothing to give leaves it to the others */
        freed = 0;
        pthread_mutex_lock(&vmm->lock);
        for (pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next) {
            pthread_mutex_lock(&pool->lock);
            freed += pllm_vmm_pool_shed(pool);
            pthread_mutex_unlock(&pool->lock);
        }
        pthread_mutex_unlock(&vmm->lock);
    } while (freed > 0);
    pllm_vmm_ask_excess(vmm);
}

/* ---- registering ---- */

static int check_name(const char *name)
{
    uint64_t bytes = name ? strnlen(name, PLLM_VMM_NAME_BYTES) : 0;
    if (bytes == 0 || bytes == PLLM_VMM_NAME_BYTES)
        return pllm_fail(PLLM_EINVAL, 0, "a model's name has 1 to %d characters",
                         PLLM_VMM_NAME_BYTES - 1);
    for (uint64_t i = 0; i < bytes; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return pllm_fail(PLLM_EINVAL, 0, "a model's name has no control characters");
    return PLLM_OK;
}

static int check_page(pllm_device *device, const pllm_device_info *info, uint64_t page_bytes)
{
    int cuda = pllm_cuda_is(device), power = (page_bytes & (page_bytes - 1)) == 0;
    if (page_bytes % info->granularity_bytes == 0 && page_bytes <= PAGE_BYTES_MAX &&
        (cuda || (power && page_bytes >= HOST_PAGE_BYTES_MIN)))
        return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0,
                     "pages of %llu bytes: on this device they are %s of at least %llu bytes and "
                     "at most 1 GiB",
                     (unsigned long long)page_bytes, cuda ? "multiples" : "powers of two",
                     (unsigned long long)info->granularity_bytes);
}

/* Fills in what the options leave open. */
static int pool_options(pllm_vmm *vmm, const pllm_vmm_pool_options *options,
                        pllm_vmm_pool_options *chosen)
{
    if (!options || options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0,
                         "no pllm_vmm_pool_options, or their struct_bytes is not %zu",
                         sizeof *options);
    *chosen = *options;
    pllm_device_info info;
    int status = vmm->device->ops->info(vmm->device, &info);
    if (status < 0) return status;
    uint64_t page = options->page_bytes ? options->page_bytes : info.chunk_bytes, rounded;
    status = check_page(vmm->device, &info, page);
    if (status < 0) return status;
    if (options->capacity_bytes == 0 ||
        __builtin_add_overflow(options->capacity_bytes, page - 1, &rounded))
        return pllm_fail(PLLM_EINVAL, 0, "a capacity of %llu bytes",
                         (unsigned long long)options->capacity_bytes);
    chosen->page_bytes = page;
    chosen->capacity_bytes = rounded - rounded % page;
    if (rounded / page > UINT32_MAX / 2)
        return pllm_fail(
            PLLM_ELIMIT, 0, "%llu bytes are more than %u pages of %llu: choose larger pages",
            (unsigned long long)options->capacity_bytes, UINT32_MAX / 2, (unsigned long long)page);
    return PLLM_OK;
}

static uint32_t page_count(uint64_t bytes, uint64_t page_bytes, uint32_t page_max)
{
    uint64_t pages = bytes / page_bytes + (bytes % page_bytes != 0);
    return pages < page_max ? (uint32_t)pages : page_max;
}

static int pool_memory(pllm_vmm_pool *pool, const pllm_vmm_pool_options *chosen)
{
    pool->used = pllm_alloc_array(pool->context, pool->page_max, sizeof *pool->used);
    pool->dirty = pllm_alloc(pool->context, pool->page_max);
    if (!pool->used || !pool->dirty)
        return pllm_fail_memory("a model's pages", (uint64_t)pool->page_max * 5);
    int clears = chosen->zero_on_reuse != 0;
#ifdef PLLM_CHECKS
    clears = 1; /* freed bytes are overwritten */
#endif
    return clears ? pool->device->ops->stream_open(pool->device, &pool->clearing) : PLLM_OK;
}

static int pool_region(pllm_vmm_pool *pool, const pllm_vmm_pool_options *chosen)
{
    pllm_region_options options = {
        .struct_bytes = sizeof options,
        .page_max = pool->page_max,
        .chunk_bytes = pool->page_bytes,
        .kept_max = page_count(chosen->kept_bytes, pool->page_bytes, pool->page_max),
        .zero_on_reuse = chosen->zero_on_reuse,
        .zero_behind = chosen->zero_behind,
    };
    int status =
        pllm_region_open(pool->context, pool->device, pool->member, &options, &pool->region);
    if (status < 0) return status;
    pool->base = pllm_region_base(pool->region);
    return PLLM_OK;
}

static int pool_locks(pllm_vmm_pool *pool)
{
    if (pthread_mutex_init(&pool->lock, NULL)) goto fail;
    if (pthread_cond_init(&pool->changed, NULL) == 0) return PLLM_OK;
    pthread_mutex_destroy(&pool->lock);
fail:
    return pllm_fail(PLLM_ENOMEM, 0, "could not make the locks of model %s", pool->name);
}

static void pool_free(pllm_vmm_pool *pool)
{
    if (pool->clearing) pool->device->ops->stream_close(pool->device, pool->clearing);
    pllm_free(pool->context, pool->used);
    pllm_free(pool->context, pool->dirty);
    pllm_free(pool->context, pool);
}

/* 0: all of its capacity, and the zeros behind it. */
static uint64_t limit_of(const pllm_vmm_pool *pool, uint64_t limit_bytes)
{
    return limit_bytes ? limit_bytes : pool->capacity + pool->zeros_bytes;
}

static int pool_open(pllm_vmm *vmm, const char *name, const pllm_vmm_pool_options *chosen,
                     pllm_vmm_pool **pool_out)
{
    pllm_vmm_pool *pool = pllm_alloc(vmm->context, sizeof *pool);
    if (!pool) return pllm_fail_memory("a model", sizeof *pool);
    pool->vmm = vmm;
    snprintf(pool->name, sizeof pool->name, "%s", name);
    pool->device = vmm->device;
    pool->context = vmm->context;
    pool->capacity = chosen->capacity_bytes;
    pool->page_bytes = chosen->page_bytes;
    pool->page_max = (uint32_t)(pool->capacity / pool->page_bytes);
    pool->minimum_bytes = chosen->minimum_bytes;
    pool->zeros_bytes = chosen->zero_behind ? pool->page_bytes : 0;
    pool->limit_bytes = limit_of(pool, chosen->limit_bytes);
    pool->zero_on_reuse = chosen->zero_on_reuse;
    pool->priority = chosen->priority;
    pool->asked.reclaim = chosen->reclaim;
    pool->asked.user = chosen->user;
    pool->ahead_pages = page_count(chosen->ahead_bytes, pool->page_bytes, pool->page_max);
    int status = pool_memory(pool, chosen);
    if (status < 0) goto fail_pool;
    status = pllm_spans_init(&pool->spans, pool->context, pool->capacity);
    if (status < 0) goto fail_pool;
    status =
        pllm_budget_join(vmm->budget, name, pool->minimum_bytes, pool->limit_bytes, &pool->member);
    if (status == PLLM_ENODEVMEM)
        pllm_fail(status, 0, "model %s: its minimum of %llu bytes does not fit beside the others'",
                  name, (unsigned long long)pool->minimum_bytes);
    if (status < 0) goto fail_spans;
    pllm_budget_member_priority(pool->member, pool->priority);
    status = pool_locks(pool);
    if (status < 0) goto fail_member;
    status = pool_region(pool, chosen);
    if (status < 0) goto fail_locks;
    status = pllm_vmm_asked_open(pool);
    if (status < 0) goto fail_region;
    *pool_out = pool;
    return PLLM_OK;
fail_region:
    pllm_region_close(pool->region);
fail_locks:
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
fail_member:
    pllm_budget_leave(pool->member);
fail_spans:
    pllm_spans_deinit(&pool->spans);
fail_pool:
    pool_free(pool);
    return status;
}

/* Nobody else knows the pool. */
static void pool_close(pllm_vmm_pool *pool)
{
    const pllm_device_ops *ops = pool->device->ops;
    pllm_vmm_asked_close(pool); /* it may be freeing */
    for (pllm_vmm_fence *fence = pool->fences; fence; fence = fence->next)
        (void)ops->event_wait(pool->device, fence->event, UINT64_MAX);
    pllm_region_close(pool->region); /* unmaps, then destroys, then gives the addresses back */
    pllm_vmm_fence *lists[] = {pool->fences, pool->spare_fences};
    for (int i = 0; i < 2; i++) {
        for (pllm_vmm_fence *fence = lists[i], *next; fence; fence = next) {
            next = fence->next;
            ops->event_close(pool->device, fence->event);
            pllm_free(pool->context, fence);
        }
    }
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
    pllm_budget_leave(pool->member);
    pllm_spans_deinit(&pool->spans);
    pool_free(pool);
}

/* The lock of the vmm is held: what people who look at the ledger see as reserved. */
static void reserved_tell(pllm_vmm *vmm)
{
    uint64_t bytes = 0;
    for (const pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next)
        if (__builtin_add_overflow(bytes, pool->capacity, &bytes)) bytes = UINT64_MAX;
    if (vmm->ledger_member) pllm_ledger_set_reserved(vmm->ledger_member, bytes);
}

static pllm_vmm_pool **find_link(pllm_vmm *vmm, const char *name)
{
    pllm_vmm_pool **link = &vmm->pools;
    while (*link && strcmp((*link)->name, name) != 0) link = &(*link)->next;
    return link;
}

int pllm_vmm_register(pllm_vmm *vmm, const char *name, const pllm_vmm_pool_options *options,
                      pllm_vmm_pool **pool_out)
{
    *pool_out = NULL;
    pllm_vmm_pool_options chosen;
    pllm_vmm_pool *pool;
    int status = check_name(name);
    if (status == PLLM_OK && pllm_vmm_find(vmm, name, &pool) == PLLM_OK)
        return pllm_fail(PLLM_EEXIST, 0, "there is a model %s already", name);
    if (status == PLLM_OK) status = pool_options(vmm, options, &chosen);
    if (status == PLLM_OK) status = pool_open(vmm, name, &chosen, &pool);
    if (status == PLLM_ENODEVMEM && pllm_vmm_reclaim(vmm, NULL, chosen.page_bytes, 1) > 0)
        status = pool_open(vmm, name, &chosen, &pool); /* a page of zeros had no room */
    if (status < 0) return status;
    pthread_mutex_lock(&vmm->lock);
    pllm_vmm_pool **link = find_link(vmm, name);
    if (*link)
        status = pllm_fail(PLLM_EEXIST, 0, "there is a model %s already", name);
    else
        *link = pool;
    reserved_tell(vmm);
    pthread_mutex_unlock(&vmm->lock);
    if (status < 0) {
        pool_close(pool);
        return status;
    }
    if (chosen.minimum_bytes) shed_all(vmm);
    *pool_out = pool;
    return PLLM_OK;
}

void pllm_vmm_unregister(pllm_vmm_pool *pool)
{
    if (!pool) return;
    pllm_vmm *vmm = pool->vmm;
    pthread_mutex_lock(&vmm->lock);
    while (pool->pins) pthread_cond_wait(&vmm->unpinned, &vmm->lock);
    pllm_vmm_pool **link = find_link(vmm, pool->name);
    assert(*link == pool);
    *link = pool->next;
    reserved_tell(vmm);
    pthread_mutex_unlock(&vmm->lock);
    pool_close(pool);
}

int pllm_vmm_find(pllm_vmm *vmm, const char *name, pllm_vmm_pool **pool_out)
{
    *pool_out = NULL;
    int status = check_name(name);
    if (status < 0) return status;
    pthread_mutex_lock(&vmm->lock);
    *pool_out = *find_link(vmm, name);
    pthread_mutex_unlock(&vmm->lock);
    return *pool_out ? PLLM_OK : pllm_fail(PLLM_ENOTFOUND, 0, "there is no model %s", name);
}

/* ---- limits ---- */

uint64_t pllm_vmm_reclaim(pllm_vmm *vmm, const pllm_vmm_pool *asking, uint64_t bytes, int full)
{
    uint64_t freed = 0;
    pthread_mutex_lock(&vmm->lock);
    for (pllm_vmm_pool *pool = vmm->pools; pool && freed < bytes; pool = pool->next) {
        pthread_mutex_lock(&pool->lock);
        uint64_t before = pllm_budget_charged(pool->member), wanted = bytes - freed;
        pllm_vmm_pool_settle(pool);
        uint64_t held = pllm_budget_charged(pool->member);
        /* Below its minimum nobody else gains by what it gives. */
        uint64_t above = held > pool->minimum_bytes ? held - pool->minimum_bytes : 0;
        if (!full && pool != asking && wanted > above) wanted = above;
        if (wanted) (void)pllm_vmm_pool_yield(pool, wanted);
        uint64_t after = pllm_budget_charged(pool->member);
        if (after < before) freed += before - after; /* else others took it at once */
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_mutex_unlock(&vmm->lock);
    return freed;
}

int pllm_vmm_set_limit(pllm_vmm *vmm, uint64_t limit_bytes)
{
    if (limit_bytes == 0) return pllm_fail(PLLM_EINVAL, 0, "a limit of no bytes");
    int status = pllm_budget_set_limit(vmm->budget, limit_bytes);
    if (status < 0)
        return pllm_fail(status, 0, "the models' minimums do not fit in %llu bytes",
                         (unsigned long long)limit_bytes);
    shed_all(vmm);
    return PLLM_OK;
}

int pllm_vmm_pool_set(pllm_vmm_pool *pool, uint64_t minimum_bytes, uint64_t limit_bytes)
{
    pthread_mutex_lock(&pool->lock);
    uint64_t limit = limit_of(pool, limit_bytes);
    int status = pllm_budget_member_set(pool->member, minimum_bytes, limit);
    if (status == PLLM_OK) {
        pool->minimum_bytes = minimum_bytes;
        pool->limit_bytes = limit;
    } else if (status == PLLM_ENODEVMEM) {
        pllm_fail(status, 0, "model %s: a minimum of %llu bytes does not fit beside the others'",
                  pool->name, (unsigned long long)minimum_bytes);
    }
    pthread_mutex_unlock(&pool->lock);
    if (status == PLLM_OK) shed_all(pool->vmm);
    return status;
}

void pllm_vmm_compact(pllm_vmm *vmm, uint64_t *freed_bytes_out)
{
    uint64_t freed = pllm_vmm_reclaim(vmm, NULL, UINT64_MAX, 1);
    if (freed_bytes_out) *freed_bytes_out = freed;
}

void pllm_vmm_pool_compact(pllm_vmm_pool *pool, uint64_t *freed_bytes_out)
{
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_settle(pool);
    uint64_t freed = pllm_vmm_pool_yield(pool, UINT64_MAX);
    pthread_mutex_unlock(&pool->lock);
    if (freed_bytes_out) *freed_bytes_out = freed;
}

/* ---- figures ---- */

static void pool_figures(pllm_vmm_pool *pool, pllm_vmm_pool_stats *stats)
{
    const pllm_spans *spans = &pool->spans;
    pllm_region_stats region;
    pthread_mutex_lock(&pool->lock);
    pllm_region_stats_get(pool->region, &region);
    *stats = (pllm_vmm_pool_stats){
        .struct_bytes = sizeof *stats,
        .pending = pool->fence_count,
        .capacity_bytes = pool->capacity,
        .page_bytes = pool->page_bytes,
        .minimum_bytes = pool->minimum_bytes,
        .limit_bytes = pool->limit_bytes,
        .allocations = spans->count[PLLM_SPAN_PLACED] + spans->count[PLLM_SPAN_BLOCK],
        .allocated_bytes = spans->bytes[PLLM_SPAN_PLACED] + spans->bytes[PLLM_SPAN_BLOCK],
        .physical_bytes = pllm_budget_charged(pool->member),
        .mapped_bytes = region.mapped_count * pool->page_bytes,
        .mapped_peak_bytes = region.mapped_peak * pool->page_bytes,
        .ahead_bytes = pool->idle_count * pool->page_bytes,
        .pending_bytes = spans->bytes[PLLM_SPAN_PENDING],
        .kept_bytes = region.kept_count * pool->page_bytes,
        .free_bytes = spans->bytes[PLLM_SPAN_FREE],
        .free_run_bytes = pllm_spans_longest_free(spans),
        .created_pages = region.created_chunks,
        .reused_pages = region.reused_chunks,
    };
    pthread_mutex_lock(&pool->vmm->ask_lock);
    stats->asked_count = pool->asked.count;
    stats->given_back_bytes = pool->asked.given_back_bytes;
    stats->late_count = pool->asked.late_count;
    pthread_mutex_unlock(&pool->vmm->ask_lock);
    pthread_mutex_unlock(&pool->lock);
    if (stats->free_bytes)
        stats->fragmentation = 1 - (double)stats->free_run_bytes / (double)stats->free_bytes;
    memcpy(stats->name, pool->name, sizeof stats->name);
}

int pllm_vmm_pool_stats_get(pllm_vmm_pool *pool, pllm_vmm_pool_stats *stats)
{
    if (!stats || stats->struct_bytes != sizeof *stats)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_vmm_pool_stats, or their struct_bytes is not %zu",
                         sizeof *stats);
    pool_figures(pool, stats);
    return PLLM_OK;
}

int pllm_vmm_stats_get(pllm_vmm *vmm, pllm_vmm_stats *stats)
{
    if (!stats || stats->struct_bytes != sizeof *stats)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_vmm_stats, or their struct_bytes is not %zu",
                         sizeof *stats);
    pllm_budget_stats budget;
    pllm_budget_stats_get(vmm->budget, &budget);
    *stats = (pllm_vmm_stats){
        .struct_bytes = sizeof *stats,
        .models = budget.member_count,
        .limit_bytes = budget.limit_bytes,
        .physical_bytes = budget.charged_bytes,
        .physical_peak_bytes = budget.peak_bytes,
        .excess_bytes = budget.charged_bytes > budget.limit_bytes
                            ? budget.charged_bytes - budget.limit_bytes
                            : 0,
        .refused_count = budget.refused_count,
    };
    return PLLM_OK;
}

int pllm_vmm_list(pllm_vmm *vmm, pllm_vmm_pool_stats *stats, uint32_t stats_max,
                  uint32_t *count_out)
{
    if (!count_out || (stats_max && (!stats || stats->struct_bytes != sizeof *stats)))
        return pllm_fail(PLLM_EINVAL, 0,
                         "no count, or the first pllm_vmm_pool_stats' struct_bytes is not %zu",
                         sizeof *stats);
    uint32_t count = 0;
    pthread_mutex_lock(&vmm->lock);
    for (pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next, count++)
        if (count < stats_max) pool_figures(pool, &stats[count]);
    pthread_mutex_unlock(&vmm->lock);
    *count_out = count;
    return PLLM_OK;
}

uint64_t pllm_vmm_base(const pllm_vmm_pool *pool)
{
    return pool->base;
}

uint64_t pllm_vmm_capacity(const pllm_vmm_pool *pool)
{
    return pool->capacity;
}

uint64_t pllm_vmm_page_bytes(const pllm_vmm_pool *pool)
{
    return pool->page_bytes;
}
