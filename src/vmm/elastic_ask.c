/* elastic_ask.c - models that are asked to give back what they have allocated.
 *
 *   who allocates, and finds too little --plan--> requests of the models that may be asked
 *   the ledger's thread, asked itself   --plan-->   |
 *   a limit that was lowered            --plan-->   v
 *                                       a thread a model: reclaim(), then its unused pages go
 *                                                   |
 *   who waits looks again  <----- answered ---------+
 *
 * Nothing is handed over: what is given back is free for everybody, but for claims (budget.h), and
 * who waits tries again, and plans anew from what is there then. So a request says how much is
 * wanted of a model now, and is the most that anybody wants, not the sum.
 *
 * Life of a request: none -post-> open -reclaim has returned-> none, or owed: what it promised
 *                    owed -given-> none; -a while later, or for more-> open
 *                    open, owed -deadline-> late, and not asked for PATIENCE_NS
 *
 * Locks: vmm->ask_lock, a leaf but for the budget's, for all that is in pool->asked; posting takes
 * vmm->lock before it, so that no model goes meanwhile. Waiting and calling hold neither. */
#include <time.h>
#include "base/clock.h"
#include "vmm/elastic.h"

#define MS_NS ((uint64_t)1000000)
#define TICK_NS (5 * MS_NS)        /* of a wait: others may free without being asked */
#define AGAIN_NS (20 * MS_NS)      /* before who owes is called again */
#define PATIENCE_NS (1000 * MS_NS) /* for a lowered limit; and of who was late, afterwards */
#define ANYBODY ((int64_t)1 << 32) /* above all priorities */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int is_open(const pllm_vmm_asked *asked)
{
    return asked->bytes && (asked->running || asked->seen != asked->request);
}

/* ---- what a model can give ---- */

/* What it owed has come, or its time is over. */
static void look(pllm_vmm_pool *pool, uint64_t now)
{
    pllm_vmm_asked *asked = &pool->asked;
    if (!asked->bytes) return;
    if (!is_open(asked)) {
        uint64_t held = pllm_budget_charged(pool->member);
        if (held < asked->owed_from) {
            uint64_t given = least(asked->bytes, asked->owed_from - held);
            asked->owed_from -= given;
            asked->bytes -= given;
            asked->given_back_bytes += given;
            pool->vmm->given_back_bytes += given;
        }
    }
    if (!asked->bytes || now < asked->deadline_ns) return;
    asked->bytes = 0;
    asked->late_count++;
    asked->floor_bytes = UINT64_MAX;
    asked->floor_until_ns = now + PATIENCE_NS;
}

static uint64_t supply(const pllm_vmm_pool *pool, uint64_t now)
{
    const pllm_vmm_asked *asked = &pool->asked;
    if (!asked->reclaim || asked->stopping) return 0;
    if (asked->running && !asked->bytes) return 0; /* late, and has not come back yet */
    return pllm_budget_member_loan(pool->member,
                                   now < asked->floor_until_ns ? asked->floor_bytes : 0);
}

/* ---- asking ---- */

static void post(pllm_vmm_pool *pool, uint64_t bytes, uint64_t deadline_ns)
{
    pllm_vmm_asked *asked = &pool->asked;
    if (asked->bytes >= bytes) return;
    if (!asked->bytes || deadline_ns > asked->deadline_ns) asked->deadline_ns = deadline_ns;
    asked->bytes = bytes;
    asked->request++;
    pthread_cond_signal(&asked->wake);
}

/* The one to be asked next: the lowest, and of equals who can give most. */
static pllm_vmm_pool *next_of(pllm_vmm *vmm, const pllm_vmm_pool *asking, int64_t below,
                              uint64_t now)
{
    pllm_vmm_pool *best = NULL;
    uint64_t most = 0;
    for (pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next) {
        if (pool == asking || pool->priority >= below || pool->asked.planned_bytes) continue;
        uint64_t there = supply(pool, now);
        if (there == 0 || (best && (pool->priority > best->priority ||
                                    (pool->priority == best->priority && there <= most))))
            continue;
        best = pool;
        most = there;
    }
    return best;
}

/* Both locks are held. Asks for all of bytes, or of nobody; partly: for what there is. Returns what
 * is missing. */
