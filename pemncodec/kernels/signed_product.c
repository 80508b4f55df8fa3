/* Products of inputs and weights of one magnitude, from bits.
 *
 * As in T-MAC, the sums of all subsets of a few inputs are looked up by the bits of weights, for many
 * rows at once: a table is a register. They are those of floats, not of integers, so that nothing is
 * rounded that a dense layer does not round. Two look-ups tell what a group of weights adds and what
 * it subtracts.
 */
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "kernels.h"
#include "parallel.h"
#include "processor.h"
#include "product.h"

#ifdef __aarch64__
#include <arm_neon.h>
#endif

enum {
    BLOCK = 32,    /* columns that are summed together */
    GROUPS = 11,   /* of a block: of 3 columns, the last of 2 */
    SUBSETS = 8,   /* of a group */
    ROWS = 16,     /* of a part, which share tables */
    INPUTS = 16,   /* that share bits */
    COLUMNS = 512, /* whose tables stay in the nearest cache meanwhile */
    BLOCKS = COLUMNS / BLOCK,
};

typedef float Tables[GROUPS][SUBSETS];        /* sums, for a block of an input */
typedef uint64_t RowBits[ROWS][COLUMNS / 64]; /* of weights, row by row */
typedef uint32_t BlockBits[BLOCKS][ROWS];     /* the same, block by block */

typedef struct {
    uint64_t starts[ROWS]; /* places of the rows' signs */
    RowBits row_added, row_subtracted;
    BlockBits added, subtracted;
    float sums[INPUTS][ROWS];
} Tile;

typedef struct Product Product;

/* Finds which weights are added and which are subtracted, of COLUMNS or fewer. */
typedef void Choose(const Product *all, Tile *tile, uint64_t row, size_t rows, uint64_t column,
                    size_t columns);

/* Adds the sums of blocks. Tables of inputs are `stride` apart. */
typedef void Sum(Tile *tile, Tables *tables, size_t stride, size_t batch, size_t blocks);

struct Product {
    Bytes bits, signs;
    Room edge; /* signs from `edge_from` on, again and again: here are the rows that would go on with the
                  first sign */
    const unsigned char *inputs; /* float */
    Tables *tables;
    unsigned char *out; /* float */
    Shape shape;
    uint64_t period, offset, edge_from;
    size_t stride; /* blocks of a row */
    float constant;
    Choose *choose;
    Sum *sum;
};

/* ---- Sums ---- */

#ifdef __aarch64__
/* The floats that the lowest three bits of indexes choose. */
static inline float32x4_t look_up(uint8x16x2_t table, uint32x4_t indexes)
{
    uint32x4_t first = vmulq_n_u32(vandq_u32(indexes, vdupq_n_u32(7)), 0x04040404);
    uint8x16_t bytes = vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x03020100)));
    return vreinterpretq_f32_u8(vqtbl2q_u8(table, bytes));
}

static void sum(Tile *tile, Tables *tables, size_t stride, size_t batch, size_t blocks)
{
    for (size_t b = 0; b < batch; b++, tables += stride)
        for (size_t row = 0; row < ROWS; row += 4) {
            float32x4_t total = vld1q_f32(tile->sums[b] + row);
            for (size_t block = 0; block < blocks; block++) {
                uint32x4_t added = vld1q_u32(tile->added[block] + row);
                uint32x4_t subtracted = vld1q_u32(tile->subtracted[block] + row);
                float32x4_t of_block = vdupq_n_f32(0);
                for (size_t group = 0; group < GROUPS; group++) {
                    const uint8_t *sums = (const uint8_t *)tables[block][group];
                    uint8x16x2_t table = {{vld1q_u8(sums), vld1q_u8(sums + 16)}};
                    of_block = vaddq_f32(of_block, vsubq_f32(look_up(table, added),
                                                             look_up(table, subtracted)));
                    added = vshrq_n_u32(added, 3);
                    subtracted = vshrq_n_u32(subtracted, 3);
                }
                total = vaddq_f32(total, of_block);
            }
            vst1q_f32(tile->sums[b] + row, total);
        }
}
#else
static void sum(Tile *tile, Tables *tables, size_t stride, size_t batch, size_t blocks)
{
    for (size_t b = 0; b < batch; b++, tables += stride)
        for (size_t block = 0; block < blocks; block++)
            for (size_t r = 0; r < ROWS; r++) {
                uint32_t added = tile->added[block][r], subtracted = tile->subtracted[block][r];
                float of_block = 0;
                for (size_t group = 0; group < GROUPS; group++) {
                    const float *sums = tables[block][group];
                    of_block += sums[added % SUBSETS] - sums[subtracted % SUBSETS];
                    added /= SUBSETS;
                    subtracted /= SUBSETS;
                }
                tile->sums[b][r] += of_block;
            }
}
#endif

