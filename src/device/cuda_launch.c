/* cuda_launch.c - modules, launches, graphs and tensor maps: what layers above ask of a CUDA device
 * beside the common table. See cuda.h. */
#include <stdio.h>
#include <string.h>
#include "device/cuda_internal.h"

#define SHARED_PLAIN_BYTES (48u << 10) /* above it a kernel must ask */
#define SM_DEPENDENT_MAJOR 9u          /* programmatic dependence: from sm_90 on */
#define BOX_MAX 256u
#define SWIZZLE_BYTES 128u

struct pllm_cuda_function {
    pllm_cuda_function *next;
    void *handle;
    uint32_t shared_bytes_max;
};

struct pllm_cuda_module {
    cuda_device *cuda;
    void *handle;
    pthread_mutex_t lock; /* the list */
    pllm_cuda_function *functions;
};

struct pllm_cuda_graph {
    cuda_device *cuda;
    void *handle;
};

/* ---- modules ---- */

static int fail_image(cuda_device *cuda, int code)
{
    char text[256];
    cuda_error_text(&cuda->driver, code, text, sizeof text);
    return pllm_fail(PLLM_EUNSUPPORTED, code,
                     "the kernels of this build don't run on %s (sm_%u%u) with a driver for CUDA "
                     "%d.%d: %s; update the driver, or build with this GPU in "
                     "PLLM_CUDA_ARCHITECTURES",
                     cuda->name, cuda->attributes.major, cuda->attributes.minor,
                     cuda->driver.version / 1000, cuda->driver.version % 1000 / 10, text);
}

int pllm_cuda_module_open(pllm_device *device, const void *fatbin, uint64_t bytes,
                          pllm_cuda_module **module_out)
{
    cuda_device *cuda;
    *module_out = NULL;
    if (!fatbin || bytes == 0) return pllm_fail(PLLM_EINVAL, 0, "a module needs an image");
    int status = cuda_unwrap(device, NULL, "cuda_module_open", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    pllm_cuda_module *module = pllm_alloc(cuda->base.context, sizeof *module);
    if (!module) return pllm_fail_memory("a module", sizeof *module);
    module->cuda = cuda;
    int code = pthread_mutex_init(&module->lock, NULL);
    if (code) {
        status = pllm_fail(PLLM_ENOMEM, code, "could not make a lock for a module");
        goto fail_module;
    }
    code = cuda->driver.module_load(&module->handle, fatbin);
    if (code == CUDA_NO_BINARY_FOR_GPU || code == CUDA_UNSUPPORTED_PTX_VERSION ||
        code == CUDA_INVALID_IMAGE)
        status = fail_image(cuda, code);
    else
        status = cuda_check(cuda, CUDA_CALL_module_load, code);
    if (status < 0) goto fail_lock;
    *module_out = module;
    return PLLM_OK;
fail_lock:
    pthread_mutex_destroy(&module->lock);
fail_module:
    pllm_free(cuda->base.context, module);
    return status;
}

void pllm_cuda_module_close(pllm_cuda_module *module)
{
    if (!module) return;
    cuda_device *cuda = module->cuda;
    CUDA_NOTE(cuda, context_set_current, cuda->context);
    CUDA_NOTE(cuda, module_unload, module->handle);
    for (pllm_cuda_function *function = module->functions, *next; function; function = next) {
        next = function->next;
        pllm_free(cuda->base.context, function);
    }
    pthread_mutex_destroy(&module->lock);
    pllm_free(cuda->base.context, module);
}

int pllm_cuda_function_get(pllm_cuda_module *module, const char *name,
                           uint32_t dynamic_shared_bytes, pllm_cuda_function **function_out)
{
    cuda_device *cuda = module->cuda;
    *function_out = NULL;
    if (dynamic_shared_bytes > cuda->attributes.shared_per_block_max)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "kernel %s wants %u bytes of shared memory; %s gives a block %u", name,
                         dynamic_shared_bytes, cuda->name, cuda->attributes.shared_per_block_max);
    int status = cuda_enter(cuda);
    if (status < 0) return status;
    pllm_cuda_function *function = pllm_alloc(cuda->base.context, sizeof *function);
    if (!function) return pllm_fail_memory("a kernel", sizeof *function);
    int code = cuda->driver.module_function(&function->handle, module->handle, name);
    if (code == CUDA_NOT_FOUND)
        status = pllm_fail(PLLM_ENOTFOUND, code, "this module has no kernel %s", name);
    else
        status = cuda_check(cuda, CUDA_CALL_module_function, code);
    function->shared_bytes_max =
        dynamic_shared_bytes > SHARED_PLAIN_BYTES ? dynamic_shared_bytes : SHARED_PLAIN_BYTES;
    if (status == PLLM_OK && dynamic_shared_bytes > SHARED_PLAIN_BYTES)
        status = CUDA_DO(cuda, function_set, function->handle, CUDA_FUNCTION_DYNAMIC_SHARED_MAX,
                         (int)dynamic_shared_bytes);
    if (status < 0) {
        pllm_free(cuda->base.context, function);
        return status;
    }
    pthread_mutex_lock(&module->lock);
    function->next = module->functions;
    module->functions = function;
    pthread_mutex_unlock(&module->lock);
    *function_out = function;
    return PLLM_OK;
}

