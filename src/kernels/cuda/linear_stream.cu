/* linear_stream.cu - decode products of 9 to 16 rows on GPUs with clusters (sm_90 on).
 *
 * Operands, slices of k and the order of all sums are those of linear_decode.cu, so the bits are
 * the same. What differs is what made many rows slow there: the warps of a cluster waited for each
 * other at the end of every tile with nothing on its way, and x was read before most of W was asked
 * for.
 *
 *   CTA     8 or 16 warps (T = 1 or 2 tiles to finish), one CTA an SM, clusters of C = 2, 4 or 8
 *   warp    (tile of 16 rows of W, slice of k): of C T tiles of a job the CTA walks its 8 / C
 * slices shared  | barriers | squares | sums of two jobs | rings of W | x of the CTA's slices |
 *
 * A lane copies W into a ring of its own in shared memory (cp.async: no registers, no order among
 * warps) and takes it out again itself, so nothing is waited for but those bytes. The ring runs on
 * over the ends of tiles and jobs: while sums are exchanged, and while x comes, W does.
 * A warp sends its finished sums to the CTA that adds them up (st.async: the store itself counts at
 * that CTA's barrier) and goes on; what it has to add up itself it does a job later, when all have
 * long arrived. A cluster's tiles are a part of all of them, as equal as can be; its last job may
 * have fewer tiles than warps.
 *
 * Order. push(j) writes where the sums of job j - 2 lay. Every thread arrives at the cluster's
 * barrier after finish(j - 1) and push(j), and waits for it before push(j + 1): then all have done
 * finish(j - 1). finish(j) waits for the bytes of job j. A CTA without a tile in a job expects none
 * and skips it. Nobody leaves before all have arrived once more: sums still come to them.
 *
 * With a programmatic dependence the first groups of W are on their way before the kernel before
 * has ended. Bound: bytes of W / memory bandwidth. */
#include "kernels/cuda/linear_decode.cuh"

namespace
{

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ uint32_t shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

/* ---- copies that a lane makes for itself ---- */

__device__ __forceinline__ void copy_ahead(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from)
                 : "memory");
}

template <int BYTES> __device__ __forceinline__ void copy_scales(uint32_t to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES)
                 : "memory");
}

__device__ __forceinline__ void copies_end_group()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until the oldest of depth groups has come. */
__device__ __forceinline__ void copies_wait(uint32_t depth)
{
    switch (depth) {
    case 1:
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        break;
    case 2:
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        break;
    case 3:
        asm volatile("cp.async.wait_group 2;" ::: "memory");
        break;
    case 4:
        asm volatile("cp.async.wait_group 3;" ::: "memory");
        break;
    case 5:
        asm volatile("cp.async.wait_group 4;" ::: "memory");
        break;
    default:
        asm volatile("cp.async.wait_group 5;" ::: "memory");
        break;
    }
}

/* ---- barriers in shared memory, and stores to the other CTAs that count there ---- */

__device__ __forceinline__ uint32_t map_rank(uint32_t at, uint32_t rank)
{
    uint32_t there = at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

__device__ __forceinline__ void barrier_init(uint32_t at, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t at, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t at)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t at, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra done;\n"
                 "bra again;\n"
                 "done:\n"
                 "}" ::"r"(at),
                 "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void push_four(uint32_t to, uint32_t barrier, const float *v)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], "
                 "{%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void push_one(uint32_t to, uint32_t barrier, float v)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to),
        "f"(v), "r"(barrier)
        : "memory");
}