static uint64_t plan(pllm_vmm *vmm, const pllm_vmm_pool *asking, int64_t below, uint64_t bytes,
                     uint64_t now, uint64_t deadline_ns, int partly)
{
    pllm_vmm_pool *pool;
    for (pool = vmm->pools; pool; pool = pool->next) {
        look(pool, now);
        pool->asked.planned_bytes = 0;
    }
    while (bytes && (pool = next_of(vmm, asking, below, now)) != NULL) {
        pool->asked.planned_bytes = least(bytes, supply(pool, now));
        if (pool->asked.planned_bytes == 0) break; /* it has freed it this moment */
        bytes -= pool->asked.planned_bytes;
    }
    for (pool = vmm->pools; pool && (!bytes || partly); pool = pool->next)
        if (pool->asked.planned_bytes) post(pool, pool->asked.planned_bytes, deadline_ns);
    return bytes;
}

static void lock_both(pllm_vmm *vmm)
{
    pthread_mutex_lock(&vmm->lock);
    pthread_mutex_lock(&vmm->ask_lock);
}

static void unlock_both(pllm_vmm *vmm)
{
    pthread_mutex_unlock(&vmm->ask_lock);
    pthread_mutex_unlock(&vmm->lock);
}

/* ask_lock alone is held. */
static void wait_until(pllm_vmm *vmm, pthread_cond_t *what, uint64_t until_ns)
{
    struct timespec at = {.tv_sec = (time_t)(until_ns / 1000000000u),
                          .tv_nsec = (long)(until_ns % 1000000000u)};
    (void)pthread_cond_timedwait(what, &vmm->ask_lock, &at);
}

static int is_asked_thread(const pllm_vmm *vmm)
{
    for (const pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next)
        if (pool->asked.has_thread && pthread_equal(pool->asked.thread, pthread_self())) return 1;
    return 0;
}

int pllm_vmm_ask(pllm_vmm_pool *pool, uint64_t bytes, int minimum, uint64_t deadline_ns)
{
    pllm_vmm *vmm = pool->vmm;
    uint64_t now = pllm_clock_ns();
    if (now >= deadline_ns) return 0;
    lock_both(vmm);
    uint64_t missing = bytes;
    if (!is_asked_thread(vmm))
        missing = plan(vmm, pool, minimum ? ANYBODY : pool->priority, bytes, now, deadline_ns, 0);
    pthread_mutex_unlock(&vmm->lock);
    if (missing == 0) wait_until(vmm, &vmm->answered, least(deadline_ns, now + TICK_NS));
    pthread_mutex_unlock(&vmm->ask_lock);
    return missing == 0;
}

uint64_t pllm_vmm_ask_all(pllm_vmm *vmm, uint64_t bytes, uint64_t deadline_ns)
{
    uint64_t now = pllm_clock_ns(), owed;
    int open = 1;
    lock_both(vmm);
    uint64_t before = vmm->given_back_bytes;
    (void)plan(vmm, NULL, ANYBODY, bytes, now, deadline_ns, 1);
    for (;;) {
        open = 0;
        owed = 0;
        for (pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next) {
            look(pool, now);
            open |= is_open(&pool->asked);
            owed += pool->asked.bytes;
        }
        if (!open || now >= deadline_ns || vmm->given_back_bytes - before >= bytes) break;
        pthread_mutex_unlock(&vmm->lock);
        wait_until(vmm, &vmm->answered, least(deadline_ns, now + AGAIN_NS));
        pthread_mutex_unlock(&vmm->ask_lock);
        now = pllm_clock_ns();
        lock_both(vmm);
    }
    uint64_t given = vmm->given_back_bytes - before;
    unlock_both(vmm);
    return given < bytes ? least(bytes, given + owed) : bytes;
}

void pllm_vmm_ask_excess(pllm_vmm *vmm)
{
    uint64_t now = pllm_clock_ns(), over = pllm_budget_over(vmm->budget);
    lock_both(vmm);
    if (over) (void)plan(vmm, NULL, ANYBODY, over, now, now + PATIENCE_NS, 1);
    for (pllm_vmm_pool *pool = vmm->pools; pool; pool = pool->next) {
        uint64_t own = least(pllm_budget_member_over(pool->member), supply(pool, now));
        if (own) post(pool, own, now + PATIENCE_NS);
    }
    unlock_both(vmm);
}

/* ---- a model's thread ---- */

