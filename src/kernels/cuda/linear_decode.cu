/* linear_decode.cu - products of 1 to 16 rows of x with a matrix read once from memory.
 *
 * Idea. The weights are the A operand of the tensor cores (16 rows of W a tile), the rows of x the
 * columns of B, for any number of rows: a result's bits cannot depend on how many there are. Which
 * k stands at which place of an operand is free as long as A and B agree, so each lane reads 16
 * consecutive bytes of a row of W (four lanes: one unit of 64 bytes) straight into its fragment and
 * finds the matching x in shared memory with one 16-byte load: no shuffles, no staging of W.
 *
 *   warp = (tile of 16 rows, slice of k)            a lane: row g = lane / 4 and g + 8, quarter t
 *   registers   4 units of both rows in flight (128 B a lane, 4 KiB a warp)
 *   shared      | x: rows x units of the CTA's slices, 64 B each | scales of x | partial sums |
 * squares |
 *
 * k is cut into 8 slices by the format and k alone. Their sums are added in one fixed tree. A
 * cluster of C CTAs (C = 1, 2, 4, 8) owns C tiles; each CTA holds x for 8 / C slices only and works
 * on all C tiles, so that x is read and converted 1 / C as often; partial sums travel through
 * distributed shared memory. C does not change any bit.
 *
 * The RMSNorm is folded in: x is multiplied by the norm's weight before rounding, the sum of its
 * squares is taken beside that slice by slice, and the factor goes to the finished sums.
 *
 * Block formats: x is quantised in groups of 32 to 15 bits, a = 128 * high + low; two int8 products
 * a block give the exact integer sum, which is scaled in f32: as the CPU's integer products do.
 *
 * With a programmatic dependence the first units of W are on their way before the kernel before
 * this one has finished. Bound: bytes of W / memory bandwidth. */
#include "kernels/cuda/linear_decode.cuh"

namespace
{

template <int DTYPE, int COLUMNS> /* rows at most: 2 (block formats only), 8 or 16 */
__device__ __forceinline__ void decode(const decode_arguments &a)
{
    typedef format<DTYPE> F;
    constexpr uint32_t columns = COLUMNS;
    constexpr int TILES = (COLUMNS + 7) / 8;
    constexpr bool few = COLUMNS == 2;
    /* Units of W on their way before x is read; the registers of the others hold x then. */
    constexpr int early = COLUMNS == 16 && !F::blocks ? F::depth / 2 : F::depth;
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
    uint32_t set_rows = (16 * tiles) << a.cluster_shift, step = gridDim.x >> a.cluster_shift;
    uint32_t set_count = (a.n + set_rows - 1) / set_rows;

    uint8_t *x_shared = (uint8_t *)shared_memory;
    float *x_scale = (float *)(x_shared + a.rows * a.x_row_bytes);
    float *x_sum = x_scale + a.x_blocks * columns; /* Q4_1 */
    float *squares = x_scale + a.x_blocks * columns * (DTYPE == PLLM_Q4_1 ? 2 : 1);
    uint8_t *zero = (uint8_t *)(squares + DECODE_SLICES * DECODE_ROWS) + warp * 16; /* few rows */
    float *partials = squares + DECODE_SLICES * DECODE_ROWS + warps * 4; /* two, used in turn */

    const uint8_t *row[2]; /* what is loaded next comes from these two rows of W */
    auto go_to = [&](uint32_t set, uint32_t matrix) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t n = set * set_rows + tile_local * 16 + g + h * 8;
            row[h] = (const uint8_t *)a.matrix[matrix] + min(n, a.n - 1) * a.row_bytes;
        }
    };
    uint4 w[F::depth][2][F::loads];
    auto load = [&](int j, uint32_t unit) {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < F::loads; i++)
                w[j][h][i] =
                    load_stream(row[h] + a.scale_bytes + t * 16 + unit * F::unit_bytes + i * 64);
    };
    uint32_t scales[2][4];
    uint32_t set = blockIdx.x >> a.cluster_shift;
    go_to(set, 0);
    if (unit_first < unit_end) {
#pragma unroll
        for (int j = 0; j < early; j++)
            if (unit_first + j < unit_end) load(j, unit_first + j);
#pragma unroll
        for (int h = 0; h < 2; h++) load_scales<DTYPE>(scales[h], row[h], unit_first, t);
    }
    if (a.norm_weight) prefetch_norm<DTYPE>(a, slice_first, slice_count, groups);
    if (few && lane == 0) *(uint4 *)zero = make_uint4(0, 0, 0, 0);
    let_next_kernel_start();
    wait_for_kernel_before();
    convert_x<DTYPE, COLUMNS, COLUMNS == 16 ? 2 : 1, 4>(a, x_shared, x_scale, x_sum, squares,
                                                        slice_first, slice_count, groups, []() {});
