/* Elimination over GF(2), by tables of sums ("method of the four Russians"). */
#include "echelon.h"

#include <stdlib.h>
#include <string.h>

#include "processor.h"
#include "words.h"

enum {
    STRIP = 32, /* columns that are eliminated together, by a table for each 8 of them */
    TABLES = STRIP / 8,
};

bool prepare_echelon(Echelon *all, size_t most, size_t width, size_t columns)
{
    *all = (Echelon){malloc(most * sizeof *all->rows), width, columns, 0, NULL};
    all->tables = malloc((size_t)TABLES * 256 * width * sizeof *all->tables);
    return all->rows != NULL && all->tables != NULL;
}

void release_echelon(Echelon *all)
{
    free(all->rows);
    free(all->tables);
}

typedef void Add(uint64_t *row, const uint64_t **others, size_t width);

/* Adds TABLES other rows. */
#define ADD_ROWS(NAME, TARGET) \
    TARGET static void NAME(uint64_t *row, const uint64_t **others, size_t width) \
    { \
        const uint64_t *a = others[0], *b = others[1], *c = others[2], *d = others[3]; \
        for (size_t i = 0; i < width; i++) \
            row[i] ^= a[i] ^ b[i] ^ c[i] ^ d[i]; \
    }
VERSIONS(ADD_ROWS, add_rows)

typedef struct {
    size_t item;              /* of rows, in which the strip is; all before are zeros */
    unsigned shift;           /* in this item */
    uint32_t found;           /* columns that a row begins with */
    uint64_t *leading[STRIP]; /* their rows, with zeros for the other ones of them */
} Strip;

static uint32_t strip_of(const Strip *strip, const uint64_t *row)
{
    return (uint32_t)(row[strip->item] >> strip->shift);
}

/* What is left of a row's strip once the rows that were found have been added. */
static uint32_t reduced(const Strip *strip, const uint64_t *row)
{
    uint32_t bits = strip_of(strip, row), left = bits;
    for (uint32_t known = bits & strip->found; known != 0; known &= known - 1)
        left ^= strip_of(strip, strip->leading[lowest_bit(known)]);
    return left;
}

/* Looks for a row, from `from` on, that begins with column `bit` of the strip, and makes it leading. */
static bool find_leading(Echelon *all, Strip *strip, unsigned bit, size_t from, size_t rows)
{
    size_t i = from, width = all->width - strip->item;
    while (i < rows && !(reduced(strip, all->rows[i]) >> bit & 1))
        i++;
    if (i == rows)
        return false;
    uint64_t *row = all->rows[i];
    all->rows[i] = all->rows[from];
    all->rows[from] = row;
    for (uint32_t known = strip_of(strip, row) & strip->found; known != 0; known &= known - 1)
        add_row(row + strip->item, strip->leading[lowest_bit(known)] + strip->item, width);
    for (uint32_t known = strip->found; known != 0; known &= known - 1) {
        uint64_t *other = strip->leading[lowest_bit(known)];
        if (strip_of(strip, other) >> bit & 1)
            add_row(other + strip->item, row + strip->item, width);
    }
    strip->leading[bit] = row;
    strip->found |= (uint32_t)1 << bit;
    return true;
}

/* Tables of all sums of the leading rows, for each 8 columns. */
static void make_tables(const Echelon *all, const Strip *strip)
{
    size_t width = all->width - strip->item;
    for (unsigned table = 0; table < TABLES; table++) {
        uint64_t *sums = all->tables + (size_t)table * 256 * width;
        memset(sums, 0, 8 * width);
        for (unsigned value = 1; value < 256; value++) {
            unsigned bit = 8 * table + lowest_bit(value);
            memcpy(sums + value * width, sums + (value & (value - 1)) * width, 8 * width);
            if (strip->found >> bit & 1)
                add_row(sums + value * width, strip->leading[bit] + strip->item, width);
        }
    }
}

void eliminate(Echelon *all, size_t rows)
{
    size_t done = 0;
    Add *add = BEST(add_rows);
    for (size_t first = 0; first < all->columns; first += STRIP) {
        Strip strip = {first / 64, first % 64, 0, {NULL}};
        size_t width = all->width - strip.item;
        for (unsigned bit = 0; bit < STRIP && first + bit < all->columns; bit++)
            done += find_leading(all, &strip, bit, done, rows);
        make_tables(all, &strip);
        for (size_t i = done; i < rows; i++) {
            uint32_t bits = strip_of(&strip, all->rows[i]) & strip.found;
            const uint64_t *sums[TABLES];
            if (bits == 0)
                continue;
            for (unsigned table = 0; table < TABLES; table++)
                sums[table] = all->tables + (table * 256 + (bits >> 8 * table & 255)) * width;
            add(all->rows[i] + strip.item, sums, width);
        }
    }
    all->rank = done;
}