/* ---- launches ---- */

/* Before 12.3 a graph could not hold the dependence. */
static int may_depend(const cuda_device *cuda, const cuda_stream *stream)
{
    if (cuda->attributes.major < SM_DEPENDENT_MAJOR) return 0;
    if (cuda->driver.version >= CUDA_VERSION_GRAPH_DEPENDENCE) return 1;
    int capture = CUDA_CAPTURE_NONE;
    return cuda->driver.capture_status(stream->handle, &capture) == CUDA_OK &&
           capture == CUDA_CAPTURE_NONE;
}

int pllm_cuda_clusters_at_once(pllm_device *device, pllm_cuda_function *function,
                               const pllm_cuda_grid *grid, uint32_t *count_out)
{
    cuda_device *cuda;
    int status = cuda_unwrap(device, NULL, "cuda_clusters", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    cuda_launch_attribute attribute = {.id = CUDA_LAUNCH_CLUSTER,
                                       .value.cluster = {grid->cluster, 1, 1}};
    cuda_launch launch = {
        .grid_x = grid->x,
        .grid_y = grid->y,
        .grid_z = grid->z,
        .block_x = grid->threads,
        .block_y = 1,
        .block_z = 1,
        .shared_bytes = grid->shared_bytes,
        .attributes = &attribute,
        .attribute_count = 1,
    };
    int count = 0;
    status = CUDA_DO(cuda, cluster_count, &count, function->handle, &launch);
    *count_out = status == PLLM_OK && count > 0 ? (uint32_t)count : 0;
    return status;
}

int pllm_cuda_launch(pllm_device *device, pllm_stream *stream_handle, pllm_cuda_function *function,
                     const pllm_cuda_grid *grid, void **arguments)
{
    cuda_device *cuda;
    if (!function || !grid || !stream_handle || !grid->x || !grid->y || !grid->z ||
        !grid->threads || grid->shared_bytes > function->shared_bytes_max)
        return pllm_fail(PLLM_EINVAL, 0,
                         "launch: no stream or kernel, an empty grid, or more shared memory than "
                         "the kernel was got for");
    int status = cuda_unwrap(device, &stream_handle, "cuda_launch", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    cuda_stream *stream = (cuda_stream *)stream_handle;
    cuda_launch_attribute attributes[2];
    uint32_t attribute_count = 0;
    if (grid->dependent && may_depend(cuda, stream))
        attributes[attribute_count++] =
            (cuda_launch_attribute){.id = CUDA_LAUNCH_SERIALIZATION, .value.flag = 1};
    if (grid->cluster > 1)
        attributes[attribute_count++] = (cuda_launch_attribute){
            .id = CUDA_LAUNCH_CLUSTER, .value.cluster = {grid->cluster, 1, 1}};
    cuda_launch launch = {
        .grid_x = grid->x,
        .grid_y = grid->y,
        .grid_z = grid->z,
        .block_x = grid->threads,
        .block_y = 1,
        .block_z = 1,
        .shared_bytes = grid->shared_bytes,
        .stream = stream->handle,
        .attributes = attributes,
        .attribute_count = attribute_count,
    };
    status = CUDA_DO(cuda, launch, &launch, function->handle, arguments, NULL);
    if (status == PLLM_ENODEVMEM) /* a kernel's stack or its code, loaded late */
        status =
            pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY,
                      "%s has no memory left to start a kernel: others are using it", cuda->name);
    return status;
}

void *pllm_cuda_stream_handle(pllm_stream *stream)
{
    return ((cuda_stream *)pllm_faulty_stream_inner(stream))->handle;
}

/* ---- graphs ---- */

int pllm_cuda_capture_begin(pllm_device *device, pllm_stream *stream)
{
    cuda_device *cuda;
    int status = cuda_unwrap(device, &stream, "cuda_capture_begin", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    /* Relaxed: other threads, and this one on other streams, go on as always. */
    return CUDA_DO(cuda, capture_begin, ((cuda_stream *)stream)->handle, CUDA_CAPTURE_RELAXED);
}

int pllm_cuda_capture_end(pllm_device *device, pllm_stream *stream, pllm_cuda_graph **graph_out)
{
    cuda_device *cuda;
    void *noted = NULL;
    *graph_out = NULL;
    /* Not counted by a faulty device: what was begun is ended in any case. */
    int status = cuda_unwrap(device, &stream, NULL, &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    status = CUDA_DO(cuda, capture_end, ((cuda_stream *)stream)->handle, &noted);
    if (status < 0) goto fail_noted;
    pllm_cuda_graph *graph = pllm_alloc(cuda->base.context, sizeof *graph);
    if (!graph) {
        status = pllm_fail_memory("a graph", sizeof *graph);
        goto fail_noted;
    }
    graph->cuda = cuda;
    status = CUDA_DO(cuda, graph_make, &graph->handle, noted, 0);
    if (status < 0) goto fail_graph;
    /* What it needs on the card is taken now: the first launch costs what others cost, or we know
     * here that there is no room. */
    status = CUDA_DO(cuda, graph_upload, graph->handle, ((cuda_stream *)stream)->handle);
    if (status < 0) goto fail_handle;
    CUDA_NOTE(cuda, graph_destroy, noted);
    *graph_out = graph;
    return PLLM_OK;
fail_handle:
    CUDA_NOTE(cuda, graph_close, graph->handle);
fail_graph:
    pllm_free(cuda->base.context, graph);
fail_noted:
    if (noted) CUDA_NOTE(cuda, graph_destroy, noted);
    return status;
}

int pllm_cuda_graph_launch(pllm_device *device, pllm_cuda_graph *graph, pllm_stream *stream)
{
    cuda_device *cuda;
    int status = cuda_unwrap(device, &stream, "cuda_graph_launch", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    status = CUDA_DO(cuda, graph_launch, graph->handle, ((cuda_stream *)stream)->handle);
    if (status == PLLM_ENODEVMEM)
        status =
            pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY,
                      "%s has no memory left to start a graph: others are using it", cuda->name);
    return status;
}

void pllm_cuda_graph_close(pllm_cuda_graph *graph)
{
    if (!graph) return;
    cuda_device *cuda = graph->cuda;
    CUDA_NOTE(cuda, context_set_current, cuda->context);
    CUDA_NOTE(cuda, graph_close, graph->handle);
    pllm_free(cuda->base.context, graph);
}

/* ---- tensor maps ---- */

int pllm_cuda_tensor_map_2d(pllm_device *device, void *map_128_bytes, pllm_va base,
                            uint32_t element_bytes, uint64_t rows, uint64_t columns,
                            uint64_t row_bytes, uint32_t box_rows, uint32_t box_columns,
                            uint32_t swizzle_128b)
{
    cuda_device *cuda;
    int status = cuda_unwrap(device, NULL, NULL, &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    if (!map_128_bytes || (uintptr_t)map_128_bytes % 64 || base % 16 || row_bytes % 16 ||
        (element_bytes != 1 && element_bytes != 2 && element_bytes != 4) || !rows || !columns ||
        row_bytes / element_bytes < columns || !box_rows || !box_columns || box_rows > BOX_MAX ||
        box_columns > BOX_MAX || box_columns * element_bytes % 16 ||
        (swizzle_128b && box_columns * element_bytes > SWIZZLE_BYTES))
        return pllm_fail(PLLM_EINVAL, 0,
                         "tensor map: %llu x %llu elements of %u bytes, rows %llu bytes apart, in "
                         "boxes of %u x %u, are not what a map takes",
                         (unsigned long long)rows, (unsigned long long)columns, element_bytes,
                         (unsigned long long)row_bytes, box_rows, box_columns);
    const uint64_t sizes[2] = {columns, rows};
    const uint32_t box[2] = {box_columns, box_rows}, steps[2] = {1, 1};
    int type = element_bytes == 1   ? CUDA_MAP_UINT8
               : element_bytes == 2 ? CUDA_MAP_UINT16
                                    : CUDA_MAP_UINT32;
    return CUDA_DO(cuda, tensor_map, map_128_bytes, type, 2, (void *)(uintptr_t)base, sizes,
                   &row_bytes, box, steps, 0,
                   swizzle_128b ? CUDA_MAP_SWIZZLE_128B : CUDA_MAP_SWIZZLE_NONE,
                   CUDA_MAP_PROMOTE_L2_256B, 0);
}
