/* Products of inputs and masked weights, from the mask's bits. */
#include "product.h"

#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "kernels.h"
#include "parallel.h"
#include "processor.h"

enum {
    LANES = 16,     /* sums of a row that are kept apart */
    ROWS = 8,       /* of a part, which share inputs */
    INPUTS = 16,    /* that share masks */
    COLUMNS = 1024, /* whose inputs and values stay in the nearest cache meanwhile */
};

typedef struct {
    const unsigned char *weights[ROWS]; /* float, before they are masked */
    uint64_t masks[ROWS][COLUMNS / 64];
    float sums[INPUTS][ROWS][LANES];
} Tile;

/* Adds the products of so many times LANES columns. Inputs are `stride` apart. */
typedef void Multiply(Tile *tile, const float *inputs, size_t stride, size_t batch, size_t steps);

typedef struct {
    Bytes bits;
    const unsigned char *values; /* float */
    float *edge;                 /* values from `edge_from` on, again and again: here are the rows that
                                    would go on with the first value */
    float *inputs;               /* with zeros behind the last column */
    unsigned char *out;          /* float */
    Shape shape;
    uint64_t period, offset, edge_from;
    size_t stride; /* a multiple of LANES */
    Multiply *multiply;
} Product;

/* ---- Sums ---- */

/* Compilers make vectors of it. */
static ALWAYS_INLINE void multiply_8(float *restrict sums, const float *restrict inputs,
                                     const unsigned char *restrict weights, uint64_t mask)
{
    for (size_t i = 0; i < 8; i++) {
        uint32_t word;
        float weight;
        memcpy(&word, weights + i * sizeof word, sizeof word);
        word &= kept_words[mask & 255][i];
        memcpy(&weight, &word, sizeof weight);
        sums[i] += inputs[i] * weight;
    }
}

static void multiply(Tile *tile, const float *inputs, size_t stride, size_t batch, size_t steps)
{
    for (size_t b = 0; b < batch; b++, inputs += stride)
        for (size_t r = 0; r < ROWS; r++) {
            float lower[LANES / 2], upper[LANES / 2]; /* two arrays, which stay in registers */
            memcpy(lower, tile->sums[b][r], sizeof lower);
            memcpy(upper, tile->sums[b][r] + LANES / 2, sizeof upper);
            for (size_t step = 0; step < steps; step++) {
                const float *numbers = inputs + step * LANES;
                const unsigned char *weights = tile->weights[r] + 4 * step * LANES;
                uint64_t mask = tile->masks[r][step / 4] >> LANES * (step % 4);
                multiply_8(lower, numbers, weights, mask);
                multiply_8(upper, numbers + LANES / 2, weights + 2 * LANES, mask >> LANES / 2);
            }
            memcpy(tile->sums[b][r], lower, sizeof lower);
            memcpy(tile->sums[b][r] + LANES / 2, upper, sizeof upper);
        }
}

#ifdef HAVE_X86
/* Multiplies `count` inputs by `rows` rows, as many as there are registers for. */
AVX512 static ALWAYS_INLINE void multiply_inputs_avx512(Tile *tile, size_t first, size_t count,
                                                        size_t row, size_t rows, const float *inputs,
                                                        size_t stride, size_t steps)
{
    __m512 sums[4][ROWS];
    for (size_t b = 0; b < count; b++)
        for (size_t r = 0; r < rows; r++)
            sums[b][r] = _mm512_loadu_ps(tile->sums[first + b][row + r]);
    for (size_t step = 0; step < steps; step++) {
        __m512 weights[ROWS];
        for (size_t r = 0; r < rows; r++) {
            uint16_t mask;
            memcpy(&mask, (const char *)tile->masks[row + r] + step * sizeof mask, sizeof mask);
            weights[r] = _mm512_maskz_loadu_ps(mask, tile->weights[row + r] + 4 * step * LANES);
        }
        for (size_t b = 0; b < count; b++) {
            __m512 numbers = _mm512_loadu_ps(inputs + (first + b) * stride + step * LANES);
            for (size_t r = 0; r < rows; r++)
                sums[b][r] = _mm512_add_ps(sums[b][r], _mm512_mul_ps(numbers, weights[r]));
        }
    }
    for (size_t b = 0; b < count; b++)
        for (size_t r = 0; r < rows; r++)
            _mm512_storeu_ps(tile->sums[first + b][row + r], sums[b][r]);
}

