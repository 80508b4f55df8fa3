/* Products of inputs and masked weights, from the mask's bits. */
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "kernels.h"
#include "parallel.h"
#include "processor.h"
#include "product.h"
#include "words.h"

enum {
    LANES = 16,     /* sums of a row that are kept apart */
    ROWS = 4,       /* computed together, so that inputs are loaded once for all of them */
    INPUTS = 16,    /* likewise */
    COLUMNS = 1024, /* whose inputs stay in the nearest cache meanwhile */
};

typedef struct {
    Bytes bits;
    const unsigned char *values; /* float */
    float *edge;                 /* values from `edge_from` on, again and again: a row that would go on
                                    with the first value is here without a gap */
    float *inputs;               /* each of `stride`, a multiple of LANES: zeros follow the columns */
    unsigned char *out;          /* float */
    Shape shape;
    uint64_t period, offset, edge_from;
    size_t stride;
} Product;

typedef struct {
    float sums[INPUTS][ROWS][LANES];
    uint64_t masks[ROWS][COLUMNS / 64];
    const unsigned char *weights[ROWS]; /* float, of the column where the masks begin */
} Tile;

typedef void Multiply(Tile *tile, const float *inputs, size_t stride, size_t batch, size_t steps);

/* Adds the products of so many times LANES columns. */
static void multiply(Tile *tile, const float *inputs, size_t stride, size_t batch, size_t steps)
{
    float weights[LANES];
    for (size_t r = 0; r < ROWS; r++)
        for (size_t step = 0; step < steps; step++) {
            uint64_t mask = tile->masks[r][step / 4] >> LANES * (step % 4);
            uint32_t words[LANES];
            memcpy(words, tile->weights[r] + step * sizeof words, sizeof words);
            for (size_t i = 0; i < LANES; i++)
                words[i] &= kept_words[mask >> i / 8 * 8 & 255][i % 8];
            memcpy(weights, words, sizeof weights);
            for (size_t b = 0; b < batch; b++) {
                const float *numbers = inputs + b * stride + step * LANES;
                for (size_t i = 0; i < LANES; i++)
                    tile->sums[b][r][i] += numbers[i] * weights[i];
            }
        }
}

/* Where the weights of a row are, not masked. */
static const unsigned char *weights_of(const Product *all, uint64_t row)
{
    uint64_t start = start_of(row, all->shape.columns, all->offset, all->period);
    return start < all->edge_from ? all->values + 4 * start
                                  : (const unsigned char *)(all->edge + (start - all->edge_from));
}

static float sum_of_lanes(float *lanes)
{
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[half + i];
    return lanes[0];
}

/* Computes ROWS rows for INPUTS inputs, or as many as there are. */
static void multiply_tile(const Product *all, uint64_t row, size_t input)
{
    Tile tile = {0};
    size_t rows = (size_t)(all->shape.rows - row < ROWS ? all->shape.rows - row : ROWS);
    size_t batch = smaller(INPUTS, all->shape.batch - input), taken;
    for (uint64_t column = 0; column < all->shape.columns; column += taken) {
        taken = (size_t)(all->shape.columns - column < COLUMNS ? all->shape.columns - column : COLUMNS);
        for (size_t r = 0; r < ROWS; r++) /* those behind the last have masks of zeros */
            tile.weights[r] = weights_of(all, row + (r < rows ? r : 0)) + 4 * column;
        for (size_t r = 0; r < rows; r++)
            copy_bits(tile.masks[r], all->bits, (row + r) * all->shape.columns + column, taken);
        multiply(&tile, all->inputs + input * all->stride + column, all->stride, batch,
                 (taken + LANES - 1) / LANES);
    }
    for (size_t b = 0; b < batch; b++)
        for (size_t r = 0; r < rows; r++) {
            float sum = sum_of_lanes(tile.sums[b][r]);
            memcpy(all->out + 4 * ((input + b) * all->shape.rows + row + r), &sum, sizeof sum);
        }
}

static void multiply_part(void *product, size_t part)
{
    const Product *all = product;
    for (size_t input = 0; input < all->shape.batch; input += INPUTS)
        multiply_tile(all, (uint64_t)part * ROWS, input);
}

/* Copies inputs, with zeros behind each. */
static void pad_inputs(const Product *all, const unsigned char *inputs)
{
    size_t columns = (size_t)all->shape.columns;
    for (size_t b = 0; b < all->shape.batch; b++) {
        memcpy(all->inputs + b * all->stride, inputs + 4 * b * columns, 4 * columns);
        memset(all->inputs + b * all->stride + columns, 0, 4 * (all->stride - columns));
    }
}

static void repeat_values(const Product *all, size_t size)
{
    uint64_t at = all->edge_from, taken;
    for (size_t done = 0; done < size; done += (size_t)taken, at = 0) {
        taken = all->period - at < size - done ? all->period - at : size - done;
        memcpy(all->edge + done, all->values + 4 * at, 4 * (size_t)taken);
    }
}

const char *packed_product(Bytes bits, Bytes values, uint64_t offset, uint64_t columns, Bytes inputs,
                           Room out, uint64_t threads)
{
    Product all = {.bits = bits, .values = values.at, .out = out.at, .period = values.size / 4,
                   .offset = offset};
    if (all.period == 0 || values.size % 4 != 0)
        return "values";
    if (offset >= all.period)
        return "offset";
    const char *error = find_shape(bits, columns, inputs, out, &all.shape);
    if (error != NULL)
        return error;
    all.stride = ((size_t)columns + LANES - 1) / LANES * LANES;
    /* A row takes `stride` values. */
    all.edge_from = all.period > all.stride ? all.period - all.stride : 0;
    size_t edge = (size_t)(all.period - all.edge_from) + all.stride, padded = all.shape.batch * all.stride;
    float *memory = malloc(4 * (edge + padded));
    if (memory == NULL)
        return OUT_OF_MEMORY;
    all.inputs = memory;
    all.edge = memory + padded;
    pad_inputs(&all, inputs.at);
    repeat_values(&all, edge);
    run_parts(multiply_part, &all, (size_t)((all.shape.rows + ROWS - 1) / ROWS), threads);
    free(memory);
    return NULL;
}
