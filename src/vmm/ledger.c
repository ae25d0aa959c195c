/* ledger.c - members of a shared ledger: charging, waiting for what others give back, noticing the
 * dead. The rules are ledger_core.c's, the file and its lock ledger_file.c's.
 *
 * Fast path: lock, charge, unlock; no system call. Where there is no room: look for the dead (at
 * most every LOOK_NS, by anybody), then claim, and sleep on the ledger's word `progress` until the
 * claim is met, failed, or its deadline passes.
 *
 * Each member has a thread that sleeps on its row's word `request`. It calls the member's reclaim
 * outside of the lock, answers, and every TICK_NS looks for the dead and for who is late. So
 * whoever lives notices the dead, also while nobody charges.
 *
 * Wakes follow the unlock. Who dies between the two has woken nobody; every sleep here is short
 * enough for that not to matter.
 *
 * Locks: the file's, a leaf: nothing is called under it but the core. */
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/size.h"
#include "vmm/ledger.h"
#include "vmm/ledger_file.h"

#define MS_NS ((uint64_t)1000000)
#define LOOK_NS (50 * MS_NS)  /* between two looks for the dead */
#define TICK_NS (250 * MS_NS) /* of a member's thread, and of a wait */
#define AGAIN_NS (20 * MS_NS) /* before who owes what it promised is called again */
enum { WAIT_MS = 500, SUSPECTS = PLLM_LEDGER_ROWS + PLLM_LEDGER_CLAIMS + PLLM_LEDGER_HOLDERS };

_Static_assert(PLLM_LEDGER_ROWS == PLLM_LEDGER_MEMBERS_MAX, "ledger.h says how many");
_Static_assert(PLLM_LEDGER_NAME_BYTES == PLLM_LEDGER_NAME_MAX + 1, "ledger.h says how long");

struct pllm_ledger {
    const pllm_context *context;
    pllm_ledger_file *file;
    pllm_ledger_process self;
};

struct pllm_ledger_member {
    pllm_ledger *ledger;
    pllm_ledger_row *row;
    uint32_t index, generation; /* of its row: another's, where this one was taken for dead */
    uint32_t seen;              /* the last request its thread looked at */
    uint64_t wait_ns;
    uint64_t (*reclaim)(void *user, uint64_t bytes, uint64_t deadline_ns);
    void *user;
    pthread_t thread;
    int thread_runs;
    atomic_int stops;
};

/* ---- sleeping and waking, across processes ---- */

static void sleep_on(uint32_t *word, uint32_t value, uint64_t ns)
{
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000u),
                            .tv_nsec = (long)(ns % 1000000000u)};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &time, NULL, 0);
}

static void wake(uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Who should be woken once the lock is free: noted under it. */
typedef struct wakes {
    uint32_t progress;
    uint64_t rows; /* a bit each */
} wakes;

static wakes wakes_note(const pllm_ledger_core *core)
{
    wakes noted = {.progress = core->claim_count};
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        if (core->rows[i].asked_bytes && core->rows[i].request != core->rows[i].answered)
            noted.rows |= (uint64_t)1 << i;
    return noted;
}

static void wakes_do(pllm_ledger_core *core, wakes noted)
{
    if (noted.progress) wake(&core->progress);
    for (uint32_t i = 0; noted.rows; i++, noted.rows >>= 1)
        if (noted.rows & 1) wake(&core->rows[i].request);
}

static void unlock_and_wake(pllm_ledger *ledger)
{
    wakes noted = wakes_note(&ledger->file->core);
    pllm_ledger_file_unlock(ledger->file);
    wakes_do(&ledger->file->core, noted);
}

static pllm_ledger_core *lock(pllm_ledger *ledger)
{
    pllm_ledger_file_lock(ledger->file);
    return &ledger->file->core;
}

pllm_ledger_core *pllm_ledger_lock(pllm_ledger *ledger)
{
    return lock(ledger);
}

void pllm_ledger_unlock(pllm_ledger *ledger)
{
    unlock_and_wake(ledger);
}

/* ---- the dead ---- */

static uint32_t suspect_add(pllm_ledger_process *list, uint32_t count,
                            const pllm_ledger_process *process)
{
    for (uint32_t i = 0; i < count; i++)
        if (list[i].pid == process->pid && list[i].start == process->start) return count;
    list[count] = *process;
    return count + (process->pid != 0);
}

static uint32_t suspects_of(const pllm_ledger_core *core, pllm_ledger_process *list)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        if (core->rows[i].state == PLLM_LEDGER_LIVE)
            count = suspect_add(list, count, &core->rows[i].process);
    for (uint32_t i = 0; i < PLLM_LEDGER_HOLDERS; i++)
        if (core->holders[i].bytes) count = suspect_add(list, count, &core->holders[i].process);
    for (uint32_t i = 0; core->claim_count && i < PLLM_LEDGER_CLAIMS; i++)
        if (core->claims[i].kind != PLLM_LEDGER_CLAIM_NONE)
            count = suspect_add(list, count, &core->claims[i].waiter);
    return count;
}

