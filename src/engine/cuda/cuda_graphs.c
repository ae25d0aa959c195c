/* cuda_graphs.c - the cached graphs of generated rows, and the device memory that they take.
 *
 * A graph is made for a number of rows and a bucket of chunks, when such a pass first comes. The
 * driver keeps its nodes on the device, which no budget sees: GRAPH_BYTES of the limit are set
 * aside for all of them (cuda_executor.c). What one takes is measured, as the difference of what
 * the card has free before it is made and after its first launch; the least recently used go where
 * the sum would pass what is set aside, so that a limit holds whatever mix of batches comes.
 *
 * The card's figure is everybody's, in steps of 2 MiB: many graphs seem to take nothing
 * (GRAPH_LEAST is counted), and another process may take memory in between. One that seems to take
 * more than all may is therefore given up and made again; after three in a row no more are made,
 * and passes that have none are launched kernel by kernel. One that the card had no memory for
 * counts likewise. */
#include "engine/cuda/cuda_state.h"

enum { GRAPH_LEAST = 64 << 10, STRIKES = 3 };

static uint64_t free_bytes(pllm_engine *engine)
{
    pllm_device_info info;
    return engine->device->ops->info(engine->device, &info) < 0 ? 0 : info.free_bytes;
}

static void drop(cuda_graphs *graphs, uint32_t index)
{
    pllm_cuda_graph_close(graphs->entries[index].graph);
    graphs->bytes -= graphs->entries[index].bytes;
    graphs->entries[index] = graphs->entries[--graphs->count];
}

static uint32_t oldest(const cuda_graphs *graphs)
{
    uint32_t index = 0;
    for (uint32_t i = 1; i < graphs->count; i++)
        if (graphs->entries[i].used < graphs->entries[index].used) index = i;
    return index;
}

pllm_cuda_graph *pllm_cuda_graphs_find(pllm_engine *engine, uint32_t rows, uint32_t bucket)
{
    cuda_graphs *graphs = &engine->cuda->graphs;
    while (graphs->bytes > GRAPH_BYTES) drop(graphs, oldest(graphs)); /* it is not running now */
    for (uint32_t i = 0; i < graphs->count; i++) {
        cuda_graph *entry = &graphs->entries[i];
        if (entry->rows != rows || entry->bucket != bucket) continue;
        entry->used = ++graphs->clock;
        return entry->graph;
    }
    graphs->free_before = free_bytes(engine);
    return NULL;
}

int pllm_cuda_graphs_are_made(const pllm_engine *engine)
{
    return engine->cuda->graphs.strikes < STRIKES;
}

void pllm_cuda_graphs_keep(pllm_engine *engine, uint32_t rows, uint32_t bucket,
                           pllm_cuda_graph *graph)
{
    cuda_graphs *graphs = &engine->cuda->graphs;
    uint64_t after = free_bytes(engine), bytes = GRAPH_LEAST;
    if (graphs->free_before > after + GRAPH_LEAST) bytes = graphs->free_before - after;
    graphs->strikes = bytes > GRAPH_BYTES ? graphs->strikes + 1 : 0;
    while (graphs->count > 0 &&
           (graphs->count == GRAPHS_MAX || graphs->bytes + bytes > GRAPH_BYTES))
        drop(graphs, oldest(graphs));
    graphs->entries[graphs->count++] = (cuda_graph){
        .graph = graph, .rows = rows, .bucket = bucket, .bytes = bytes, .used = ++graphs->clock};
    graphs->bytes += bytes;
}

void pllm_cuda_graphs_refused(pllm_engine *engine)
{
    engine->cuda->graphs.strikes++;
}

void pllm_cuda_graphs_close(pllm_engine *engine)
{
    cuda_graphs *graphs = &engine->cuda->graphs;
    while (graphs->count > 0) drop(graphs, 0);
}
