/* Goal: whatever is moved in whatever order over a device and a disk that are late, fail and lie, a
 * page that is reported to have arrived has the right bytes, everything ends, and nothing else is
 * disturbed.
 * Method: a model knows what every frame and slot should hold. Seeded operations are submitted and
 * polled; when a ticket is over its outcome is applied to the model and the frame compared. Slots
 * are used by several transfers at once (the engine orders them); frames by one, as the pager does.
 * PLLM_SIM_SEEDS: how many seeds (200). PLLM_SIM_SEED: replay this one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tier_rig.h"

enum {
    FRAMES = 40,
    SLOTS = 48, /* of each place */
    TICKETS = 64,
    STEPS = 400,
    UNKNOWN = -1, /* content that a failure left undefined: may be read back only as an error */
};

typedef struct move {
    int live, released;
    uint32_t place, frame, slot, inward;
    int64_t content; /* outward: what is written; inward: what should arrive */
    pllm_ticket ticket;
    uint64_t tag;
} move;

typedef struct world {
    uint64_t seed, random;
    tier_rig rig;
    pllm_device *device, *faulty;
    pllm_disk *disk;
    int honest; /* nothing is made to fail: nothing may */
    int frame_busy[FRAMES];
    /* What a slot will hold when everything submitted so far is over. */
    int64_t slot_content[3][SLOTS];
    uint64_t next_content;
    move moves[TICKETS];
    uint64_t arrived, failed, corrupt, written, canceled;
} world;

