/* Products of inputs and masked weights that are stored as [inputs, outputs], from the mask's bits. */
#include <string.h>

#include "bits.h"
#include "kernels.h"
#include "parallel.h"
#include "processor.h"
#include "product.h"

enum {
    BLOCK = 64, /* columns whose sums are in registers, and whose masks are a word */
    WIDTH = 512, /* columns of a part, at most: their bits of a row are a line of the cache */
    DEPTH = 64,  /* rows whose masks are taken at once */
    INPUTS = 8,  /* that share masks */
};

typedef struct {
    uint64_t masks[DEPTH][WIDTH / BLOCK];
    const unsigned char *weights[DEPTH]; /* float, before they are masked */
    float sums[INPUTS][WIDTH];
} Tile;

/* Adds the products of a block of columns, row by row. Inputs are `stride` floats apart. */
typedef void Multiply(Tile *tile, size_t block, const unsigned char *inputs, size_t stride,
                      size_t batch, size_t rows);

typedef struct {
    Bytes bits;
    const unsigned char *values, *inputs; /* float */
    unsigned char *out;                   /* float */
    float edge[2 * WIDTH]; /* values from `edge_from` on, again and again: here are the parts of rows
                              that would go on with the first value */
    Shape shape;           /* its columns are rows of the matrix, and its rows are columns */
    uint64_t period, offset, edge_from;
    size_t width; /* of a part, a multiple of BLOCK */
    Multiply *multiply;
} Product;

static float float_at(const unsigned char *floats, size_t index)
{
    float value;
    memcpy(&value, floats + 4 * index, sizeof value);
    return value;
}

/* ---- Sums ---- */

/* Compilers make vectors of it. */
static ALWAYS_INLINE void multiply_8(float *restrict sums, float input,
                                     const unsigned char *restrict weights, uint64_t mask)
{
    for (size_t i = 0; i < 8; i++) {
        uint32_t word;
        float weight;
        memcpy(&word, weights + i * sizeof word, sizeof word);
        word &= kept_words[mask & 255][i];
        memcpy(&weight, &word, sizeof weight);
        sums[i] += input * weight;
    }
}

static void multiply(Tile *tile, size_t block, const unsigned char *inputs, size_t stride,
                     size_t batch, size_t rows)
{
    for (size_t b = 0; b < batch; b++)
        for (size_t column = 0; column < BLOCK; column += 16) {
            float lower[8], upper[8]; /* two arrays, which stay in registers */
            float *sums = tile->sums[b] + block * BLOCK + column;
            memcpy(lower, sums, sizeof lower);
            memcpy(upper, sums + 8, sizeof upper);
            for (size_t r = 0; r < rows; r++) {
                float input = float_at(inputs, b * stride + r);
                const unsigned char *weights = tile->weights[r] + 4 * (block * BLOCK + column);
                uint64_t mask = tile->masks[r][block] >> column;
                multiply_8(lower, input, weights, mask);
                multiply_8(upper, input, weights + 32, mask >> 8);
            }
            memcpy(sums, lower, sizeof lower);
            memcpy(sums + 8, upper, sizeof upper);
        }
}

#ifdef HAVE_X86
/* Multiplies `count` inputs, as many as there are registers for. */
AVX512 static ALWAYS_INLINE void multiply_inputs_avx512(Tile *tile, size_t block, size_t first,
                                                        size_t count, const unsigned char *inputs,
                                                        size_t stride, size_t rows)
{
    enum { VECTORS = BLOCK / 16 };
    __m512 sums[4][VECTORS];
    for (size_t b = 0; b < count; b++)
        for (size_t v = 0; v < VECTORS; v++)
            sums[b][v] = _mm512_loadu_ps(tile->sums[first + b] + block * BLOCK + 16 * v);
    for (size_t r = 0; r < rows; r++) {
        const unsigned char *from = tile->weights[r] + 4 * block * BLOCK;
        __m512 weights[VECTORS];
        for (size_t v = 0; v < VECTORS; v++)
            weights[v] = _mm512_maskz_loadu_ps((__mmask16)(tile->masks[r][block] >> 16 * v),
                                               from + 64 * v);
        for (size_t b = 0; b < count; b++) {
            __m512 input = _mm512_set1_ps(float_at(inputs, (first + b) * stride + r));
            for (size_t v = 0; v < VECTORS; v++)
                sums[b][v] = _mm512_add_ps(sums[b][v], _mm512_mul_ps(input, weights[v]));
        }
    }
    for (size_t b = 0; b < count; b++)
        for (size_t v = 0; v < VECTORS; v++)
            _mm512_storeu_ps(tile->sums[first + b] + block * BLOCK + 16 * v, sums[b][v]);
}

AVX512 static void multiply_avx512(Tile *tile, size_t block, const unsigned char *inputs,
                                   size_t stride, size_t batch, size_t rows)
{
    size_t b = 0;
    for (; batch - b >= 4; b += 4)
        multiply_inputs_avx512(tile, block, b, 4, inputs, stride, rows);
    for (; batch - b >= 2; b += 2)
        multiply_inputs_avx512(tile, block, b, 2, inputs, stride, rows);
    if (b < batch)
        multiply_inputs_avx512(tile, block, b, 1, inputs, stride, rows);
}

