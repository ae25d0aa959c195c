/* pager_rig.c - opens what a pager stands on. */
#include <stdlib.h>
#include <string.h>
#include "pager_rig.h"

int pager_rig_open(const pllm_context *context, const pager_rig_options *options, pager_rig *rig)
{
    *rig = (pager_rig){.context = context, .device = options->device};
    rig->borrowed_device = options->device != NULL;
    rig->page_bytes = options->page_bytes ? options->page_bytes : 4096;
    int status = PLLM_OK;
    pllm_tiers *tiers = NULL;
    int disk_taken = 0;
    if (!rig->device) {
        pllm_host_device_options host = {.struct_bytes = sizeof host};
        status = pllm_device_open_host(context, &host, &rig->device);
    }
    if (status == PLLM_OK) status = pllm_budget_open(context, UINT64_MAX, &rig->budget);
    if (status == PLLM_OK) {
        pllm_tiers_options tier = {
            .struct_bytes = sizeof tier,
            .frame_max = options->frame_max ? options->frame_max : options->frames,
            .page_bytes = rig->page_bytes,
            .device_limit_bytes = options->frames * rig->page_bytes,
            .host_bytes = options->host_slots * rig->page_bytes,
            .disk_bytes = options->disk_slots * rig->page_bytes,
            .disk_folder = "/tmp",
            .disk_kind = options->disk_kind,
            .disk = options->disk,
        };
        status = pllm_tiers_open(context, rig->device, rig->budget, &tier, &tiers);
        disk_taken = status == PLLM_OK && options->disk_slots;
    }
    if (status == PLLM_OK) {
        pllm_pager_options pager = options->pager;
        pager.struct_bytes = sizeof pager;
        status = pllm_pager_open(context, tiers, &pager, &rig->pager);
        if (status < 0) pllm_tiers_close(tiers);
    }
    if (!disk_taken) pllm_disk_close(options->disk);
    if (status < 0) pager_rig_close(rig);
    return status;
}

void pager_rig_close(pager_rig *rig)
{
    pllm_pager_close(rig->pager);
    if (rig->budget) pllm_budget_close(rig->budget);
    if (!rig->borrowed_device) pllm_device_close(rig->device);
    rig->pager = NULL;
    rig->budget = NULL;
    rig->device = NULL;
}

static uint64_t word_of(uint32_t page, uint32_t version, uint64_t i)
{
    uint64_t x = ((uint64_t)page << 32 | version) * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;
    return x ^ x >> 29;
}

void pager_rig_fill(void *view, uint64_t bytes, uint32_t page, uint32_t version)
{
    uint64_t *words = view;
    for (uint64_t i = 0; i < bytes / 8; i++) words[i] = word_of(page, version, i);
}

int pager_rig_matches(const void *view, uint64_t bytes, uint32_t page, uint32_t version)
{
    const uint64_t *words = view;
    for (uint64_t i = 0; i < bytes / 8; i++)
        if (words[i] != word_of(page, version, i)) return 0;
    return 1;
}

int pager_rig_page(pager_rig *rig, pllm_page after, uint32_t rank, pllm_page *page_out)
{
    void *view;
    int status = pllm_pager_page_new(rig->pager, after, rank, page_out);
    if (status < 0) return status;
    status = pllm_pager_pin(rig->pager, page_out, 1, PLLM_PIN_NEW, &view);
    if (status < 0) {
        pllm_pager_page_free(rig->pager, *page_out);
        return status;
    }
    pager_rig_fill(view, rig->page_bytes, *page_out, 0);
    pllm_pager_seal(rig->pager, *page_out);
    pllm_pager_unpin(rig->pager, page_out, 1);
    return PLLM_OK;
}
