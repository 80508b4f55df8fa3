/* What products of inputs and masked matrices have in common: sizes, places, memory. */
#ifndef PEMNCODEC_PRODUCT_H
#define PEMNCODEC_PRODUCT_H

#include <string.h>

#include "kernels.h"

enum {
    LINE = 64, /* bytes; loads of vectors that begin with a line of the cache are the fastest */
};

typedef struct {
    uint64_t columns, rows;
    size_t batch;
} Shape;

static inline size_t up_to(uint64_t left, size_t most) { return left < most ? (size_t)left : most; }

/* Finds how many inputs and rows there are, or what does not fit. */
static inline const char *find_shape(Bytes bits, uint64_t columns, Bytes inputs, Room out,
                                     Shape *shape)
{
    if (columns > inputs.size / 4 || inputs.size % (4 * columns) != 0) /* there is a column */
        return "inputs";
    shape->columns = columns;
    shape->batch = inputs.size / (4 * (size_t)columns);
    if (out.size % 4 != 0 || out.size / 4 % shape->batch != 0)
        return "out";
    shape->rows = out.size / 4 / shape->batch;
    /* Divided, not multiplied, which might overflow. */
    if (shape->rows > 0 && columns > UINT64_MAX / shape->rows)
        return "bits";
    uint64_t count = columns * shape->rows;
    return bits.size == count / 8 + (count % 8 != 0) ? NULL : "bits";
}

/* Where the values of a row begin, of values that repeat. */
static inline uint64_t start_of(uint64_t row, uint64_t columns, uint64_t offset, uint64_t period)
{
    uint64_t start = row * columns % period;
    return start < period - offset ? offset + start : start - (period - offset);
}

/* Copies `count` floats from `at` on, of values that repeat. */
static inline void copy_repeated(float *to, const unsigned char *values, uint64_t period, uint64_t at,
                                 size_t count)
{
    for (size_t done = 0, taken; done < count; done += taken, at = 0) {
        taken = up_to(period - at, count - done);
        memcpy(to + done, values + 4 * at, 4 * taken);
    }
}

static inline void *next_line(void *memory)
{
    return (unsigned char *)memory + (LINE - (uintptr_t)memory % LINE) % LINE;
}

#endif