AVX512 static void multiply_avx512(Tile *tile, const float *inputs, size_t stride, size_t batch,
                                   size_t steps)
{
    size_t b = 0;
    for (; batch - b >= 4; b += 4)
        for (size_t row = 0; row < ROWS; row += 4)
            multiply_inputs_avx512(tile, b, 4, row, 4, inputs, stride, steps);
    for (; batch - b >= 2; b += 2)
        multiply_inputs_avx512(tile, b, 2, 0, ROWS, inputs, stride, steps);
    if (b < batch)
        multiply_inputs_avx512(tile, b, 1, 0, ROWS, inputs, stride, steps);
}

/* As above, for the lower or the upper half of the lanes. */
AVX2 static ALWAYS_INLINE void multiply_half_avx2(Tile *tile, size_t half, size_t first, size_t count,
                                                  size_t row, size_t rows, const float *inputs,
                                                  size_t stride, size_t steps)
{
    __m256 sums[4][ROWS];
    for (size_t b = 0; b < count; b++)
        for (size_t r = 0; r < rows; r++)
            sums[b][r] = _mm256_loadu_ps(tile->sums[first + b][row + r] + 8 * half);
    for (size_t step = half; step < 2 * steps; step += 2) {
        __m256 weights[ROWS];
        for (size_t r = 0; r < rows; r++) {
            unsigned char mask = ((const unsigned char *)tile->masks[row + r])[step];
            weights[r] = _mm256_and_ps(
                _mm256_loadu_ps((const float *)(tile->weights[row + r] + 4 * 8 * step)),
                _mm256_loadu_ps((const float *)kept_words[mask]));
        }
        for (size_t b = 0; b < count; b++) {
            __m256 numbers = _mm256_loadu_ps(inputs + (first + b) * stride + 8 * step);
            for (size_t r = 0; r < rows; r++)
                sums[b][r] = _mm256_add_ps(sums[b][r], _mm256_mul_ps(numbers, weights[r]));
        }
    }
    for (size_t b = 0; b < count; b++)
        for (size_t r = 0; r < rows; r++)
            _mm256_storeu_ps(tile->sums[first + b][row + r] + 8 * half, sums[b][r]);
}

AVX2 static void multiply_avx2(Tile *tile, const float *inputs, size_t stride, size_t batch,
                               size_t steps)
{
    for (size_t half = 0; half < 2; half++) {
        size_t b = 0;
        for (; batch - b >= 4; b += 4)
            for (size_t row = 0; row < ROWS; row += 2)
                multiply_half_avx2(tile, half, b, 4, row, 2, inputs, stride, steps);
        for (; batch - b >= 2; b += 2)
            for (size_t row = 0; row < ROWS; row += 4)
                multiply_half_avx2(tile, half, b, 2, row, 4, inputs, stride, steps);
        if (b < batch)
            multiply_half_avx2(tile, half, b, 1, 0, ROWS, inputs, stride, steps);
    }
}
#endif

static float sum_of_lanes(float *lanes)
{
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[half + i];
    return lanes[0];
}

/* ---- Rows ---- */

static const unsigned char *weights_of(const Product *all, uint64_t row)
{
    uint64_t start = start_of(row, all->shape.columns, all->offset, all->period);
    if (start < all->edge_from)
        return all->values + 4 * start;
    return (const unsigned char *)(all->edge + (start - all->edge_from));
}