#ifdef HAVE_X86
AVX512 static ALWAYS_INLINE void sum_inputs_avx512(Tile *tile, size_t first, size_t count,
                                                   Tables *tables, size_t stride, size_t blocks)
{
    __m512 totals[4], of_block[4];
    for (size_t b = 0; b < count; b++)
        totals[b] = _mm512_loadu_ps(tile->sums[first + b]);
    for (size_t block = 0; block < blocks; block++) {
        __m512i added = _mm512_loadu_si512(tile->added[block]);
        __m512i subtracted = _mm512_loadu_si512(tile->subtracted[block]);
        for (size_t b = 0; b < count; b++)
            of_block[b] = _mm512_setzero_ps();
        for (size_t group = 0; group < GROUPS; group++) {
            for (size_t b = 0; b < count; b++) {
                const float *sums = tables[(first + b) * stride + block][group];
                /* Twice, since an index has four bits here, the fourth of which is of the next group. */
                __m512 table = _mm512_castpd_ps(
                    _mm512_broadcast_f64x4(_mm256_loadu_pd((const double *)sums)));
                of_block[b] = _mm512_add_ps(
                    of_block[b], _mm512_sub_ps(_mm512_permutexvar_ps(added, table),
                                               _mm512_permutexvar_ps(subtracted, table)));
            }
            added = _mm512_srli_epi32(added, 3);
            subtracted = _mm512_srli_epi32(subtracted, 3);
        }
        for (size_t b = 0; b < count; b++)
            totals[b] = _mm512_add_ps(totals[b], of_block[b]);
    }
    for (size_t b = 0; b < count; b++)
        _mm512_storeu_ps(tile->sums[first + b], totals[b]);
}

AVX512 static void sum_avx512(Tile *tile, Tables *tables, size_t stride, size_t batch, size_t blocks)
{
    size_t b = 0;
    for (; batch - b >= 4; b += 4)
        sum_inputs_avx512(tile, b, 4, tables, stride, blocks);
    for (; batch - b >= 2; b += 2)
        sum_inputs_avx512(tile, b, 2, tables, stride, blocks);
    if (b < batch)
        sum_inputs_avx512(tile, b, 1, tables, stride, blocks);
}

AVX2 static ALWAYS_INLINE void sum_inputs_avx2(Tile *tile, size_t first, size_t count, size_t row,
                                               Tables *tables, size_t stride, size_t blocks)
{
    __m256 totals[4], of_block[4];
    for (size_t b = 0; b < count; b++)
        totals[b] = _mm256_loadu_ps(tile->sums[first + b] + row);
    for (size_t block = 0; block < blocks; block++) {
        __m256i added = _mm256_loadu_si256((const __m256i *)(tile->added[block] + row));
        __m256i subtracted = _mm256_loadu_si256((const __m256i *)(tile->subtracted[block] + row));
        for (size_t b = 0; b < count; b++)
            of_block[b] = _mm256_setzero_ps();
        for (size_t group = 0; group < GROUPS; group++) {
            for (size_t b = 0; b < count; b++) {
                __m256 table = _mm256_loadu_ps(tables[(first + b) * stride + block][group]);
                of_block[b] = _mm256_add_ps(
                    of_block[b], _mm256_sub_ps(_mm256_permutevar8x32_ps(table, added),
                                               _mm256_permutevar8x32_ps(table, subtracted)));
            }
            added = _mm256_srli_epi32(added, 3);
            subtracted = _mm256_srli_epi32(subtracted, 3);
        }
        for (size_t b = 0; b < count; b++)
            totals[b] = _mm256_add_ps(totals[b], of_block[b]);
    }
    for (size_t b = 0; b < count; b++)
        _mm256_storeu_ps(tile->sums[first + b] + row, totals[b]);
}

AVX2 static void sum_avx2(Tile *tile, Tables *tables, size_t stride, size_t batch, size_t blocks)
{
    for (size_t row = 0; row < ROWS; row += 8) {
        size_t b = 0;
        for (; batch - b >= 4; b += 4)
            sum_inputs_avx2(tile, b, 4, row, tables, stride, blocks);
        for (; b < batch; b++)
            sum_inputs_avx2(tile, b, 1, row, tables, stride, blocks);
    }
}
#endif