/* A pid alone proves nothing: the process that has it now may have begun later. */
static int is_dead(const pllm_ledger_process *suspect)
{
    pllm_ledger_process found;
    int status = pllm_ledger_process_find(suspect->pid, &found);
    if (status == PLLM_ENOTFOUND) return 1;
    return status == PLLM_OK && found.start != suspect->start;
}

/* Returns how many were found. at_once 0: not where somebody has just looked. */
static uint32_t bury_the_dead(pllm_ledger *ledger, int at_once)
{
    pllm_ledger_process list[SUSPECTS + 1];
    uint64_t now = pllm_clock_ns();
    pllm_ledger_core *core = lock(ledger);
    int looks = at_once || now - ledger->file->looked_ns >= LOOK_NS;
    uint32_t count = looks ? suspects_of(core, list) : 0, dead = 0;
    if (looks) ledger->file->looked_ns = now;
    pllm_ledger_file_unlock(ledger->file);
    for (uint32_t i = 0; i < count; i++) {
        if (!is_dead(&list[i])) continue;
        pllm_ledger_core_reap(lock(ledger), &list[i], now);
        unlock_and_wake(ledger);
        dead++;
    }
    return dead;
}

/* ---- open and close ---- */

int pllm_ledger_open(const pllm_context *context, const char *name, uint64_t limit_bytes,
                     pllm_ledger **ledger_out)
{
    if (!ledger_out) return pllm_fail(PLLM_EINVAL, 0, "ledger_out is NULL");
    *ledger_out = NULL;
    pllm_ledger *ledger = pllm_alloc(context, sizeof *ledger);
    if (!ledger) return pllm_fail_memory("a ledger", sizeof *ledger);
    ledger->context = context;
    int status = pllm_ledger_process_find(getpid(), &ledger->self);
    if (status < 0)
        status = pllm_fail(PLLM_EUNSUPPORTED, 0,
                           "/proc/%d/stat cannot be read: a ledger needs /proc, to see who lives",
                           (int)getpid());
    if (status == PLLM_OK) status = pllm_ledger_file_open(name, limit_bytes, &ledger->file);
    if (status < 0) {
        pllm_free(context, ledger);
        return status;
    }
    *ledger_out = ledger;
    return PLLM_OK;
}

void pllm_ledger_close(pllm_ledger *ledger)
{
    if (!ledger) return;
    pllm_ledger_file_close(ledger->file);
    pllm_free(ledger->context, ledger);
}

int pllm_ledger_remove(const pllm_context *context, const char *name)
{
    char path[96];
    pllm_ledger *ledger;
    int status = pllm_ledger_open(context, name, 0, &ledger);
    if (status < 0) return status;
    bury_the_dead(ledger, 1);
    pllm_ledger_core *core = lock(ledger);
    uint32_t there = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        there += core->rows[i].state != PLLM_LEDGER_FREE;
    if (there)
        status = pllm_fail(PLLM_EBUSY, 0, "the ledger %s has %u members: end them first",
                           name ? name : "default", there);
    else if ((status = pllm_ledger_path(name, path, sizeof path)) == PLLM_OK && unlink(path) != 0)
        status = pllm_fail(PLLM_EIO, errno, "%s cannot be removed: %s", path, strerror(errno));
    pllm_ledger_file_unlock(ledger->file);
    pllm_ledger_close(ledger);
    return status;
}

