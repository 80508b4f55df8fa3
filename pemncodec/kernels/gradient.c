/* The gradient of scores. */
#include <string.h>

#include "kernels.h"
#include "pages.h"
#include "parallel.h"
#include "processor.h"
#include "words.h"

typedef struct {
    const unsigned char *gradient, *values, *scores; /* float */
    unsigned char *out;
    size_t count;
} Products;

enum { PART = 1 << 15, ROW = 64 }; /* items */

static inline float float_at(const unsigned char *floats, size_t index)
{
    float value;
    memcpy(&value, floats + index * sizeof value, sizeof value);
    return value;
}

static ALWAYS_INLINE void multiply_row(const Products *all, size_t start, size_t size)
{
    float row[ROW];
    for (size_t i = 0; i < size; i++) {
        float score = float_at(all->scores, start + i);
        row[i] = float_at(all->gradient, start + i) * float_at(all->values, start + i);
        row[i] *= (float)((score > 0) - (score < 0));
    }
    memcpy(all->out + 4 * start, row, 4 * size);
}

#define MULTIPLY_PART(NAME, TARGET) \
    TARGET static void NAME(void *products, size_t part) \
    { \
        const Products *all = products; \
        size_t start = part * PART, end = smaller(start + PART, all->count); \
        for (; end - start >= ROW; start += ROW) \
            multiply_row(all, start, ROW); \
        multiply_row(all, start, end - start); \
    }
VERSIONS(MULTIPLY_PART, multiply_part)

const char *magnitude_gradient(Bytes gradient, Bytes values, Bytes scores, Room out,
                               uint64_t threads)
{
    size_t size = gradient.size;
    Products all = {gradient.at, values.at, scores.at, out.at, size / 4};
    Work *work = BEST(multiply_part);
    if (size % 4 != 0)
        return "gradient";
    if (values.size != size)
        return "values";
    if (scores.size != size)
        return "scores";
    if (out.size != size)
        return "out";
    allow_large_pages(out.at, size);
    run_parts(work, &all, (all.count + PART - 1) / PART, threads);
    return NULL;
}
