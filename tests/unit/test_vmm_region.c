/* Regions and workspaces on the host device: what is mapped, kept, fenced and charged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "vmm/region.h"

#define CHUNK ((uint64_t)64 << 10)

typedef struct fixture {
    pllm_device *device;
    pllm_budget *budget;
    pllm_budget_member *member;
    pllm_region *region;
} fixture;

static void fixture_open(fixture *f, const pllm_host_device_options *host, uint64_t limit,
                         uint32_t page_max, uint32_t kept_max, uint32_t zero)
{
    pllm_region_options options = {sizeof options, page_max, CHUNK, kept_max, zero};
    assert_int_equal(pllm_device_open_host(NULL, host, &f->device), PLLM_OK);
    assert_int_equal(pllm_budget_open(NULL, limit, &f->budget), PLLM_OK);
    assert_int_equal(pllm_budget_join(f->budget, "region", 0, limit, &f->member), PLLM_OK);
    assert_int_equal(pllm_region_open(NULL, f->device, f->member, &options, &f->region), PLLM_OK);
}

static void fixture_close(fixture *f)
{
    pllm_region_close(f->region);
    assert_int_equal(pllm_budget_charged(f->member), 0);
    pllm_budget_leave(f->member);
    pllm_budget_close(f->budget);
    pllm_device_close(f->device);
}

static unsigned char *view(const fixture *f, uint32_t page)
{
    return f->device->ops->host_view(f->device, pllm_region_base(f->region) + page * CHUNK);
}

static pllm_region_stats stats(const fixture *f)
{
    pllm_region_stats now;
    pllm_region_check(f->region);
    pllm_region_stats_get(f->region, &now);
    return now;
}

static void mapping_is_all_or_nothing_within_the_budget(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, NULL, 8 * CHUNK, 16, 0, 0);
    assert_int_equal(pllm_region_map(f.region, 2, 3), PLLM_OK);
    view(&f, 3)[5] = 77;
    assert_int_equal(pllm_region_map(f.region, 0, 9), PLLM_ENODEVMEM); /* 6 more: 9 in all */
    assert_int_equal(stats(&f).mapped_count, 3);
    assert_false(pllm_region_is_mapped(f.region, 0));
    assert_int_equal(pllm_region_map(f.region, 0, 8), PLLM_OK); /* backed pages stay as they are */
    assert_int_equal(view(&f, 3)[5], 77);
    assert_int_equal(view(&f, 7)[CHUNK - 1], 0);
    assert_int_equal(pllm_budget_charged(f.member), 8 * CHUNK);
    assert_int_equal(pllm_region_map(f.region, 15, 2), PLLM_EINVAL);
    assert_int_equal(pllm_region_map(f.region, UINT32_MAX, 2), PLLM_EINVAL);
    assert_int_equal(pllm_region_unmap(f.region, 0, 17, NULL), PLLM_EINVAL);
    assert_int_equal(pllm_region_unmap(f.region, 0, 16, NULL), PLLM_OK);
    assert_int_equal(pllm_budget_charged(f.member), 0);
    assert_int_equal(stats(&f).mapped_peak, 8);
    fixture_close(&f);
}

static void freed_chunks_are_kept_and_mapped_again(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, NULL, 8 * CHUNK, 16, 3, 0);
    assert_int_equal(pllm_region_map(f.region, 0, 4), PLLM_OK);
    assert_int_equal(pllm_region_unmap(f.region, 0, 4, NULL), PLLM_OK);
    assert_int_equal(stats(&f).kept_count, 3);
    assert_int_equal(pllm_budget_charged(f.member), 3 * CHUNK); /* kept ones stay charged */
    assert_int_equal(pllm_region_map(f.region, 8, 5), PLLM_OK);
    assert_int_equal(stats(&f).reused_chunks, 3);
    assert_int_equal(stats(&f).created_chunks, 4 + 2);
    assert_int_equal(pllm_region_unmap(f.region, 8, 5, NULL), PLLM_OK);
    assert_int_equal(pllm_region_trim(f.region, 1), 2 * CHUNK);
    assert_int_equal(pllm_region_trim(f.region, 2), 0);
    assert_int_equal(pllm_budget_charged(f.member), CHUNK);
    fixture_close(&f);
}

static void reused_chunks_are_zeroed_when_asked(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, NULL, 8 * CHUNK, 16, 8, 1);
    assert_int_equal(pllm_region_map(f.region, 0, 4), PLLM_OK);
    memset(view(&f, 0), 9, 4 * CHUNK);
    assert_int_equal(pllm_region_unmap(f.region, 1, 3, NULL), PLLM_OK);
    assert_int_equal(pllm_region_map(f.region, 0, 8), PLLM_OK); /* page 0 stays, 3 kept, 4 new */
    for (uint64_t i = 0; i < 8 * CHUNK; i++) assert_int_equal(view(&f, 0)[i], i < CHUNK ? 9 : 0);
    fixture_close(&f);
}