/* Without a lock. Returns what it owes after that; *given_out: what it gave. */
static uint64_t call(pllm_vmm_pool *pool, uint64_t bytes, uint64_t deadline_ns, uint64_t *given_out)
{
    const pllm_vmm_asked *asked = &pool->asked;
    uint64_t before = pllm_budget_charged(pool->member);
    uint64_t will = asked->reclaim(asked->user, pool, bytes, deadline_ns);
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_settle(pool);
    uint64_t after = pllm_budget_charged(pool->member);
    uint64_t left = before > after ? before - after : 0; /* what was freed may have been kept */
    left = least(left < bytes ? bytes - left : 0, pllm_budget_member_loan(pool->member, 0));
    if (left) (void)pllm_vmm_pool_yield(pool, left);
    after = pllm_budget_charged(pool->member);
    pthread_mutex_unlock(&pool->lock);
    *given_out = before > after ? before - after : 0;
    return least(will, bytes) > *given_out ? least(will, bytes) - *given_out : 0;
}

static void answer(pllm_vmm_pool *pool, uint64_t bytes, uint64_t given, uint64_t owes)
{
    pllm_vmm_asked *asked = &pool->asked;
    asked->called_ns = pllm_clock_ns();
    asked->running = 0;
    asked->given_back_bytes += given;
    pool->vmm->given_back_bytes += given;
    asked->owed_from = pllm_budget_charged(pool->member);
    if (asked->request != asked->seen) { /* for more, or for less that is left of it */
        asked->bytes = asked->bytes > given ? asked->bytes - given : 0;
    } else if (asked->bytes) {
        asked->bytes = owes;
        if (given + owes < bytes) { /* it goes no lower for now */
            asked->floor_bytes = asked->owed_from > owes ? asked->owed_from - owes : 0;
            asked->floor_until_ns = asked->deadline_ns;
        }
        look(pool, asked->called_ns);
    }
    pthread_cond_broadcast(&pool->vmm->answered);
}

static void *asked_run(void *argument)
{
    pllm_vmm_pool *pool = argument;
    pllm_vmm_asked *asked = &pool->asked;
    pthread_mutex_t *lock = &pool->vmm->ask_lock;
    pthread_mutex_lock(lock);
    while (!asked->stopping) {
        uint64_t now = pllm_clock_ns(), again_ns = asked->called_ns + AGAIN_NS, given;
        look(pool, now);
        uint64_t bytes = asked->bytes, deadline_ns = asked->deadline_ns;
        if (bytes == 0) asked->seen = asked->request; /* it was late */
        if (asked->seen == asked->request && (bytes == 0 || now < again_ns)) {
            if (bytes == 0)
                pthread_cond_wait(&asked->wake, lock);
            else /* it owes */
                wait_until(pool->vmm, &asked->wake, least(again_ns, deadline_ns));
            continue;
        }
        asked->seen = asked->request;
        asked->running = 1;
        asked->count++;
        pthread_mutex_unlock(lock);
        uint64_t owes = call(pool, bytes, deadline_ns, &given);
        pthread_mutex_lock(lock);
        answer(pool, bytes, given, owes);
    }
    pthread_mutex_unlock(lock);
    return NULL;
}

int pllm_vmm_asked_open(pllm_vmm_pool *pool)
{
    pllm_vmm_asked *asked = &pool->asked;
    if (!asked->reclaim) return PLLM_OK;
    int code = pllm_vmm_cond_init(&asked->wake);
    if (code) return pllm_fail(PLLM_ENOMEM, code, "could not make the locks of a model");
    code = pllm_vmm_thread_start(&asked->thread, asked_run, pool);
    if (code) {
        pthread_cond_destroy(&asked->wake);
        return pllm_fail(PLLM_ENOMEM, code, "could not start a thread for model %s", pool->name);
    }
    asked->has_thread = 1;
    return PLLM_OK;
}

void pllm_vmm_asked_close(pllm_vmm_pool *pool)
{
    pllm_vmm_asked *asked = &pool->asked;
    if (!asked->has_thread) return;
    pthread_mutex_lock(&pool->vmm->ask_lock);
    asked->stopping = 1;
    pthread_cond_signal(&asked->wake);
    pthread_mutex_unlock(&pool->vmm->ask_lock);
    pthread_join(asked->thread, NULL);
    pthread_cond_destroy(&asked->wake);
    asked->has_thread = 0;
}