/* ---- waiting ---- */

/* Until the claim is met or over. The lock is held, and not when this returns. */
static int claim_wait(pllm_ledger *ledger, uint64_t claim, int status, uint64_t deadline_ns)
{
    pllm_ledger_core *core = &ledger->file->core;
    for (;;) {
        uint32_t progress = core->progress;
        unlock_and_wake(ledger);
        if (status != PLLM_LEDGER_WAITS) return status;
        uint64_t now = pllm_clock_ns();
        if (now < deadline_ns) {
            uint64_t left = deadline_ns - now;
            sleep_on(&core->progress, progress, left < TICK_NS ? left : TICK_NS);
        }
        bury_the_dead(ledger, 0);
        lock(ledger);
        status = pllm_ledger_core_poll(core, claim, pllm_clock_ns());
    }
}

static int claim_make(pllm_ledger *ledger, uint32_t row, pllm_ledger_claim_kind kind,
                      uint64_t bytes, uint64_t wait_ns)
{
    uint64_t now = pllm_clock_ns();
    uint64_t deadline = wait_ns < UINT64_MAX - now ? now + wait_ns : UINT64_MAX;
    uint64_t claim = 0;
    int status = pllm_ledger_core_claim(&ledger->file->core, row, kind, bytes, &ledger->self, now,
                                        deadline, &claim);
    return claim_wait(ledger, claim, status, deadline);
}

/* Its row, with the lock held; NULL: it was taken for dead, and the row may be another's. */
static pllm_ledger_core *lock_own(pllm_ledger_member *member)
{
    pllm_ledger_core *core = lock(member->ledger);
    if (member->row->generation == member->generation) return core;
    pllm_ledger_file_unlock(member->ledger->file);
    return NULL;
}

/* Not enough is free: are all who owe alive, and could others give it? */
static int charge_slowly(pllm_ledger_member *member, uint64_t bytes)
{
    pllm_ledger *ledger = member->ledger;
    bury_the_dead(ledger, 0);
    pllm_ledger_core *core = lock_own(member);
    if (!core) return PLLM_ENODEVMEM;
    int status = pllm_ledger_core_charge(core, member->index, bytes);
    if (status == PLLM_ENODEVMEM &&
        pllm_ledger_core_room(core, member->index, 1, pllm_clock_ns()) >= bytes)
        return claim_make(ledger, member->index, PLLM_LEDGER_CLAIM_BYTES, bytes, member->wait_ns);
    if (status < 0) member->row->refused_count++, core->refused_count++;
    pllm_ledger_file_unlock(ledger->file);
    return status;
}

int pllm_ledger_charge(pllm_ledger_member *member, uint64_t bytes)
{
    pllm_ledger_core *core = lock_own(member);
    if (!core) return PLLM_ENODEVMEM;
    int status = pllm_ledger_core_charge(core, member->index, bytes);
    pllm_ledger_file_unlock(member->ledger->file);
    return status == PLLM_OK ? status : charge_slowly(member, bytes);
}

void pllm_ledger_credit(pllm_ledger_member *member, uint64_t bytes)
{
    pllm_ledger_core *core = lock_own(member);
    if (!core) return;
    pllm_ledger_core_credit(core, member->index, bytes);
    uint32_t waiting = core->claim_count;
    pllm_ledger_file_unlock(member->ledger->file);
    if (waiting) wake(&core->progress);
}

/* ---- a member's thread ---- */