static void fenced_pages_stay_until_the_fence_is_done(void **state)
{
    (void)state;
    fixture f;
    /* A slow link holds the stream: 64 KiB at 1 MB/s are 65 ms. */
    pllm_host_device_options host = {.struct_bytes = sizeof host, .link_bytes_per_second = 1e6};
    fixture_open(&f, &host, 8 * CHUNK, 16, 8, 0);
    const pllm_device_ops *ops = f.device->ops;
    pllm_stream *stream;
    pllm_event *fence;
    void *from;
    assert_int_equal(ops->stream_open(f.device, &stream), PLLM_OK);
    assert_int_equal(ops->event_open(f.device, &fence), PLLM_OK);
    assert_int_equal(ops->host_alloc(f.device, CHUNK, &from), PLLM_OK);
    assert_int_equal(pllm_region_map(f.region, 0, 4), PLLM_OK);
    pllm_copy copy = {pllm_region_base(f.region), (pllm_va)(uintptr_t)from, CHUNK};
    assert_int_equal(ops->copy(f.device, stream, PLLM_COPY_IN, &copy), PLLM_OK);
    assert_int_equal(ops->event_record(f.device, fence, stream), PLLM_OK);
    assert_int_equal(pllm_region_unmap(f.region, 0, 2, fence), PLLM_OK);
    assert_int_equal(pllm_region_settle(f.region), 2);
    assert_int_equal(stats(&f).fenced_count, 2);
    assert_int_equal(pllm_budget_charged(f.member), 4 * CHUNK);
    assert_false(pllm_region_is_mapped(f.region, 0));
    assert_int_equal(pllm_region_map(f.region, 1, 3), PLLM_EBUSY);
    assert_int_equal(pllm_region_map(f.region, 2, 2), PLLM_OK);
    assert_int_equal(pllm_region_unmap(f.region, 0, 2, NULL), PLLM_OK); /* on their way already */
    assert_int_equal(stats(&f).fenced_count, 2);
    assert_int_equal(ops->event_wait(f.device, fence, UINT64_MAX), PLLM_OK);
    assert_int_equal(pllm_region_map(f.region, 1, 1), PLLM_OK); /* map settles what it needs */
    assert_int_equal(pllm_region_settle(f.region), 0);
    assert_int_equal(stats(&f).kept_count, 1);
    /* Closing with a fence pending waits for it. */
    assert_int_equal(
        ops->copy(f.device, stream, PLLM_COPY_IN, &(pllm_copy){copy.to + CHUNK, copy.from, CHUNK}),
        PLLM_OK);
    assert_int_equal(ops->event_record(f.device, fence, stream), PLLM_OK);
    assert_int_equal(pllm_region_unmap(f.region, 1, 3, fence), PLLM_OK);
    pllm_region_close(f.region);
    f.region = NULL;
    assert_int_equal(ops->event_query(f.device, fence), 1);
    ops->stream_close(f.device, stream);
    ops->event_close(f.device, fence);
    ops->host_free(f.device, from, CHUNK);
    fixture_close(&f);
}

static void workspaces_come_from_the_budget(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, NULL, 8 * CHUNK, 16, 8, 0);
    pllm_workspace *workspace;
    assert_int_equal(pllm_region_map(f.region, 0, 4), PLLM_OK);
    assert_int_equal(pllm_workspace_open(NULL, f.device, f.budget, "big", 5 * CHUNK, &workspace),
                     PLLM_ENODEVMEM);
    assert_null(workspace);
    assert_int_equal(
        pllm_workspace_open(NULL, f.device, f.budget, "small", 2 * CHUNK + 1, &workspace), PLLM_OK);
    assert_int_equal(pllm_workspace_bytes(workspace), 3 * CHUNK);
    unsigned char *bytes = f.device->ops->host_view(f.device, pllm_workspace_va(workspace));
    for (uint64_t i = 0; i < 3 * CHUNK; i++) assert_int_equal(bytes[i], 0);
    assert_int_equal(pllm_region_map(f.region, 0, 6), PLLM_ENODEVMEM);
    pllm_workspace_close(workspace);
    assert_int_equal(pllm_region_map(f.region, 0, 8), PLLM_OK);
    fixture_close(&f);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, NULL, 8 * CHUNK, 16, 8, 0);
    pllm_region *region;
    pllm_region_options options = {sizeof options, 0, CHUNK, 0, 0};
    assert_int_equal(pllm_region_open(NULL, f.device, f.member, &options, &region), PLLM_EINVAL);
    options.page_max = 4;
    options.chunk_bytes = CHUNK + 4096;
    assert_int_equal(pllm_region_open(NULL, f.device, f.member, &options, &region), PLLM_EINVAL);
    assert_null(region);
    options.chunk_bytes = (uint64_t)1 << 62;
    assert_int_equal(pllm_region_open(NULL, f.device, f.member, &options, &region), PLLM_EINVAL);
    options.struct_bytes = 4;
    assert_int_equal(pllm_region_open(NULL, f.device, f.member, &options, &region), PLLM_EINVAL);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mapping_is_all_or_nothing_within_the_budget),
        cmocka_unit_test(freed_chunks_are_kept_and_mapped_again),
        cmocka_unit_test(reused_chunks_are_zeroed_when_asked),
        cmocka_unit_test(fenced_pages_stay_until_the_fence_is_done),
        cmocka_unit_test(workspaces_come_from_the_budget),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
