/* server_hold.c - what the ledger has to know about memory that clients map.
 *
 * While the daemon lives, a tensor is charged until its last importer has unmapped it: the registry
 * sees to that. When the daemon ends, memory that clients map stays theirs, so the ledger is told
 * beforehand, process by process, and together (two may map the same). The daemon that comes next
 * takes the charge over as carried; each offer turns some of it into a tensor's. What is left is
 * let go of as the processes that it stands for end: the ledger sees them go.
 *
 * Small tensors count as the 2 MiB that they share, once for each process. Legacy memory is gone
 * with the daemon that had it. */
#include "base/log.h"
#include "store/server_internal.h"
#include "vmm/ledger.h"

static pllm_ledger_member *ledger_of(const pllm_store_server *server, uint32_t device)
{
    const pllm_budget *budget = server->devices[device].budget;
    return budget ? pllm_budget_ledger(budget) : NULL;
}

static void hold(pllm_store_server *server, uint32_t device, const pllm_store_peer *peer)
{
    pllm_ledger_member *ledger = ledger_of(server, device);
    if (!ledger || peer->pid == 0 || peer->pid_start == 0) return;
    pllm_ledger_process process = {
        .start = peer->pid_start, .pid = (int32_t)peer->pid, .uid = peer->uid};
    uint64_t together = pllm_registry_mapped_together(server->registry, device);
    int status = pllm_ledger_member_hold(
        ledger, &process, pllm_registry_mapped(server->registry, peer, device),
        together ? together + pllm_budget_carried(server->devices[device].budget) : 0);
    if (status < 0 && server->log_count++ == 0)
        pllm_log(server->context, PLLM_LOG_WARN, "store: %s", pllm_last_error()->text);
}

void pllm_server_hold(pllm_store_server *server)
{
    pllm_store_peer peer;
    while (pllm_registry_mapped_next(server->registry, &peer))
        for (uint32_t i = 0; i < server->device_count; i++) hold(server, i, &peer);
}

void pllm_server_carry(pllm_store_server *server)
{
    if (server->adopt_until_ns) return; /* offers are still to come */
    for (uint32_t i = 0; i < server->device_count; i++) {
        pllm_ledger_member *ledger = ledger_of(server, i);
        if (!ledger || pllm_budget_carried(server->devices[i].budget) == 0) continue;
        uint64_t charged, mapped, ours = pllm_registry_mapped(server->registry, NULL, i);
        pllm_ledger_member_figures(ledger, &charged, &mapped);
        pllm_budget_carry(server->devices[i].budget, mapped > ours ? mapped - ours : 0);
    }
}

void pllm_server_hold_end(pllm_store_server *server)
{
    pllm_server_hold(server);
    for (uint32_t i = 0; i < server->device_count; i++)
        if (ledger_of(server, i)) pllm_budget_detach(server->devices[i].budget);
}