/* Copies the masks of some columns, and fetches those of the rows that come next. */
static void copy_masks(const Product *all, Tile *tile, uint64_t row, size_t rows, uint64_t column,
                       size_t columns)
{
    for (size_t r = 0; r < rows; r++) {
        uint64_t start = (row + r) * all->shape.columns + column;
        const unsigned char *next = all->bits.at + (start + ROWS * all->shape.columns) / 8;
        for (size_t byte = 0; byte < columns / 8; byte += LINE)
            PREFETCH(next + byte); /* perhaps of nothing, which is no error */
        copy_bits(tile->masks[r], all->bits, start, columns);
    }
}

static void multiply_part(void *product, size_t part)
{
    const Product *all = product;
    Tile tile;
    uint64_t row = (uint64_t)part * ROWS;
    size_t rows = up_to(all->shape.rows - row, ROWS), taken;
    if (rows < ROWS) /* those that are not there have no bits */
        memset(tile.masks, 0, sizeof tile.masks);
    for (size_t input = 0; input < all->shape.batch; input += INPUTS) {
        size_t batch = up_to(all->shape.batch - input, INPUTS);
        memset(tile.sums, 0, batch * sizeof *tile.sums);
        for (size_t r = 0; r < ROWS; r++)
            tile.weights[r] = weights_of(all, row + (r < rows ? r : 0));
        for (uint64_t column = 0; column < all->shape.columns; column += taken) {
            taken = up_to(all->shape.columns - column, COLUMNS);
            copy_masks(all, &tile, row, rows, column, taken);
            all->multiply(&tile, all->inputs + input * all->stride + column, all->stride, batch,
                          (taken + LANES - 1) / LANES);
            for (size_t r = 0; r < ROWS; r++)
                tile.weights[r] += 4 * taken;
        }
        for (size_t b = 0; b < batch; b++)
            for (size_t r = 0; r < rows; r++) {
                float sum = sum_of_lanes(tile.sums[b][r]);
                memcpy(all->out + 4 * ((input + b) * all->shape.rows + row + r), &sum, sizeof sum);
            }
    }
}

/* ---- Copies ---- */

static void pad_inputs(const Product *all, const unsigned char *inputs)
{
    size_t columns = (size_t)all->shape.columns;
    for (size_t b = 0; b < all->shape.batch; b++) {
        memcpy(all->inputs + b * all->stride, inputs + 4 * b * columns, 4 * columns);
        memset(all->inputs + b * all->stride + columns, 0, 4 * (all->stride - columns));
    }
}

const char *packed_product(Bytes bits, Bytes values, uint64_t offset, uint64_t columns, Bytes inputs,
                           Room out, uint64_t threads)
{
    Product all = {.bits = bits, .values = values.at, .out = out.at, .period = values.size / 4,
                   .offset = offset, .multiply = BEST(multiply)};
    if (all.period == 0 || values.size % 4 != 0)
        return "values";
    if (offset >= all.period)
        return "offset";
    const char *error = find_shape(bits, columns, inputs, out, &all.shape);
    if (error != NULL)
        return error;
    all.stride = ((size_t)columns + LANES - 1) / LANES * LANES;
    /* A row reads `stride` values, some of them under no bit. */
    all.edge_from = all.period > all.stride ? all.period - all.stride : 0;
    size_t padded = all.shape.batch * all.stride;
    size_t edge = (size_t)(all.period - all.edge_from) + all.stride;
    float *memory = malloc(4 * (padded + edge) + LINE);
    if (memory == NULL)
        return OUT_OF_MEMORY;
    all.inputs = next_line(memory);
    all.edge = all.inputs + padded;
    pad_inputs(&all, inputs.at);
    copy_repeated(all.edge, all.values, all.period, all.edge_from, edge);
    run_parts(multiply_part, &all, (size_t)((all.shape.rows + ROWS - 1) / ROWS), threads);
    free(memory);
    return NULL;
}