/* ---- Bits of weights ---- */

static void turn(RowBits rows, BlockBits blocks)
{
    for (size_t block = 0; block < BLOCKS; block++)
        for (size_t r = 0; r < ROWS; r++)
            blocks[block][r] = (uint32_t)(rows[r][block / 2] >> BLOCK * (block % 2));
}

#ifdef HAVE_X86
AVX512 static void turn_avx512(RowBits rows, BlockBits blocks)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    __m512i from[ROWS], to[ROWS];
    for (size_t r = 0; r < ROWS; r++)
        from[r] = _mm512_loadu_si512(rows[r]);
    /* To interleave the first rows with the others turns the eight bits of a place by one; after four
     * times, row and column have changed places. */
    for (int twice = 0; twice < 2; twice++) {
        for (size_t r = 0; r < ROWS / 2; r++) {
            to[2 * r] = _mm512_permutex2var_epi32(from[r], low, from[r + ROWS / 2]);
            to[2 * r + 1] = _mm512_permutex2var_epi32(from[r], high, from[r + ROWS / 2]);
        }
        for (size_t r = 0; r < ROWS / 2; r++) {
            from[2 * r] = _mm512_permutex2var_epi32(to[r], low, to[r + ROWS / 2]);
            from[2 * r + 1] = _mm512_permutex2var_epi32(to[r], high, to[r + ROWS / 2]);
        }
    }
    for (size_t block = 0; block < BLOCKS; block++)
        _mm512_storeu_si512(blocks[block], from[block]);
}

AVX2 static void turn_avx2(RowBits rows, BlockBits blocks)
{
    for (size_t row = 0; row < ROWS; row += 8)
        for (size_t block = 0; block < BLOCKS; block += 4) {
            __m256i from[4], to[4]; /* four blocks of rows r and r + 4 */
            for (size_t r = 0; r < 4; r++)
                from[r] = _mm256_loadu2_m128i((const __m128i *)(rows[row + r + 4] + block / 2),
                                              (const __m128i *)(rows[row + r] + block / 2));
            for (size_t r = 0; r < 2; r++) {
                to[2 * r] = _mm256_unpacklo_epi32(from[r], from[r + 2]);
                to[2 * r + 1] = _mm256_unpackhi_epi32(from[r], from[r + 2]);
            }
            for (size_t r = 0; r < 2; r++) {
                from[2 * r] = _mm256_unpacklo_epi32(to[r], to[r + 2]);
                from[2 * r + 1] = _mm256_unpackhi_epi32(to[r], to[r + 2]);
            }
            for (size_t i = 0; i < 4; i++)
                _mm256_storeu_si256((__m256i *)(blocks[block + i] + row), from[i]);
        }
}
#endif

static ALWAYS_INLINE void choose_of_row(const Product *all, uint64_t row, uint64_t column,
                                        size_t columns, uint64_t start, uint64_t *restrict added,
                                        uint64_t *restrict subtracted)
{
    uint64_t kept[COLUMNS / 64], positive[COLUMNS / 64], bit = row * all->shape.columns + column;
    PREFETCH(all->bits.at + (bit + ROWS * all->shape.columns) / 8); /* for the next part */
    copy_bits(kept, all->bits, bit, columns);
    if (start < all->edge_from)
        copy_bits(positive, all->signs, start + column, columns);
    else
        copy_bits(positive, (Bytes){all->edge.at, all->edge.size}, start - all->edge_from + column,
                  columns);
    for (size_t i = 0; i < (columns + 63) / 64; i++) {
        added[i] = kept[i] & positive[i];
        subtracted[i] = kept[i] & ~positive[i];
    }
}

#define CHOOSE(NAME, TARGET, TURN) \
    TARGET static void NAME(const Product *all, Tile *tile, uint64_t row, size_t rows, \
                            uint64_t column, size_t columns) \
    { \
        for (size_t r = 0; r < rows; r++) \
            if (columns == COLUMNS) /* a constant, for which compilers make vectors */ \
                choose_of_row(all, row + r, column, COLUMNS, tile->starts[r], \
                              tile->row_added[r], tile->row_subtracted[r]); \
            else \
                choose_of_row(all, row + r, column, columns, tile->starts[r], \
                              tile->row_added[r], tile->row_subtracted[r]); \
        TURN(tile->row_added, tile->added); \
        TURN(tile->row_subtracted, tile->subtracted); \
    }
CHOOSE(choose, , turn)
#ifdef HAVE_X86
CHOOSE(choose_avx2, AVX2, turn_avx2)
CHOOSE(choose_avx512, AVX512, turn_avx512)
#endif

