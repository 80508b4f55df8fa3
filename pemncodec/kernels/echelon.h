/* Linear algebra over GF(2): rows of bits, which are added by exclusive or. */
#ifndef PEMNCODEC_ECHELON_H
#define PEMNCODEC_ECHELON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t **rows;  /* each of `width` items */
    size_t width;
    size_t columns;   /* that rows can begin with; others may follow */
    size_t rank;      /* how many of the first rows are in echelon form */
    uint64_t *tables; /* sums of rows */
} Echelon;

/* Room for `most` rows, which the caller sets, none of them in echelon form; false without memory. Call
 * release_echelon in any case. */
bool prepare_echelon(Echelon *all, size_t most, size_t width, size_t columns);

void release_echelon(Echelon *all);

/* Brings the first `rows` rows into echelon form, of which `rank` are already. Those behind the new rank
 * are zero in the columns that rows can begin with. */
void eliminate(Echelon *all, size_t rows);

static inline void flip(uint64_t *row, size_t column)
{
    row[column / 64] ^= (uint64_t)1 << (column % 64);
}

static inline bool is_set(const uint64_t *row, size_t column)
{
    return row[column / 64] >> (column % 64) & 1;
}

static inline void add_row(uint64_t *row, const uint64_t *other, size_t width)
{
    for (size_t i = 0; i < width; i++)
        row[i] ^= other[i];
}

#endif
