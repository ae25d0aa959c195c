/* workspace.c - one mapped block of device memory, charged to a member of its own, whose minimum is
 * the whole block: what a workspace has been given, nobody can take. */
#include "vmm/region.h"

struct pllm_workspace {
    const pllm_context *context;
    pllm_device *device;
    pllm_budget_member *member;
    pllm_chunk *chunk;
    pllm_va va;
    uint64_t bytes;
};

int pllm_workspace_open(const pllm_context *context, pllm_device *device, pllm_budget *budget,
                        const char *name, uint64_t bytes, pllm_workspace **workspace_out)
{
    *workspace_out = NULL;
    pllm_device_info info;
    int status = device->ops->info(device, &info);
    if (status < 0) return status;
    uint64_t granularity = info.granularity_bytes, rounded;
    if (bytes == 0 || __builtin_add_overflow(bytes, granularity - 1, &rounded))
        return pllm_fail(PLLM_EINVAL, 0, "workspace %s of %llu bytes", name,
                         (unsigned long long)bytes);
    rounded -= rounded % granularity;
    pllm_workspace *workspace = pllm_alloc(context, sizeof *workspace);
    if (!workspace) return pllm_fail_memory("a workspace", sizeof *workspace);
    workspace->context = context;
    workspace->device = device;
    workspace->bytes = rounded;
    status = pllm_budget_join(budget, name, rounded, rounded, &workspace->member);
    if (status < 0) goto fail_workspace;
    status = pllm_budget_charge(workspace->member, rounded);
    if (status < 0) goto fail_member;
    status = device->ops->reserve(device, rounded, &workspace->va);
    if (status < 0) goto fail_charge;
    status = device->ops->chunk_create(device, rounded, &workspace->chunk);
    if (status < 0) goto fail_reserve;
    status = device->ops->map(device, workspace->va, &workspace->chunk, 1);
    if (status < 0) goto fail_chunk;
    *workspace_out = workspace;
    return PLLM_OK;
fail_chunk:
    device->ops->chunk_destroy(device, workspace->chunk);
fail_reserve:
    device->ops->release(device, workspace->va, rounded);
fail_charge:
    pllm_budget_credit(workspace->member, rounded);
fail_member:
    pllm_budget_leave(workspace->member);
fail_workspace:
    pllm_free(context, workspace);
    return status;
}

void pllm_workspace_close(pllm_workspace *workspace)
{
    if (!workspace) return;
    pllm_device *device = workspace->device;
    device->ops->unmap(device, workspace->va, workspace->chunk);
    device->ops->chunk_destroy(device, workspace->chunk);
    device->ops->release(device, workspace->va, workspace->bytes);
    pllm_budget_credit(workspace->member, workspace->bytes);
    pllm_budget_leave(workspace->member);
    pllm_free(workspace->context, workspace);
}

pllm_va pllm_workspace_va(const pllm_workspace *workspace)
{
    return workspace->va;
}

uint64_t pllm_workspace_bytes(const pllm_workspace *workspace)
{
    return workspace->bytes;
}