/* ---- Rows ---- */

static void multiply_part(void *product, size_t part)
{
    const Product *all = product;
    Tile tile = {0};
    uint64_t row = (uint64_t)part * ROWS;
    size_t rows = up_to(all->shape.rows - row, ROWS), taken;
    for (size_t r = 0; r < rows; r++)
        tile.starts[r] = start_of(row + r, all->shape.columns, all->offset, all->period);
    for (size_t input = 0; input < all->shape.batch; input += INPUTS) {
        size_t batch = up_to(all->shape.batch - input, INPUTS);
        memset(tile.sums, 0, sizeof tile.sums);
        for (uint64_t column = 0; column < all->shape.columns; column += taken) {
            taken = up_to(all->shape.columns - column, COLUMNS);
            all->choose(all, &tile, row, rows, column, taken);
            all->sum(&tile, all->tables + input * all->stride + column / BLOCK, all->stride, batch,
                     (taken + BLOCK - 1) / BLOCK);
        }
        for (size_t b = 0; b < batch; b++)
            memcpy(all->out + 4 * ((input + b) * all->shape.rows + row), tile.sums[b], 4 * rows);
    }
}

/* ---- Copies ---- */

/* Sums the subsets of an input's groups. */
static void make_tables(void *product, size_t b)
{
    const Product *all = product;
    size_t columns = (size_t)all->shape.columns;
    const unsigned char *from = all->inputs + 4 * b * columns;
    Tables *tables = all->tables + b * all->stride;
    for (size_t block = 0; block < all->stride; block++, from += 4 * BLOCK) {
        float numbers[3 * GROUPS] = {0}; /* zeros for the columns that a group lacks */
        memcpy(numbers, from, 4 * smaller(BLOCK, columns - block * BLOCK));
        for (size_t group = 0; group < GROUPS; group++) {
            float *sums = tables[block][group];
            sums[0] = 0;
            for (size_t i = 0, known = 1; i < 3; i++, known *= 2) {
                float number = numbers[3 * group + i] * all->constant;
                for (size_t subset = 0; subset < known; subset++)
                    sums[known + subset] = sums[subset] + number;
            }
        }
    }
}

static void repeat_signs(const Product *all, size_t count)
{
    uint64_t at = all->edge_from;
    memset(all->edge.at, 0, all->edge.size);
    for (size_t done = 0, taken; done < count; done += taken) {
        uint64_t word = 0;
        taken = up_to(all->period - at, smaller(64, count - done));
        copy_bits(&word, all->signs, at, taken);
        unsigned shift = (unsigned)(done % 8);
        for (unsigned i = 0; 8 * i < taken + shift; i++)
            all->edge.at[done / 8 + i] |=
                (unsigned char)(i == 0 ? word << shift : word >> (8 * i - shift));
        at = at + taken == all->period ? 0 : at + taken;
    }
}

const char *signed_product(Bytes bits, Bytes signs, uint64_t period, uint64_t offset, Bytes constant,
                           uint64_t columns, Bytes inputs, Room out, uint64_t threads)
{
    Product all = {.bits = bits, .signs = signs, .inputs = inputs.at, .out = out.at,
                   .period = period, .offset = offset, .choose = BEST(choose), .sum = BEST(sum)};
    if (signs.size != period / 8 + (period % 8 != 0))
        return "signs";
    if (offset >= period)
        return "offset";
    if (constant.size != sizeof all.constant)
        return "constant";
    const char *error = find_shape(bits, columns, inputs, out, &all.shape);
    if (error != NULL)
        return error;
    memcpy(&all.constant, constant.at, sizeof all.constant);
    all.stride = ((size_t)columns + BLOCK - 1) / BLOCK;
    all.edge_from = period > columns ? period - columns : 0;
    size_t edge = (size_t)(period - all.edge_from + columns);
    size_t tables = all.shape.batch * all.stride * sizeof *all.tables;
    unsigned char *memory = malloc(tables + LINE + edge / 8 + 1);
    if (memory == NULL)
        return OUT_OF_MEMORY;
    all.tables = next_line(memory);
    all.edge = (Room){(unsigned char *)all.tables + tables, edge / 8 + 1};
    repeat_signs(&all, edge);
    run_parts(make_tables, &all, all.shape.batch, threads);
    run_parts(multiply_part, &all, (size_t)((all.shape.rows + ROWS - 1) / ROWS), threads);
    free(memory);
    return NULL;
}