/* As above, for half of a block. */
AVX2 static ALWAYS_INLINE void multiply_half_avx2(Tile *tile, size_t half, size_t first, size_t count,
                                                  const unsigned char *inputs, size_t stride,
                                                  size_t rows)
{
    enum { VECTORS = BLOCK / 16 };
    __m256 sums[2][VECTORS];
    for (size_t b = 0; b < count; b++)
        for (size_t v = 0; v < VECTORS; v++)
            sums[b][v] = _mm256_loadu_ps(tile->sums[first + b] + half * BLOCK / 2 + 8 * v);
    for (size_t r = 0; r < rows; r++) {
        const float *from = (const float *)(tile->weights[r] + 2 * half * BLOCK);
        uint64_t mask = tile->masks[r][half / 2] >> BLOCK / 2 * (half % 2);
        __m256 weights[VECTORS];
        for (size_t v = 0; v < VECTORS; v++)
            weights[v] = _mm256_and_ps(
                _mm256_loadu_ps(from + 8 * v),
                _mm256_loadu_ps((const float *)kept_words[mask >> 8 * v & 255]));
        for (size_t b = 0; b < count; b++) {
            __m256 input = _mm256_set1_ps(float_at(inputs, (first + b) * stride + r));
            for (size_t v = 0; v < VECTORS; v++)
                sums[b][v] = _mm256_add_ps(sums[b][v], _mm256_mul_ps(input, weights[v]));
        }
    }
    for (size_t b = 0; b < count; b++)
        for (size_t v = 0; v < VECTORS; v++)
            _mm256_storeu_ps(tile->sums[first + b] + half * BLOCK / 2 + 8 * v, sums[b][v]);
}

AVX2 static void multiply_avx2(Tile *tile, size_t block, const unsigned char *inputs, size_t stride,
                               size_t batch, size_t rows)
{
    for (size_t half = 2 * block; half < 2 * block + 2; half++) {
        size_t b = 0;
        for (; batch - b >= 2; b += 2)
            multiply_half_avx2(tile, half, b, 2, inputs, stride, rows);
        if (b < batch)
            multiply_half_avx2(tile, half, b, 1, inputs, stride, rows);
    }
}
#endif

/* ---- Columns ---- */

/* Finds masks and values of some columns, of rows from `row` on, and fetches the masks that come next. */
static void take_rows(const Product *all, Tile *tile, uint64_t row, size_t rows, uint64_t column,
                      size_t columns)
{
    for (size_t r = 0; r < rows; r++) {
        uint64_t first = (row + r) * all->shape.rows + column;
        PREFETCH(all->bits.at + (first + DEPTH * all->shape.rows) / 8); /* perhaps of nothing */
        copy_bits(tile->masks[r], all->bits, first, columns);
        uint64_t start = start_of(first, 1, all->offset, all->period);
        tile->weights[r] = start < all->edge_from
                               ? all->values + 4 * start
                               : (const unsigned char *)(all->edge + (start - all->edge_from));
    }
}

static void multiply_part(void *product, size_t part)
{
    const Product *all = product;
    Tile tile;
    uint64_t column = (uint64_t)part * all->width, depth = all->shape.columns;
    size_t columns = up_to(all->shape.rows - column, all->width), rows;
    for (size_t input = 0; input < all->shape.batch; input += INPUTS) {
        size_t batch = up_to(all->shape.batch - input, INPUTS);
        memset(tile.sums, 0, batch * sizeof *tile.sums);
        for (uint64_t row = 0; row < depth; row += rows) {
            rows = up_to(depth - row, DEPTH);
            take_rows(all, &tile, row, rows, column, columns);
            for (size_t block = 0; block * BLOCK < columns; block++)
                all->multiply(&tile, block, all->inputs + 4 * (input * depth + row), depth, batch,
                              rows);
        }
        for (size_t b = 0; b < batch; b++)
            memcpy(all->out + 4 * ((input + b) * all->shape.rows + column), tile.sums[b], 4 * columns);
    }
}

const char *column_product(Bytes bits, Bytes values, uint64_t offset, uint64_t rows, Bytes inputs,
                           Room out, uint64_t threads)
{
    Product all = {.bits = bits, .values = values.at, .inputs = inputs.at, .out = out.at,
                   .period = values.size / 4, .offset = offset, .multiply = BEST(multiply)};
    if (all.period == 0 || values.size % 4 != 0)
        return "values";
    if (offset >= all.period)
        return "offset";
    const char *error = find_shape(bits, rows, inputs, out, &all.shape);
    if (error != NULL)
        return error;
    all.edge_from = all.period > WIDTH ? all.period - WIDTH : 0;
    copy_repeated(all.edge, all.values, all.period, all.edge_from, 2 * WIDTH);
    /* As many parts as threads, if they are narrow enough. */
    uint64_t share = all.shape.rows / threads + 1;
    all.width = (up_to(share, WIDTH) + BLOCK - 1) / BLOCK * BLOCK;
    run_parts(multiply_part, &all, (size_t)((all.shape.rows + all.width - 1) / all.width), threads);
    return NULL;
}
