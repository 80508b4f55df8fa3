/* Runs (section 6.3). */
#include "_native.h"

/* Puts the run from `start` to a one, or to the end, behind `out`. */
static inline unsigned char *put_run(unsigned char *out, size_t run, size_t longest)
{
    for (; run >= longest; run -= longest)
        *out++ = (unsigned char)longest;
    *out++ = (unsigned char)run;
    return out;
}

/* Writes at most one run for each one, and one for every `longest` bits and the last. */
static size_t find_runs(const unsigned char *bits, size_t count, size_t longest, unsigned char *out)
{
    unsigned char *end = out;
    size_t start = 0;
    for (size_t at = 0; at < count; at += 64) {
        size_t left = count - at;
        uint64_t word = left >= 64 ? load64(bits + at / 8, 8) : load64(bits + at / 8, (left + 7) / 8);
        if (left < 64)
            word &= (UINT64_C(1) << left) - 1;
        for (; word != 0; word &= word - 1) {
            size_t one = at + lowest_bit(word);
            end = put_run(end, one - start, longest);
            start = one + 1;
        }
    }
    for (; start < count; start += smaller(longest, count - start))
        *end++ = (unsigned char)longest;
    return (size_t)(end - out);
}

static size_t count_ones(const unsigned char *bits, size_t size)
{
    size_t ones = 0;
    for (; size > 0; size--, bits++)
        for (unsigned byte = *bits; byte != 0; byte &= byte - 1)
            ones++;
    return ones;
}

KERNEL(runs_encode)
{
    static char *names[] = {"mask", "count", "longest", NULL};
    PyObject *result = NULL;
    Py_buffer mask = {0};
    Integer count = {"count", 0, UINT64_MAX, 0}, longest = {"longest", 1, 255, 0};
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&:runs_encode", names, readable, &mask,
                                    integer, &count, integer, &longest)) {
        size_t bytes = (size_t)mask.len;
        unsigned char *copy = NULL, *buffer = NULL;
        if (count.value / 8 + (count.value % 8 != 0) != bytes)
            refuse("mask");
        /* A copy, so that the ones that were counted are those that are found. */
        else if ((copy = PyMem_Malloc(bytes + 1)) == NULL)
            PyErr_NoMemory();
        else {
            size_t size = 0, written = 0;
            Py_BEGIN_ALLOW_THREADS
            memcpy(copy, mask.buf, bytes);
            size = count_ones(copy, bytes) + (size_t)(count.value / longest.value) + 1;
            Py_END_ALLOW_THREADS
            if ((buffer = PyMem_Malloc(size)) == NULL)
                PyErr_NoMemory();
            else {
                Py_BEGIN_ALLOW_THREADS
                written = find_runs(copy, (size_t)count.value, (size_t)longest.value, buffer);
                Py_END_ALLOW_THREADS
                result = PyBytes_FromStringAndSize((char *)buffer, (Py_ssize_t)written);
            }
        }
        PyMem_Free(copy);
        PyMem_Free(buffer);
    }
    PyBuffer_Release(&mask);
    return result;
}

/* Returns the error, or NULL. */
static const char *set_runs(const unsigned char *runs, size_t symbols, size_t longest,
                            size_t count, unsigned char *out)
{
    size_t at = 0, j = 0;
    memset(out, 0, (count + 7) / 8);
    for (; j < symbols && at < count; j++) {
        size_t run = runs[j], one = run < longest;
        if (run > longest)
            return "run too long";
        at += run;
        if (at < count)
            out[at / 8] |= (unsigned char)(one << (at % 8));
        else if (one)
            return "one behind the end";
        at += one;
    }
    return j < symbols ? "runs left over" : at < count ? "runs missing" : NULL;
}

KERNEL(runs_decode)
{
    static char *names[] = {"runs", "longest", "count", "out", NULL};
    Py_buffer runs = {0}, out = {0};
    Integer longest = {"longest", 1, 255, 0}, count = {"count", 0, UINT64_MAX, 0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&:runs_decode", names, readable, &runs,
                                    integer, &longest, integer, &count, writable, &out)) {
        error = "out";
        if (count.value / 8 + (count.value % 8 != 0) == (size_t)out.len) {
            Py_BEGIN_ALLOW_THREADS
            error = set_runs(runs.buf, (size_t)runs.len, (size_t)longest.value,
                             (size_t)count.value, out.buf);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&runs);
    PyBuffer_Release(&out);
    return outcome(error);
}