static void answer(pllm_ledger_member *member)
{
    pllm_ledger *ledger = member->ledger;
    pllm_ledger_row *row = member->row;
    if (!lock_own(member)) {
        atomic_store(&member->stops, 1);
        return;
    }
    uint64_t asked = row->asked_bytes, deadline = row->asked_deadline_ns;
    uint64_t credited = row->credited_total_bytes;
    member->seen = row->request;
    pllm_ledger_file_unlock(ledger->file);
    uint64_t will = 0;
    if (asked && member->reclaim) will = member->reclaim(member->user, asked, deadline);
    if (!lock_own(member)) return;
    uint64_t done = row->credited_total_bytes - credited;
    pllm_ledger_core_answer(&ledger->file->core, member->index, member->seen,
                            will > done ? will - done : 0, pllm_clock_ns());
    unlock_and_wake(ledger);
}

static void *member_run(void *user)
{
    pllm_ledger_member *member = user;
    pllm_ledger *ledger = member->ledger;
    while (!atomic_load(&member->stops)) {
        int owes = member->reclaim && pllm_ledger_asked(member) > 0;
        sleep_on(&member->row->request, member->seen, owes ? AGAIN_NS : TICK_NS);
        if (atomic_load(&member->stops)) break;
        if (__atomic_load_n(&member->row->request, __ATOMIC_ACQUIRE) != member->seen || owes) {
            answer(member);
            if (!owes) continue;
        }
        bury_the_dead(ledger, 0);
        (void)pllm_ledger_core_plan(lock(ledger), pllm_clock_ns());
        unlock_and_wake(ledger);
    }
    return NULL;
}

/* Signals are the program's own threads' business. */
static int thread_start(pllm_ledger_member *member)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&member->thread, NULL, member_run, member);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code)
        return pllm_fail(PLLM_ENOMEM, code, "no thread for a ledger's member: %s", strerror(code));
    member->thread_runs = 1;
    return PLLM_OK;
}

/* ---- join and leave ---- */

/* The name, or with .2, .3... behind it where others have it. */
static int take_row(pllm_ledger *ledger, pllm_ledger_entry *entry, uint32_t *row_out)
{
    char base[PLLM_LEDGER_NAME_BYTES], name[PLLM_LEDGER_NAME_BYTES];
    snprintf(base, sizeof base, "%s", entry->name);
    entry->name = name;
    int status = PLLM_EEXIST;
    for (uint32_t i = 1; status == PLLM_EEXIST && i <= PLLM_LEDGER_ROWS + 1; i++) {
        char suffix[8] = "";
        if (i > 1) snprintf(suffix, sizeof suffix, ".%u", i % 1000);
        int room = (int)(sizeof name - 1 - strlen(suffix));
        snprintf(name, sizeof name, "%.*s%s", room, base, suffix);
        status = pllm_ledger_core_join(lock(ledger), entry, row_out);
        pllm_ledger_file_unlock(ledger->file);
    }
    if (status < 0)
        return pllm_fail(PLLM_ELIMIT, 0, "the ledger has %d members, as many as it can",
                         PLLM_LEDGER_ROWS);
    return status;
}

static int check_member(const pllm_ledger_member_options *options)
{
    if (!options || options->struct_bytes < sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_ledger_member_options.struct_bytes is not %zu",
                         sizeof *options);
    const char *name = options->name ? options->name : "pid";
    size_t bytes = strnlen(name, PLLM_LEDGER_NAME_BYTES);
    for (size_t i = 0; i < bytes; i++)
        if (name[i] <= ' ' || name[i] > '~') bytes = 0;
    if (bytes == 0 || bytes == PLLM_LEDGER_NAME_BYTES)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a ledger member's name has 1 to %d printable characters and no space",
                         PLLM_LEDGER_NAME_MAX);
    if (options->limit_bytes && options->minimum_bytes > options->limit_bytes)
        return pllm_fail(PLLM_EINVAL, 0, "%s: the minimum of %llu bytes is above its limit of %llu",
                         name, (unsigned long long)options->minimum_bytes,
                         (unsigned long long)options->limit_bytes);
    if (strcmp(name, "total") == 0)
        return pllm_fail(PLLM_EINVAL, 0, "a member cannot be called total: that is the ledger");
    return PLLM_OK;
}