#pragma unroll
    for (int j = early; j < F::depth; j++)
        if (unit_first + j < unit_end) load(j, unit_first + j);
    if (warps > slice_count)
        __syncthreads();
    else
        __syncwarp(); /* each warp has made its own slice */

    /* Columns past the last row of x repeat it; their results are not used. */
    const uint8_t *x[TILES];
#pragma unroll
    for (int n = 0; n < TILES; n++)
        x[n] = x_shared + min(few ? g / 4 : g + n * 8, a.rows - 1) * a.x_row_bytes +
               (few ? g % 4 * 64 : 0) + t * 16;

    float factor = 0.0f; /* of the norm, once it is known */
    for (uint32_t buffer = 0; set < set_count; set += step, buffer ^= 1) {
        float *partial = partials + buffer * a.matrices * warps * 16 * columns;
        /* CTA rank finishes tiles rank * T on of the set, each thread one output. */
        uint32_t tile = rank * tiles + threadIdx.x / 256, column = threadIdx.x % 256 / 16;
        uint32_t n = set * set_rows + tile * 16 + threadIdx.x % 16;
        int mine = column < a.rows && n < a.n;

        for (uint32_t matrix = 0; matrix < a.matrices; matrix++) {
            float sum[TILES][F::blocks && !few ? 4 : 1][4] = {};
            for (uint32_t first = unit_first; first < unit_end; first += F::depth) {
                /* What is loaded while these units are multiplied: the next ones of these rows, or
                 * the first of the other matrix or of the next set. */
                uint32_t next = first + F::depth, next_scales[2][4];
                int last = 0;
                if (next >= unit_end) {
                    next = unit_first;
                    if (matrix + 1 < a.matrices)
                        go_to(set, 1);
                    else if (set + step < set_count)
                        go_to(set + step, 0);
                    else
                        last = 1;
                }
                if (F::blocks && !last) {
#pragma unroll
                    for (int h = 0; h < 2; h++) load_scales<DTYPE>(next_scales[h], row[h], next, t);
                }
#pragma unroll
                for (int j = 0; j < F::depth; j++) {
                    uint32_t unit = first + j - cta_unit;
                    if (first + j < unit_end) {
                        if constexpr (!F::blocks) {
                            multiply_plain<DTYPE, TILES>(sum, w[j], x, unit);
                        } else if constexpr (!few) {
                            multiply_blocks<DTYPE, TILES>(sum, w[j], x, x_scale, x_sum, scales,
                                                          unit, j);
                        } else if (F::unit_k == 128 || j % 2 == 0) {
                            multiply_few<DTYPE>(sum[0][0], w[j], w[(j + 1) % F::depth],
                                                first + j + 1 < unit_end, x[0], zero, x_scale,
                                                x_sum, scales, unit, j);
                        }
                    }
                    if (few && F::unit_k == 64) { /* units go in pairs */
                        if (j % 2 == 0) continue;
                        if (!last && next + j - 1 < unit_end) load(j - 1, next + j - 1);
                    }
                    if (!last && next + j < unit_end) load(j, next + j);
                }
                if (F::blocks && !last) {
#pragma unroll
                    for (int h = 0; h < 2; h++)
#pragma unroll
                        for (int i = 0; i < F::scale_words; i++) scales[h][i] = next_scales[h][i];
                }
            }
            /* partial: [matrix][tile][slice][column][row of the tile] */
            float *to = partial + (matrix * warps + warp) * 16 * columns + g;
            if constexpr (few) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float pair = sum[0][0][h * 2] + sum[0][0][h * 2 + 1];
                    pair += __shfl_xor_sync(~0u, pair, 1);
                    if (t % 2 == 0) to[t / 2 * 16 + h * 8] = pair;
                }
            } else {
#pragma unroll
                for (int i = 0; i < TILES; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        float whole = sum[i][0][c];
                        if constexpr (F::blocks)
                            whole = (sum[i][0][c] + sum[i][1][c]) + (sum[i][2][c] + sum[i][3][c]);
                        to[(i * 8 + t * 2 + c % 2) * 16 + c / 2 * 8] = whole;
                    }
            }
        }
        float *out = (float *)a.out + column * a.out_stride + n, before = 0.0f;
        if (a.epilogue == 1 && mine) before = __ldcg(out);
        /* One barrier a set: who comes to the next one has done with this one's other buffer. A
         * half warp may be behind, and barriers want whole ones. */
        __syncwarp();
        if (ctas > 1)
            cluster_arrive(), cluster_wait();
        else
            __syncthreads();

        if (column < a.rows) {
            if (a.norm_weight && factor == 0.0f) {
                float square = add_slices(squares + column, DECODE_ROWS, a.cluster_shift);
                factor = 1.0f / sqrtf(square / (float)a.k + a.epsilon);
            }
            const float *at = partial + tile * slice_count * 16 * columns + column * 16 + n % 16;
            float result = add_slices(at, 16 * columns, a.cluster_shift);
            if (a.norm_weight) result *= factor;
            if (a.matrices > 1) {
                float up = add_slices(at + warps * 16 * columns, 16 * columns, a.cluster_shift);
                if (a.norm_weight) up *= factor;
                result = result / (1.0f + expf(-result)) * up;
            }
            if (mine) *out = a.epilogue == 1 ? before + result : result;
        }
        __syncwarp();
    }
    if (ctas > 1) cluster_arrive_relaxed(), cluster_wait(); /* others may still be reading ours */
}

} // namespace

