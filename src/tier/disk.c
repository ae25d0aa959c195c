/* disk.c - opens the spill file and picks the backend that drives it. */
#include <string.h>
#include <unistd.h>
#include "tier/spill.h"

enum { UNIT = 4096 };

int pllm_disk_check(const pllm_disk_request *request, uint64_t file_bytes)
{
    uint64_t end;
    if ((uintptr_t)request->buffer % UNIT == 0 && request->buffer && request->bytes &&
        request->bytes % UNIT == 0 && request->offset % UNIT == 0 &&
        request->bytes / UNIT <= UINT32_MAX / 2 &&
        !__builtin_add_overflow(request->offset, request->bytes, &end) && end <= file_bytes)
        return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0,
                     "%llu bytes at offset %llu: not whole units of %d bytes inside the spill file",
                     (unsigned long long)request->bytes, (unsigned long long)request->offset, UNIT);
}

static int check_options(const pllm_disk_options *options)
{
    if (!options || options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_disk_options, or of another size than %zu",
                         sizeof *options);
    if (options->bytes == 0 || options->bytes % UNIT || options->kind > PLLM_DISK_PREAD)
        return pllm_fail(PLLM_EINVAL, 0, "a spill file of %llu bytes is no multiple of %d",
                         (unsigned long long)options->bytes, UNIT);
    return PLLM_OK;
}

int pllm_disk_open(const pllm_context *context, const pllm_disk_options *options,
                   pllm_disk **disk_out)
{
    *disk_out = NULL;
    int status = check_options(options);
    if (status < 0) return status;
    pllm_spill spill;
    status = pllm_spill_open(context, options->folder, options->bytes, &spill);
    if (status < 0) return status;
    status = PLLM_EUNSUPPORTED;
    if (options->kind != PLLM_DISK_PREAD)
        status = pllm_disk_open_uring(context, options, &spill, disk_out);
    if (status == PLLM_EUNSUPPORTED && options->kind != PLLM_DISK_URING) {
        if (options->kind == PLLM_DISK_AUTO)
            pllm_disk_note(spill.note, "no io_uring (%s): threads read and write",
                           strerror(pllm_last_error()->native));
        status = pllm_disk_open_pread(context, options, &spill, disk_out);
    }
    if (status < 0) {
        close(spill.fd);
        return status;
    }
    if ((*disk_out)->note[0])
        pllm_log(context, PLLM_LOG_INFO, "spill file in %s: %s", spill.folder, (*disk_out)->note);
    return PLLM_OK;
}