/* The minimum, or a sentence that says what there is. The lock is not held. */
static int minimum_take(pllm_ledger *ledger, uint32_t row, const char *name, uint64_t bytes,
                        uint64_t wait_ns)
{
    bury_the_dead(ledger, 1);
    pllm_ledger_core *core = lock(ledger);
    int status = claim_make(ledger, row, PLLM_LEDGER_CLAIM_MINIMUM, bytes, wait_ns);
    if (status != PLLM_ENODEVMEM) return status;
    char wanted[32], free_text[32], minimums[32], limit[32];
    lock(ledger);
    uint64_t held = core->held_bytes, all = core->limit_bytes;
    uint64_t others = core->minimum_bytes - core->rows[row].minimum_bytes;
    pllm_ledger_file_unlock(ledger->file);
    return pllm_fail(PLLM_ENODEVMEM, 0,
                     "%s cannot have a minimum of %s: the ledger's limit is %s, the minimums of "
                     "others take %s, and %s is free; lower it, or end or lower another member",
                     name, pllm_size_text(bytes, wanted, sizeof wanted),
                     pllm_size_text(all, limit, sizeof limit),
                     pllm_size_text(others, minimums, sizeof minimums),
                     pllm_size_text(all > held ? all - held : 0, free_text, sizeof free_text));
}

int pllm_ledger_join(pllm_ledger *ledger, const pllm_ledger_member_options *options,
                     pllm_ledger_member **member_out)
{
    if (!member_out) return pllm_fail(PLLM_EINVAL, 0, "member_out is NULL");
    *member_out = NULL;
    int status = check_member(options);
    if (status < 0) return status;
    pllm_ledger_member *member = pllm_alloc(ledger->context, sizeof *member);
    if (!member) return pllm_fail_memory("a ledger's member", sizeof *member);
    char by_pid[24];
    snprintf(by_pid, sizeof by_pid, "pid-%d", (int)getpid());
    pllm_ledger_entry entry = {.name = options->name ? options->name : by_pid,
                               .process = ledger->self,
                               .priority = options->priority,
                               .gives_back = options->reclaim != NULL,
                               .adopts = options->adopt != 0,
                               .limit_bytes =
                                   options->limit_bytes ? options->limit_bytes : UINT64_MAX};
    member->ledger = ledger;
    member->wait_ns = (options->wait_ms ? options->wait_ms : WAIT_MS) * MS_NS;
    member->reclaim = options->reclaim;
    member->user = options->user;
    bury_the_dead(ledger, 1);
    status = take_row(ledger, &entry, &member->index);
    if (status < 0) {
        pllm_free(ledger->context, member);
        return status;
    }
    member->row = &ledger->file->core.rows[member->index];
    member->generation = member->row->generation;
    member->seen = member->row->request;
    if (options->minimum_bytes)
        status = minimum_take(ledger, member->index, member->row->name, options->minimum_bytes,
                              member->wait_ns);
    if (status == PLLM_OK) status = thread_start(member);
    if (status < 0) {
        pllm_ledger_leave(member);
        return status;
    }
    *member_out = member;
    return PLLM_OK;
}

void pllm_ledger_leave(pllm_ledger_member *member)
{
    if (!member) return;
    pllm_ledger *ledger = member->ledger;
    if (member->thread_runs) {
        atomic_store(&member->stops, 1);
        lock(ledger); /* whoever has the row by now wakes for nothing */
        __atomic_fetch_add(&member->row->request, 1, __ATOMIC_RELEASE); /* not one it may miss */
        pllm_ledger_file_unlock(ledger->file);
        wake(&member->row->request);
        pthread_join(member->thread, NULL);
    }
    pllm_ledger_core *core = lock_own(member);
    if (core) {
        pllm_ledger_core_leave(core, member->index, pllm_clock_ns());
        unlock_and_wake(ledger);
    }
    pllm_free(ledger->context, member);
}

const char *pllm_ledger_member_name(const pllm_ledger_member *member)
{
    return member->row->name;
}