#define DECODE(NAME, DTYPE, COLUMNS, CTAS)                                         \
    extern "C" __global__ void __launch_bounds__(512, CTAS / 2)                    \
        pllm_decode_##NAME##_##COLUMNS(const __grid_constant__ decode_arguments a) \
    {                                                                              \
        decode<DTYPE, COLUMNS>(a);                                                 \
    }

DECODE(f32, PLLM_F32, 8, DECODE_CTAS_PLAIN)
DECODE(f32, PLLM_F32, 16, DECODE_CTAS_PLAIN)
DECODE(f16, PLLM_F16, 8, DECODE_CTAS_PLAIN)
DECODE(f16, PLLM_F16, 16, DECODE_CTAS_PLAIN)
DECODE(bf16, PLLM_BF16, 8, DECODE_CTAS_PLAIN)
DECODE(bf16, PLLM_BF16, 16, DECODE_CTAS_PLAIN)
DECODE(q8_0, PLLM_Q8_0, 2, DECODE_CTAS_BLOCKS)
DECODE(q8_0, PLLM_Q8_0, 8, DECODE_CTAS_BLOCKS)
DECODE(q8_0, PLLM_Q8_0, 16, DECODE_CTAS_BLOCKS)
DECODE(q4_0, PLLM_Q4_0, 2, DECODE_CTAS_BLOCKS)
DECODE(q4_0, PLLM_Q4_0, 8, DECODE_CTAS_BLOCKS)
DECODE(q4_0, PLLM_Q4_0, 16, DECODE_CTAS_BLOCKS)
DECODE(q4_1, PLLM_Q4_1, 2, DECODE_CTAS_BLOCKS)
DECODE(q4_1, PLLM_Q4_1, 8, DECODE_CTAS_BLOCKS)
DECODE(q4_1, PLLM_Q4_1, 16, DECODE_CTAS_BLOCKS)
