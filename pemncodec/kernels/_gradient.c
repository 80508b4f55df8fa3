/* The gradient of scores. */
#include "_native.h"

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

KERNEL(magnitude_gradient)
{
    static char *names[] = {"gradient", "values", "scores", "out", "threads", NULL};
    Py_buffer gradient = {0}, values = {0}, scores = {0}, out = {0};
    Integer threads = {"threads", 1, UINT64_MAX, 0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&O&:magnitude_gradient", names,
                                    readable, &gradient, readable, &values, readable, &scores,
                                    writable, &out, integer, &threads)) {
        Py_ssize_t size = gradient.len;
        Products all = {gradient.buf, values.buf, scores.buf, out.buf, (size_t)size / 4};
        error = size % 4 != 0 ? "gradient" : values.len != size ? "values"
                : scores.len != size ? "scores" : out.len != size ? "out" : NULL;
        Py_BEGIN_ALLOW_THREADS
        if (error == NULL) {
            Work *work = BEST(multiply_part);
            allow_large_pages(out.buf, (size_t)size);
            run_parts(work, &all, (all.count + PART - 1) / PART, threads.value);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&gradient);
    PyBuffer_Release(&values);
    PyBuffer_Release(&scores);
    PyBuffer_Release(&out);
    return outcome(error);
}