uint32_t pllm_ledger_member_row(const pllm_ledger_member *member)
{
    return member->index;
}

uint64_t pllm_ledger_asked(const pllm_ledger_member *member)
{
    return __atomic_load_n(&member->row->asked_bytes, __ATOMIC_RELAXED);
}

uint64_t pllm_ledger_room(const pllm_ledger_member *member)
{
    pllm_ledger *ledger = member->ledger;
    uint64_t bytes = pllm_ledger_core_room(lock(ledger), member->index, 1, pllm_clock_ns());
    pllm_ledger_file_unlock(ledger->file);
    return bytes;
}

void pllm_ledger_set_reserved(pllm_ledger_member *member, uint64_t bytes)
{
    lock(member->ledger);
    member->row->reserved_bytes = bytes;
    pllm_ledger_file_unlock(member->ledger->file);
}

static int hold(pllm_ledger_member *member, const pllm_ledger_process *process, uint64_t bytes,
                const uint64_t *union_bytes)
{
    pllm_ledger_core *core = lock(member->ledger);
    if (union_bytes) core->rows[member->index].union_bytes = *union_bytes;
    int status = pllm_ledger_core_hold(core, member->index, process, bytes);
    unlock_and_wake(member->ledger);
    if (status < 0)
        return pllm_fail(status, 0,
                         "the ledger knows %d processes that map others' memory, as "
                         "many as it can",
                         PLLM_LEDGER_HOLDERS);
    return status;
}

int pllm_ledger_hold(pllm_ledger_member *member, int32_t pid, uint64_t bytes)
{
    pllm_ledger_process process;
    int status = pid ? pllm_ledger_process_find(pid, &process) : PLLM_OK;
    if (status < 0) return pllm_fail(PLLM_ENOTFOUND, 0, "there is no process %d", pid);
    return hold(member, pid ? &process : NULL, bytes, NULL);
}

int pllm_ledger_member_hold(pllm_ledger_member *member, const pllm_ledger_process *process,
                            uint64_t bytes, uint64_t union_bytes)
{
    return hold(member, process, bytes, &union_bytes);
}

void pllm_ledger_member_figures(const pllm_ledger_member *member, uint64_t *charged_out,
                                uint64_t *mapped_out)
{
    *charged_out = lock(member->ledger)->rows[member->index].charged_bytes;
    *mapped_out = pllm_ledger_core_mapped(&member->ledger->file->core, member->index);
    pllm_ledger_file_unlock(member->ledger->file);
}

/* ---- live changes ---- */

static int find_row(pllm_ledger *ledger, const char *name)
{
    int row = pllm_ledger_core_find(lock(ledger), name, 0);
    if (row >= 0 && ledger->file->core.rows[row].state != PLLM_LEDGER_LIVE) row = -1;
    pllm_ledger_file_unlock(ledger->file);
    if (row >= 0) return row;
    return pllm_fail(PLLM_ENOTFOUND, 0, "the ledger has no member %s: pagedllm top lists them",
                     name);
}