template <int DTYPE, int COLUMNS> /* rows at most: 2 (block formats only), 8 or 16 */
__device__ __forceinline__ void stream(const decode_arguments &a)
{
    typedef format<DTYPE> F;
    constexpr int TILES = (COLUMNS + 7) / 8;
    constexpr bool few = COLUMNS == 2;
    constexpr uint32_t part = 16 * COLUMNS; /* floats of the sums of a tile and a slice */
    constexpr uint32_t unit_ring = 1024 * F::loads, scale_ring = F::scale_words * 4 * 32 * 2;
    constexpr uint32_t group_ring = F::group * unit_ring + scale_ring;
    extern __shared__ uint4 shared_memory[];

    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    uint32_t ctas = 1u << a.cluster_shift, rank = blockIdx.x & (ctas - 1);
    uint32_t slice_count = DECODE_SLICES >> a.cluster_shift, slice_first = rank * slice_count;
    uint32_t groups = (a.units + F::group - 1) / F::group;
    uint32_t slice = slice_first + warp % slice_count, tile_local = warp / slice_count;
    uint32_t unit_first = slice * groups / DECODE_SLICES * F::group;
    uint32_t unit_end = min((slice + 1) * groups / DECODE_SLICES * F::group, a.units);
    uint32_t cta_unit = slice_first * groups / DECODE_SLICES * F::group;
    uint32_t warps = blockDim.x / 32, tiles = warps / 8; /* of which this CTA finishes so many */
    uint32_t job_tiles = tiles << a.cluster_shift;       /* that the cluster works on together */
    uint32_t cluster = blockIdx.x >> a.cluster_shift, clusters = gridDim.x >> a.cluster_shift;
    uint32_t all_tiles = (a.n + 15) / 16, tile_end = (cluster + 1) * all_tiles / clusters;
    uint32_t tile_first = cluster * all_tiles / clusters;

    /* | barriers | squares | all's squares | sums: [2][tile][slice][part] | ring | x ... */
    float *squares = (float *)(shared_memory + 4), *all_squares = squares + 128;
    float *sums = all_squares + 128;
    uint8_t *ring = (uint8_t *)(sums + 2 * tiles * DECODE_SLICES * part);
    uint8_t *x_shared = ring + warps * a.ring * group_ring;
    float *x_scale = (float *)(x_shared + a.rows * a.x_row_bytes);
    float *x_sum = x_scale + a.x_blocks * COLUMNS; /* Q4_1 */
    uint8_t *zero =
        (uint8_t *)(x_scale + a.x_blocks * COLUMNS * (DTYPE == PLLM_Q4_1 ? 2 : 1)) + warp * 16;
    uint32_t full = shared_address(shared_memory), square_barrier = full + 16;
    uint32_t sum_bytes = tiles * DECODE_SLICES * part * 4;

    /* Bytes of sums that come for this CTA's tiles of a job. */
    auto expected = [&](uint32_t job_tile) {
        uint32_t first = job_tile + rank * tiles;
        return first < tile_end ? min(tile_end - first, tiles) * (DECODE_SLICES * part * 4) : 0;
    };
    if (threadIdx.x == 0) {
        barrier_init(full, ctas > 1 ? 1 : warps);
        barrier_init(full + 8, ctas > 1 ? 1 : warps);
        barrier_init(square_barrier, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        if (ctas > 1) {
            uint32_t second = a.matrices > 1 ? tile_first : tile_first + job_tiles;
            if (expected(tile_first)) barrier_expect(full, expected(tile_first));
            if (expected(second)) barrier_expect(full + 8, expected(second));
            barrier_expect(square_barrier, DECODE_SLICES * DECODE_ROWS * 4);
        }
    }
    __syncwarp(); /* to the cluster's barrier, whole warps */
    if (ctas > 1) cluster_arrive_relaxed();

    const uint8_t *row[2]; /* what is fetched next comes from these two rows of W */
    uint32_t ahead_tile = unit_first < unit_end ? tile_first + tile_local : tile_end;
    uint32_t ahead_matrix = 0, ahead = unit_first;
    auto go_to = [&]() {
#pragma unroll
        for (int h = 0; h < 2; h++)
            row[h] = (const uint8_t *)(ahead_matrix ? a.matrix[1] : a.matrix[0]) +
                     min(ahead_tile * 16 + g + h * 8, a.n - 1) * a.row_bytes;
    };
    go_to();
    uint32_t ring_first = shared_address(ring) + warp * a.ring * group_ring + lane * 16;
    uint32_t ring_end = ring_first + a.ring * group_ring, in = ring_first, out_at = ring_first;
    auto fetch = [&]() {
        if (ahead_tile < tile_end) {
#pragma unroll
            for (int j = 0; j < F::group; j++)
                if (ahead + j < unit_end)
#pragma unroll
                    for (int h = 0; h < 2; h++)
#pragma unroll
                        for (int i = 0; i < F::loads; i++)
                            copy_ahead(in + j * unit_ring + (h * F::loads + i) * 512,
                                       row[h] + a.scale_bytes + t * 16 +
                                           (ahead + j) * F::unit_bytes + i * 64);
            if constexpr (F::blocks) { /* those of unit t */
                constexpr int bytes = F::scale_words * 4;
                uint32_t to = in - lane * 16 + F::group * unit_ring + lane * bytes;
#pragma unroll
                for (int h = 0; h < 2; h++)
                    copy_scales<bytes>(to + h * 32 * bytes, row[h] + (ahead + t) * bytes);
            }
            ahead += F::group;
            if (ahead >= unit_end) {
                ahead = unit_first;
                if (++ahead_matrix == a.matrices) ahead_matrix = 0, ahead_tile += job_tiles;
                if (ahead_tile < tile_end) go_to();
            }
        }
        in = in + group_ring == ring_end ? ring_first : in + group_ring;
        copies_end_group();
    };
    for (uint32_t i = 0; i < a.early; i++) fetch();
    if (a.norm_weight) prefetch_norm<DTYPE>(a, slice_first, slice_count, groups);
    if (few && lane == 0) *(uint4 *)zero = make_uint4(0, 0, 0, 0);
    let_next_kernel_start();
    wait_for_kernel_before();
    /* x is asked for before the rest of W, behind which it would come late. */
    auto rest = [&]() {
        for (uint32_t i = a.early; i < a.ring; i++) fetch();
    };
    float *our_squares = ctas > 1 ? squares : all_squares;
    /* Short slices: more rows at once. */
    int is_short = groups * F::group * F::unit_k <= DECODE_SLICES * 512;
    if (COLUMNS == 16 ? is_short : COLUMNS == 8 && a.rows > 2)
        convert_x<DTYPE, COLUMNS, 4, 4>(a, x_shared, x_scale, x_sum, our_squares, slice_first,
                                        slice_count, groups, rest);
    else
        convert_x<DTYPE, COLUMNS, COLUMNS == 16 ? 2 : 1, 8>(
            a, x_shared, x_scale, x_sum, our_squares, slice_first, slice_count, groups, rest);
    __syncwarp();
    if (ctas > 1) cluster_wait(); /* all have their barriers */
    __syncthreads();
    if (ctas > 1 && a.norm_weight) /* everyone's squares go to everyone */
        for (uint32_t i = threadIdx.x; i < slice_count * DECODE_ROWS << a.cluster_shift;
             i += blockDim.x) {
            uint32_t to = i & (ctas - 1), from = i >> a.cluster_shift;
            uint32_t at = shared_address(all_squares + slice_first * DECODE_ROWS + from);
            push_one(map_rank(at, to), map_rank(square_barrier, to), squares[from]);
        }

    /* Columns past the last row of x repeat it; their results are not used. */
    const uint8_t *x[TILES];
#pragma unroll
    for (int n = 0; n < TILES; n++)
        x[n] = x_shared + min(few ? g / 4 : g + n * 8, a.rows - 1) * a.x_row_bytes +
               (few ? g % 4 * 64 : 0) + t * 16;
    /* Where this warp's sums go, and where this thread finds the eight slices of its output. */
    float *target_here = sums + (tile_local % tiles * DECODE_SLICES + slice) * part;
    uint32_t owner = tile_local / tiles, target = shared_address(target_here),
             target_barrier = full;
    if (ctas > 1) target = map_rank(target, owner), target_barrier = map_rank(full, owner);
    uint32_t tile = threadIdx.x / 256, column = threadIdx.x % 256 / 16, r = threadIdx.x % 16;
    const float *mine = sums + tile * DECODE_SLICES * part;
    mine += few ? column * 16 + r
                : column / 8 * 128 + (r % 8 * 4 + column % 8 / 2) * 4 + r / 8 * 2 + column % 2;

    float factor = 0.0f, held = 0.0f; /* of the norm, once it is known; of the first matrix */
    /* Adds up what the slices made of a job, whose first tile is job_tile. */
    auto finish = [&](uint32_t job, uint32_t job_tile, uint32_t matrix) {
        uint32_t buffer = job & 1, last = matrix + 1 == a.matrices;
        uint32_t own_tile = job_tile + rank * tiles;
        if (own_tile >= tile_end) return; /* the whole CTA */
        own_tile += tile;
        uint32_t n = own_tile * 16 + r;
        int here = column < a.rows && own_tile < tile_end && n < a.n;
        float *out = (float *)a.out + column * a.out_stride + n, before = 0.0f;
        if (a.epilogue == 1 && here) before = __ldcg(out);
        barrier_wait(full + buffer * 8, job >> 1 & 1);
        if (ctas > 1 && threadIdx.x == 0) { /* for the job after the next */
            uint32_t bytes = expected(job_tile + (a.matrices > 1 ? 1 : 2) * job_tiles);
            if (bytes) barrier_expect(full + buffer * 8, bytes);
        }
        if (!here) return;
        if (a.norm_weight && factor == 0.0f) {
            if (ctas > 1) barrier_wait(square_barrier, 0);
            float square = add_slices(all_squares + column, DECODE_ROWS, 0);
            factor = 1.0f / sqrtf(square / (float)a.k + a.epsilon);
        }
        float result = add_slices(mine + buffer * (sum_bytes / 4), part, 0);
        if (a.norm_weight) result *= factor;
        if (!last) {
            held = result;
            return;
        }
        if (a.matrices > 1) result = held / (1.0f + expf(-held)) * result;
        *out = a.epilogue == 1 ? before + result : result;
    };

    uint32_t job = 0, old_tile = 0, old_matrix = 0;
    for (uint32_t job_tile = tile_first; job_tile < tile_end; job_tile += job_tiles)
        for (uint32_t matrix = 0; matrix < a.matrices; matrix++, job++) {
            int mine_too = job_tile + tile_local < tile_end;
            float sum[TILES][F::blocks && !few ? 4 : 1][4] = {};
            for (uint32_t first = mine_too ? unit_first : unit_end; first < unit_end;
                 first += F::group) {
                copies_wait(a.ring);
                uint4 w[F::group][2][F::loads];
                uint32_t scales[2][4];
                const uint8_t *at = (const uint8_t *)__cvta_shared_to_generic(out_at);
#pragma unroll
                for (int j = 0; j < F::group; j++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
#pragma unroll
                        for (int i = 0; i < F::loads; i++)
                            w[j][h][i] =
                                *(const uint4 *)(at + j * unit_ring + (h * F::loads + i) * 512);
                if constexpr (F::blocks) {
                    const uint8_t *from = at - lane * 16 + F::group * unit_ring;
#pragma unroll
                    for (int h = 0; h < 2; h++)
#pragma unroll
                        for (int i = 0; i < F::scale_words; i++)
                            scales[h][i] =
                                ((const uint32_t *)from)[(h * 32 + lane) * F::scale_words + i];
                }
                uint32_t unit = first - cta_unit;
                if constexpr (!F::blocks) {
                    if (first + F::group <= unit_end) {
#pragma unroll
                        for (int j = 0; j < F::group; j++)
                            multiply_plain<DTYPE, TILES>(sum, w[j], x, unit + j);
                    } else {
#pragma unroll
                        for (int j = 0; j < F::group; j++)
                            if (first + j < unit_end)
                                multiply_plain<DTYPE, TILES>(sum, w[j], x, unit + j);
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < F::group; j++) {
                        if (first + j >= unit_end) break;
                        if constexpr (!few)
                            multiply_blocks<DTYPE, TILES>(sum, w[j], x, x_scale, x_sum, scales,
                                                          unit + j, j);
                        else if (F::unit_k == 128 || j % 2 == 0)
                            multiply_few<DTYPE>(sum[0][0], w[j], w[(j + 1) % F::group],
                                                first + j + 1 < unit_end, x[0], zero, x_scale,
                                                x_sum, scales, unit + j, j);
                    }
                }
                fetch();
                out_at = out_at + group_ring == ring_end ? ring_first : out_at + group_ring;
            }
            if (job) finish(job - 1, old_tile, old_matrix);
            __syncwarp();
            /* Who is behind the barrier of the job before has read what now is written over. */
            if (ctas > 1 && job) cluster_wait();
            uint32_t to = target + (job & 1) * sum_bytes, barrier = target_barrier + (job & 1) * 8;
            float *here = target_here + (job & 1) * (sum_bytes / 4);
            if constexpr (few) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float pair = sum[0][0][h * 2] + sum[0][0][h * 2 + 1];
                    pair += __shfl_xor_sync(~0u, pair, 1);
                    uint32_t at = t / 2 * 16 + g + h * 8;
                    if (t % 2 || !mine_too) continue;
                    if (ctas > 1)
                        push_one(to + at * 4, barrier, pair);
                    else
                        here[at] = pair;
                }
            } else if (mine_too) {
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    float whole[4];
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        whole[c] = sum[i][0][c];
                        if constexpr (F::blocks)
                            whole[c] =
                                (sum[i][0][c] + sum[i][1][c]) + (sum[i][2][c] + sum[i][3][c]);
                    }
                    if (ctas > 1)
                        push_four(to + (i * 32 + lane) * 16, barrier, whole);
                    else
                        *(float4 *)(here + (i * 32 + lane) * 4) =
                            make_float4(whole[0], whole[1], whole[2], whole[3]);
                }
            }
            __syncwarp();
            if (ctas > 1)
                cluster_arrive_relaxed();
            else if (lane == 0)
                barrier_arrive(barrier);
            old_tile = job_tile, old_matrix = matrix;
        }
    finish(job - 1, old_tile, old_matrix);
    __syncwarp();
    if (ctas > 1) cluster_wait();
}

#else

template <int DTYPE, int COLUMNS> __device__ void stream(const decode_arguments &) {}

#endif

} // namespace

#define STREAM(NAME, DTYPE)                                            \
    extern "C" __global__ void __launch_bounds__(512, 1)               \
        pllm_stream_##NAME(const __grid_constant__ decode_arguments a) \
    {                                                                  \
        stream<DTYPE, 16>(a);                                          \
    }

STREAM(f32, PLLM_F32)
STREAM(f16, PLLM_F16)
STREAM(bf16, PLLM_BF16)
STREAM(q8_0, PLLM_Q8_0)
STREAM(q4_0, PLLM_Q4_0)
STREAM(q4_1, PLLM_Q4_1)
