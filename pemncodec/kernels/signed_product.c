/* Products of inputs and weights of one magnitude, from bits. */
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "kernels.h"
#include "parallel.h"
#include "processor.h"
#include "product.h"
#include "words.h"

enum {
    BLOCK = 32,    /* columns that are summed together */
    GROUPS = 11,   /* in a block, of 3 columns, the last of 2 */
    SUBSETS = 8,   /* of a group, each with a sum */
    ROWS = 16,     /* computed together, so that they share tables */
    COLUMNS = 512, /* whose tables stay in the nearest cache meanwhile */
};

typedef float Tables[GROUPS][SUBSETS]; /* of a block: the sum of each group's subsets */

typedef struct {
    Bytes bits;
    const unsigned char *signs;
    unsigned char *edge; /* signs from `edge_from` on, again and again, so that a row has no gap */
    size_t edge_size;
    Tables *tables;           /* a row for each input */
    const unsigned char *inputs; /* float */
    float constant;
    unsigned char *out; /* float */
    Shape shape;
    uint64_t period, offset, edge_from;
    size_t blocks; /* of a row */
} Product;

typedef struct {
    float sums[ROWS];
    uint32_t added[COLUMNS / BLOCK][ROWS], subtracted[COLUMNS / BLOCK][ROWS];
} Tile;

typedef void Sum(Tile *tile, Tables *tables, size_t blocks);

static void sum(Tile *tile, Tables *tables, size_t blocks)
{
    for (size_t block = 0; block < blocks; block++)
        for (size_t r = 0; r < ROWS; r++) {
            uint32_t added = tile->added[block][r], subtracted = tile->subtracted[block][r];
            float total = tables[block][0][added % 8] - tables[block][0][subtracted % 8];
            for (size_t group = 1; group < GROUPS; group++) {
                added /= 8, subtracted /= 8;
                total += tables[block][group][added % 8] - tables[block][group][subtracted % 8];
            }
            tile->sums[r] += total;
        }
}

/* Finds which weights are added and which are subtracted, of COLUMNS or fewer. */
static void choose(const Product *all, Tile *tile, uint64_t row, uint64_t column, size_t rows,
                   size_t columns)
{
    uint64_t kept[COLUMNS / 64], positive[COLUMNS / 64];
    for (size_t r = 0; r < rows; r++) {
        uint64_t start = start_of(row + r, all->shape.columns, all->offset, all->period) + column;
        Bytes signs = {all->signs, (size_t)((all->period + 7) / 8)};
        if (start - column >= all->edge_from) {
            signs = (Bytes){all->edge, all->edge_size};
            start -= all->edge_from;
        }
        copy_bits(kept, all->bits, (row + r) * all->shape.columns + column, columns);
        copy_bits(positive, signs, start, columns);
        for (size_t block = 0; block < (columns + BLOCK - 1) / BLOCK; block++) {
            unsigned shift = BLOCK * (block % 2);
            tile->added[block][r] = (uint32_t)((kept[block / 2] & positive[block / 2]) >> shift);
            tile->subtracted[block][r] = (uint32_t)((kept[block / 2] & ~positive[block / 2]) >> shift);
        }
    }
}

static void multiply_part(void *product, size_t part)
{
    const Product *all = product;
    uint64_t row = (uint64_t)part * ROWS;
    size_t rows = (size_t)(all->shape.rows - row < ROWS ? all->shape.rows - row : ROWS), taken;
    for (size_t b = 0; b < all->shape.batch; b++) {
        Tile tile = {0};
        Tables *tables = all->tables + b * all->blocks;
        for (uint64_t column = 0; column < all->shape.columns; column += taken) {
            taken = (size_t)(all->shape.columns - column < COLUMNS ? all->shape.columns - column
                                                                   : COLUMNS);
            choose(all, &tile, row, column, rows, taken);
            sum(&tile, tables + column / BLOCK, (taken + BLOCK - 1) / BLOCK);
        }
        memcpy(all->out + 4 * (b * all->shape.rows + row), tile.sums, 4 * rows);
    }
}

/* Sums the subsets of all groups of an input. */
static void make_tables(void *product, size_t b)
{
    const Product *all = product;
    size_t columns = (size_t)all->shape.columns;
    const unsigned char *from = all->inputs + 4 * b * columns;
    for (size_t block = 0; block < all->blocks; block++, from += 4 * BLOCK) {
        float numbers[3 * GROUPS] = {0}; /* zeros for the columns that a group or a block lacks */
        memcpy(numbers, from, 4 * smaller(BLOCK, columns - block * BLOCK));
        for (size_t group = 0; group < GROUPS; group++) {
            float *sums = all->tables[b * all->blocks + block][group];
            for (size_t subset = 0; subset < SUBSETS; subset++)
                sums[subset] = 0;
            for (size_t i = 0; i < 3; i++) {
                float number = numbers[3 * group + i] * all->constant;
                for (size_t subset = 0; subset < SUBSETS; subset++)
                    sums[subset] += subset >> i & 1 ? number : 0;
            }
        }
    }
}

/* Copies signs from `edge_from` on, a multiple of 8. */
static void repeat_signs(const Product *all, size_t count)
{
    Bytes signs = {all->signs, (size_t)((all->period + 7) / 8)};
    uint64_t at = all->edge_from, taken;
    memset(all->edge, 0, all->edge_size);
    for (size_t done = 0; done < count; done += (size_t)taken, at += taken) {
        uint64_t word;
        at = at == all->period ? 0 : at;
        taken = smaller(64, count - done);
        taken = all->period - at < taken ? all->period - at : taken;
        copy_bits(&word, signs, at, (size_t)taken);
        for (size_t bit = 0; bit < taken; bit++)
            all->edge[(done + bit) / 8] |= (unsigned char)((word >> bit & 1) << (done + bit) % 8);
    }
}

const char *signed_product(Bytes bits, Bytes signs, uint64_t period, uint64_t offset, Bytes constant,
                           uint64_t columns, Bytes inputs, Room out, uint64_t threads)
{
    Product all = {.bits = bits, .signs = signs.at, .inputs = inputs.at, .out = out.at,
                   .period = period, .offset = offset};
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
    all.blocks = ((size_t)columns + BLOCK - 1) / BLOCK;
    all.edge_from = period > columns ? (period - columns) / 8 * 8 : 0;
    size_t edge = (size_t)(period - all.edge_from + columns), tables = all.shape.batch * all.blocks;
    all.edge_size = edge / 8 + 1;
    unsigned char *memory = malloc(tables * sizeof *all.tables + all.edge_size);
    if (memory == NULL)
        return OUT_OF_MEMORY;
    all.tables = (Tables *)memory;
    all.edge = memory + tables * sizeof *all.tables;
    repeat_signs(&all, edge);
    run_parts(make_tables, &all, all.shape.batch, threads);
    run_parts(multiply_part, &all, (size_t)((all.shape.rows + ROWS - 1) / ROWS), threads);
    free(memory);
    return NULL;
}