int pllm_ledger_set(pllm_ledger *ledger, const char *member_name, const pllm_ledger_change *change)
{
    if (!change || change->struct_bytes < sizeof *change)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_ledger_change.struct_bytes is not %zu",
                         sizeof *change);
    bury_the_dead(ledger, 1);
    int row = find_row(ledger, member_name);
    if (row < 0) return row;
    pllm_ledger_core *core = lock(ledger);
    pllm_ledger_row *at = &core->rows[row];
    uint32_t generation = at->generation;
    uint64_t minimum =
        change->minimum_bytes == UINT64_MAX ? at->minimum_bytes : change->minimum_bytes;
    uint64_t limit = change->limit_bytes == UINT64_MAX ? at->limit_bytes
                     : change->limit_bytes == 0        ? UINT64_MAX
                                                       : change->limit_bytes;
    int32_t priority = change->priority == INT32_MIN ? at->priority : change->priority;
    int status =
        pllm_ledger_core_set(core, (uint32_t)row, minimum, limit, priority, pllm_clock_ns());
    uint64_t had = at->limit_bytes;
    unlock_and_wake(ledger);
    if (status == PLLM_EINVAL) {
        char low[32], high[32];
        return pllm_fail(status, 0, "%s: its minimum of %s would be above its limit of %s",
                         member_name, pllm_size_text(minimum, low, sizeof low),
                         pllm_size_text(limit, high, sizeof high));
    }
    if (status != PLLM_ENODEVMEM) return status;
    if (minimum > had) /* the claim is held to the limit of now */
        return pllm_fail(PLLM_EINVAL, 0, "%s: raise its limit before its minimum", member_name);
    status = minimum_take(ledger, (uint32_t)row, member_name, minimum, WAIT_MS * MS_NS);
    if (status < 0) return status;
    lock(ledger);
    if (at->generation == generation)
        status =
            pllm_ledger_core_set(core, (uint32_t)row, minimum, limit, priority, pllm_clock_ns());
    unlock_and_wake(ledger);
    return status;
}

int pllm_ledger_set_limit(pllm_ledger *ledger, uint64_t limit_bytes)
{
    bury_the_dead(ledger, 1);
    pllm_ledger_core *core = lock(ledger);
    uint64_t minimums = core->minimum_bytes;
    int status = limit_bytes ? pllm_ledger_core_set_limit(core, limit_bytes, pllm_clock_ns())
                             : PLLM_ENODEVMEM;
    unlock_and_wake(ledger);
    char low[32], wanted[32];
    if (status < 0)
        return pllm_fail(status, 0,
                         "the ledger's limit cannot be %s: the minimums of its members together "
                         "are %s",
                         pllm_size_text(limit_bytes, wanted, sizeof wanted),
                         pllm_size_text(minimums, low, sizeof low));
    return status;
}

/* ---- looking ---- */

static void row_show(const pllm_ledger_core *core, uint32_t index, pllm_ledger_member_info *info)
{
    const pllm_ledger_row *row = &core->rows[index];
    *info = (pllm_ledger_member_info){
        .pid = row->process.pid,
        .priority = row->priority,
        .alive = row->state == PLLM_LEDGER_LIVE,
        .reserved_bytes = row->reserved_bytes,
        .charged_bytes = row->charged_bytes,
        .minimum_bytes = row->minimum_bytes,
        .limit_bytes = row->limit_bytes,
        .held_by_others_bytes = pllm_ledger_core_held_by_others(core, index),
        .asked_bytes = row->asked_bytes,
        .charged_total_bytes = row->charged_total_bytes,
        .credited_total_bytes = row->credited_total_bytes,
        .asked_count = row->asked_count,
        .given_back_bytes = row->given_back_bytes,
        .late_count = row->late_count,
        .refused_count = row->refused_count,
    };
    memcpy(info->name, row->name, sizeof info->name);
}

int pllm_ledger_list(pllm_ledger *ledger, pllm_ledger_member_info *rows, uint32_t member_max,
                     pllm_ledger_totals *totals_out)
{
    if (totals_out && totals_out->struct_bytes < sizeof *totals_out)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_ledger_totals.struct_bytes is not %zu",
                         sizeof *totals_out);
    bury_the_dead(ledger, 0);
    const pllm_ledger_core *core = lock(ledger);
    uint32_t count = 0, filled = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        if (core->rows[i].state == PLLM_LEDGER_FREE) continue;
        if (filled < member_max) row_show(core, i, &rows[filled++]);
        count++;
    }
    if (totals_out)
        *totals_out = (pllm_ledger_totals){
            .struct_bytes = totals_out->struct_bytes,
            .member_count = count,
            .limit_bytes = core->limit_bytes,
            .charged_bytes = core->charged_bytes,
            .peak_bytes = core->peak_bytes,
            .minimum_bytes = core->minimum_bytes,
            .held_bytes = core->held_bytes,
            .refused_count = core->refused_count,
        };
    pllm_ledger_file_unlock(ledger->file);
    return (int)filled;
}