static uint64_t draw(world *w, uint64_t below)
{
    uint64_t x = w->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

static void broken(const world *w, const char *what)
{
    fail_msg("seed %llu: %s (replay with PLLM_SIM_SEED=%llu)", (unsigned long long)w->seed, what,
             (unsigned long long)w->seed);
}

static void need(const world *w, int status, const char *what)
{
    if (status < 0) broken(w, what);
}

/* The tag of a place and slot: constant, so that stale bytes are told apart by checksum alone. */
static uint64_t tag_of(uint32_t slot)
{
    return 1000 + slot;
}

static void world_open(world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->seed = w->random = seed;
    w->next_content = 1;
    pllm_sim_device_options sim = {
        .struct_bytes = sizeof sim, .seed = seed, .latency_ns_max = 1 + draw(w, 50000)};
    need(w, pllm_device_open_sim(NULL, &sim, &w->device), "device");
    /* Half of the seeds meet one failing device call, reported at once or by the event. */
    pllm_faulty_device_options device = {.struct_bytes = sizeof device, .fail_at = UINT64_MAX};
    device.fail_async = draw(w, 2);
    need(w, pllm_device_open_faulty(NULL, w->device, &device, &w->faulty), "faulty device");
    pllm_faulty_disk_options faults = pllm_faulty_disk_none();
    faults.seed = seed;
    if (draw(w, 2)) faults.fail_permille = draw(w, 60);
    if (draw(w, 2)) faults.corrupt_permille = draw(w, 60);
    if (draw(w, 2)) faults.lose_permille = draw(w, 60);
    if (draw(w, 16) == 0) faults.fail_poll_at = draw(w, 400);
    w->disk = tier_rig_disk(NULL, w->faulty, SLOTS * 4096, seed, &faults);
    if (!w->disk) broken(w, "disk");
    tier_rig_options options = {.device = w->faulty,
                                .frames = FRAMES,
                                .host_slots = SLOTS,
                                .disk_slots = SLOTS,
                                .disk = w->disk,
                                .ticket_max = TICKETS,
                                .staging_count = 1};
    need(w, tier_rig_open(NULL, &options, &w->rig), "rig");
    uint32_t index;
    for (uint32_t i = 0; i < FRAMES; i++)
        need(w, pllm_tiers_frame_alloc(w->rig.tiers, &index), "frame");
    for (uint32_t i = 0; i < SLOTS; i++)
        for (uint32_t place = PLLM_AT_HOST; place <= PLLM_AT_DISK; place++) {
            need(w,
                 pllm_tiers_slot_alloc(w->rig.tiers, (pllm_place)place, i ? i - 1 : PLLM_NONE,
                                       &index),
                 "slot");
            w->slot_content[place][i] = UNKNOWN;
        }
    int device_fails = (int)draw(w, 2);
    w->honest = !device_fails && !faults.fail_permille && !faults.corrupt_permille &&
                !faults.lose_permille && faults.fail_poll_at == UINT64_MAX;
    if (device_fails) pllm_faulty_device_arm(w->faulty, draw(w, 800));
}

static void world_close(world *w)
{
    tier_rig_close(&w->rig);
    if (pllm_faulty_device_live(w->faulty)) broken(w, "something of the device was left open");
    pllm_device_close(w->faulty);
    pllm_device_close(w->device);
}

/* ---- operations ---- */

static void do_submit(world *w)
{
    uint32_t free_move = 0, frame = draw(w, FRAMES);
    while (free_move < TICKETS && w->moves[free_move].live) free_move++;
    if (free_move == TICKETS || w->frame_busy[frame]) return;
    move *m = &w->moves[free_move];
    uint32_t place = draw(w, 3) ? PLLM_AT_DISK : PLLM_AT_HOST;
    /* Runs of neighbours are common, as in life. */
    uint32_t slot = draw(w, 3) ? (frame + draw(w, 3)) % SLOTS : draw(w, SLOTS);
    *m = (move){.live = 1,
                .place = place,
                .frame = frame,
                .slot = slot,
                .inward = draw(w, 2),
                .tag = tag_of(slot)};
    /* Host slots carry no checksum: their owner knows what is there. On disk it is found out. */
    if (m->inward && w->slot_content[place][slot] == UNKNOWN &&
        (place == PLLM_AT_HOST || draw(w, 8)))
        m->inward = 0;
    if (m->inward) {
        m->content = w->slot_content[place][slot];
        memset(tier_rig_view(&w->rig, frame), 0xee, 4096);
    } else {
        m->content = (int64_t)w->next_content++;
        tier_rig_fill(tier_rig_view(&w->rig, frame), 4096, (uint64_t)m->content);
    }
    pllm_place at = (pllm_place)place;
    int status =
        tier_rig_move(&w->rig, m->inward ? at : PLLM_AT_DEVICE, m->inward ? PLLM_AT_DEVICE : at,
                      frame, slot, draw(w, 3), m->tag, &m->ticket);
    if (status < 0) {
        if (status != PLLM_EBUSY) broken(w, "submit failed");
        m->live = 0;
        return;
    }
    if (!m->inward) w->slot_content[place][slot] = m->content;
    w->frame_busy[frame] = 1;
}

/* Reads queued behind a write that did not happen no longer know what they will get. */
static void spoil_readers(world *w, const move *m)
{
    for (uint32_t i = 0; i < TICKETS; i++) {
        move *other = &w->moves[i];
        if (other->live && other->inward && other->place == m->place && other->slot == m->slot &&
            other->content == m->content)
            other->content = UNKNOWN;
    }
    if (w->slot_content[m->place][m->slot] == m->content)
        w->slot_content[m->place][m->slot] = UNKNOWN;
}

static void move_over(world *w, move *m, int state)
{
    const char *view = tier_rig_view(&w->rig, m->frame);
    m->live = 0;
    w->frame_busy[m->frame] = 0;
    if (!m->inward) {
        w->written += state == 1;
        /* the frame itself is never disturbed by being written out */
        if (!tier_rig_matches(view, 4096, (uint64_t)m->content))
            broken(w, "a source frame changed");
        if (state < 0) spoil_readers(w, m);
        if (state < 0 && w->honest) broken(w, "a write failed on honest hardware");
        return;
    }
    if (state == 1) {
        w->arrived++;
        if (m->content == UNKNOWN) broken(w, "a page arrived that was never whole");
        if (!tier_rig_matches(view, 4096, (uint64_t)m->content))
            broken(w, "a page arrived with wrong bytes");
        return;
    }
    if (w->honest && m->content != UNKNOWN) broken(w, "a read failed on honest hardware");
    w->failed++;
    w->corrupt += state == PLLM_ECORRUPT;
    if (state != PLLM_ECORRUPT && state != PLLM_EIO && state != PLLM_EDEVICE)
        broken(w, "an unexpected failure");
}

static void look(world *w)
{
    /* In order of submission per slot it does not matter who is looked at first: outcomes of writes
     * are applied before those of reads, since a failed write excuses the reads behind it. */
    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < TICKETS; i++) {
            move *m = &w->moves[i];
            if (!m->live || m->inward != pass) continue;
            int state = pllm_transfer_state(w->rig.transfers, m->ticket);
            if (state == 0) continue;
            move_over(w, m, state);
            pllm_transfer_release(w->rig.transfers, m->ticket);
            if (pllm_transfer_state(w->rig.transfers, m->ticket) != PLLM_ESTALE)
                broken(w, "a released ticket is still known");
        }
}

