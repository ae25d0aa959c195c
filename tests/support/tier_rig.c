#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "tier_rig.h"

int tier_rig_has_uring(void)
{
    struct io_uring ring;
    int code = io_uring_queue_init(1, &ring, 0);
    if (code == 0) {
        io_uring_queue_exit(&ring);
        return 1;
    }
    pllm_disk_options options = {
        .struct_bytes = sizeof options, .kind = PLLM_DISK_URING, .folder = ".", .bytes = 4096};
    pllm_disk *disk;
    assert_int_equal(pllm_disk_open(NULL, &options, &disk), PLLM_EUNSUPPORTED);
    print_message("left out: %s\n", pllm_last_error()->text);
    return 0;
}

pllm_disk *tier_rig_disk(const pllm_context *context, pllm_device *device, uint64_t bytes,
                         uint64_t seed, const pllm_faulty_disk_options *faults)
{
    pllm_sim_disk_options options = {.struct_bytes = sizeof options,
                                     .seed = seed,
                                     .bytes = bytes,
                                     .latency_ns_max = 100000,
                                     .device = device};
    pllm_disk *inner, *disk;
    if (pllm_disk_open_sim(context, &options, &inner) < 0) return NULL;
    pllm_faulty_disk_options none = pllm_faulty_disk_none();
    if (pllm_disk_open_faulty(context, inner, faults ? faults : &none, &disk) == PLLM_OK)
        return disk;
    pllm_disk_close(inner);
    return NULL;
}

int tier_rig_open(const pllm_context *context, const tier_rig_options *options, tier_rig *rig)
{
    memset(rig, 0, sizeof *rig);
    rig->context = context;
    rig->page_bytes = options->page_bytes ? options->page_bytes : 4096;
    rig->device = options->device;
    rig->borrowed_device = options->device != NULL;
    int status = PLLM_OK;
    if (!rig->device) {
        pllm_host_device_options host = {.struct_bytes = sizeof host};
        status = pllm_device_open_host(context, &host, &rig->device);
    }
    if (status == PLLM_OK) status = pllm_budget_open(context, UINT64_MAX, &rig->budget);
    pllm_tiers_options tiers = {
        .struct_bytes = sizeof tiers,
        .frame_max = options->frames,
        .page_bytes = rig->page_bytes,
        .device_limit_bytes = UINT64_MAX,
        .host_bytes = options->host_slots * rig->page_bytes,
        .disk_bytes = options->disk_slots * rig->page_bytes,
        .disk_folder = options->folder ? options->folder : ".",
        .disk_kind = options->disk_kind,
        .disk = options->disk,
        .staging_count = options->staging_count,
    };
    if (status == PLLM_OK)
        status = pllm_tiers_open(context, rig->device, rig->budget, &tiers, &rig->tiers);
    if (status < 0) pllm_disk_close(options->disk);
    pllm_transfers_options transfers = {.struct_bytes = sizeof transfers,
                                        .ticket_max = options->ticket_max,
                                        .fingerprint = options->fingerprint};
    if (status == PLLM_OK)
        status = pllm_transfers_open(context, rig->tiers, &transfers, &rig->transfers);
    if (status < 0) tier_rig_close(rig);
    return status;
}

void tier_rig_close(tier_rig *rig)
{
    pllm_transfers_close(rig->transfers);
    pllm_tiers_close(rig->tiers);
    pllm_budget_close(rig->budget);
    if (!rig->borrowed_device) pllm_device_close(rig->device);
    memset(rig, 0, sizeof *rig);
}

static uint64_t word(uint64_t content, uint64_t i)
{
    return (content * 1000003 + i) * UINT64_C(0x9e3779b97f4a7c15) ^ content;
}

void tier_rig_fill(void *page, uint64_t bytes, uint64_t content)
{
    uint64_t *words = page;
    for (uint64_t i = 0; i < bytes / 8; i++) words[i] = word(content, i);
}

int tier_rig_matches(const void *page, uint64_t bytes, uint64_t content)
{
    const uint64_t *words = page;
    for (uint64_t i = 0; i < bytes / 8; i++)
        if (words[i] != word(content, i)) return 0;
    return 1;
}

void *tier_rig_view(const tier_rig *rig, uint32_t frame)
{
    return pllm_tiers_frame_view(rig->tiers, frame);
}

int tier_rig_move(tier_rig *rig, uint32_t from, uint32_t to, uint32_t frame, uint32_t slot,
                  uint32_t priority, uint64_t tag, pllm_ticket *ticket)
{
    pllm_transfer transfer = {
        (pllm_place)from, (pllm_place)to, frame, slot, (pllm_priority)priority, tag};
    return pllm_transfer_submit(rig->transfers, &transfer, ticket);
}

int tier_rig_move_now(tier_rig *rig, uint32_t from, uint32_t to, uint32_t frame, uint32_t slot,
                      uint64_t tag)
{
    pllm_ticket ticket;
    int status = tier_rig_move(rig, from, to, frame, slot, PLLM_DEMAND, tag, &ticket);
    if (status < 0) return status;
    status = pllm_transfer_wait(rig->transfers, ticket, UINT64_MAX);
    pllm_transfer_release(rig->transfers, ticket);
    return status;
}