static void do_cancel(world *w)
{
    move *m = &w->moves[draw(w, TICKETS)];
    if (!m->live) return;
    if (!m->inward) return; /* a write that never happens would need the model's whole history */
    if (pllm_transfer_cancel(w->rig.transfers, m->ticket) != PLLM_OK) return;
    if (pllm_transfer_state(w->rig.transfers, m->ticket) != PLLM_ECANCELED)
        broken(w, "a canceled transfer says something else");
    pllm_transfer_release(w->rig.transfers, m->ticket);
    m->live = 0;
    w->frame_busy[m->frame] = 0;
    w->canceled++;
}

static void do_promote(world *w)
{
    move *m = &w->moves[draw(w, TICKETS)];
    if (m->live) pllm_transfer_promote(w->rig.transfers, m->ticket, (pllm_priority)draw(w, 3));
}

static void do_wait(world *w)
{
    move *m = &w->moves[draw(w, TICKETS)];
    if (!m->live) return;
    uint64_t timeout_ns = draw(w, 2) ? UINT64_MAX : draw(w, 100000);
    int status = pllm_transfer_wait(w->rig.transfers, m->ticket, timeout_ns);
    if (timeout_ns == UINT64_MAX && pllm_transfer_state(w->rig.transfers, m->ticket) == 0)
        broken(w, "a wait for ever came back early");
    if (status == PLLM_ESTALE) broken(w, "a live ticket is stale");
}

static void step(world *w)
{
    switch (draw(w, 12)) {
    case 0:
        do_cancel(w);
        break;
    case 1:
        do_promote(w);
        break;
    case 2:
        do_wait(w);
        break;
    case 3:
        pllm_transfers_wait_any(w->rig.transfers, draw(w, 200000));
        break;
    case 4:
    case 5:
        pllm_transfers_poll(w->rig.transfers);
        break;
    default:
        do_submit(w);
    }
    look(w);
    pllm_transfers_check(w->rig.transfers);
}

static void run_seed(uint64_t seed, world *w, uint64_t totals[4])
{
    world_open(w, seed);
    uint64_t steps = 1 + draw(w, STEPS);
    for (uint64_t i = 0; i < steps; i++) step(w);
    if (draw(w, 4)) { /* else closed with everything under way */
        for (uint32_t rounds = 0; pllm_transfers_pending(w->rig.transfers); rounds++) {
            if (rounds > 100000) broken(w, "it never ends");
            pllm_transfers_wait_any(w->rig.transfers, UINT64_MAX);
        }
        look(w);
        for (uint32_t i = 0; i < TICKETS; i++)
            if (w->moves[i].live) broken(w, "a transfer was forgotten");
    }
    pllm_tiers_check(w->rig.tiers);
    totals[0] += w->arrived;
    totals[1] += w->written;
    totals[2] += w->failed;
    totals[3] += w->corrupt;
    world_close(w);
}

static void test_seeds(void **state)
{
    (void)state;
    const char *one = getenv("PLLM_SIM_SEED"), *many = getenv("PLLM_SIM_SEEDS");
    uint64_t first = one ? strtoull(one, NULL, 0) : 1;
    uint64_t count = one ? 1 : many ? strtoull(many, NULL, 0) : 200;
    uint64_t totals[4] = {0};
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    for (uint64_t i = 0; i < count; i++) run_seed(first + i, w, totals);
    free(w);
    print_message(
        "%llu seeds: %llu pages arrived, %llu written, %llu failed, %llu of them corrupt\n",
        (unsigned long long)count, (unsigned long long)totals[0], (unsigned long long)totals[1],
        (unsigned long long)totals[2], (unsigned long long)totals[3]);
    if (count >= 100) assert_true(totals[0] > 1000 && totals[2] > 100 && totals[3] > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
