/* rANS (section 6). */
#include "_native.h"

enum { SCALE_BITS = 15, SCALE = 1 << SCALE_BITS, LOWEST = 1 << 16, MAX_LANES = 64 };

static int frequencies256(PyObject *object, void *copy)
{
    Py_buffer view;
    uint64_t sum = 0;
    if (!readable(object, &view))
        return 0;
    int fits = view.len == 256 * sizeof(uint32_t);
    if (fits)
        memcpy(copy, view.buf, 256 * sizeof(uint32_t));
    PyBuffer_Release(&view);
    for (int s = 0; fits && s < 256; s++)
        sum += ((uint32_t *)copy)[s];
    return sum == SCALE ? 1 : refuse("frequencies");
}

/* reciprocal = ceil(2^47 / f) makes (x * reciprocal) >> 47 == x / f for every x < f << 17: with
 * e = reciprocal * f - 2^47 < f <= 2^15, x e < 2^47; and x * reciprocal < 2^64 since e f < 2^30. */
enum { RECIPROCAL_BITS = 47 };

typedef struct {
    uint64_t reciprocal;
    uint32_t frequency, cumulative;
} Range;

#define UNUSED 0x80000000u /* in `cumulative`: the symbol has no frequency */

/* Always stores a word below `end`, and keeps it if the state has to shrink. */
static inline uint32_t encode_symbol(uint32_t x, const Range *range, unsigned char **end)
{
    uint32_t shrink = (x >> (32 - SCALE_BITS)) >= range->frequency;
    (*end)[-2] = (unsigned char)x;
    (*end)[-1] = (unsigned char)(x >> 8);
    *end -= 2 * shrink;
    x >>= 16 * shrink;
    uint32_t quotient = (uint32_t)((x * range->reciprocal) >> RECIPROCAL_BITS);
    return x + quotient * (SCALE - range->frequency) + range->cumulative;
}

#define ENCODE(state) \
    range = &ranges[symbols[--count]], seen |= range->cumulative, \
    state = encode_symbol(state, range, &end)

/* Writes the coded data up to `end`, where there are 4 * lanes + 2 * count bytes. Returns its
 * start, or NULL if a symbol has no frequency. */
static unsigned char *encode(const unsigned char *symbols, size_t count,
                             const uint32_t *frequencies, size_t lanes, unsigned char *end)
{
    Range ranges[256], *range;
    uint32_t x[MAX_LANES], cumulative = 0, seen = 0;
    for (int s = 0; s < 256; cumulative += frequencies[s++]) {
        uint32_t f = frequencies[s];
        uint64_t reciprocal = f ? ((UINT64_C(1) << RECIPROCAL_BITS) + f - 1) / f : 0;
        ranges[s] = (Range){reciprocal, f, f ? cumulative : UNUSED};
    }
    for (size_t lane = 0; lane < MAX_LANES; lane++)
        x[lane] = LOWEST;
    while (count % lanes != 0) {
        uint32_t *state = &x[(count - 1) % lanes];
        ENCODE(*state);
    }
    uint32_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], x4 = x[4], x5 = x[5], x6 = x[6], x7 = x[7];
    while (lanes == 1 && count > 0)
        ENCODE(x0);
    while (lanes == 8 && count > 0) {
        ENCODE(x7), ENCODE(x6), ENCODE(x5), ENCODE(x4);
        ENCODE(x3), ENCODE(x2), ENCODE(x1), ENCODE(x0);
    }
    x[0] = x0, x[1] = x1, x[2] = x2, x[3] = x3, x[4] = x4, x[5] = x5, x[6] = x6, x[7] = x7;
    while (count > 0)
        for (size_t lane = lanes; lane-- > 0;)
            ENCODE(x[lane]);
    end -= 4 * lanes;
    for (size_t i = 0; i < 4 * lanes; i++)
        end[i] = (unsigned char)(x[i / 4] >> (8 * (i % 4)));
    return seen & UNUSED ? NULL : end;
}

KERNEL(rans_encode)
{
    static char *names[] = {"symbols", "frequencies", "lanes", NULL};
    PyObject *result = NULL;
    Py_buffer view = {0};
    Integer lanes = {"lanes", 1, MAX_LANES, 0};
    uint32_t frequencies[256];
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&:rans_encode", names, readable, &view,
                                    frequencies256, frequencies, integer, &lanes)) {
        size_t count = (size_t)view.len, size = 4 * (size_t)lanes.value + 2 * count;
        unsigned char *buffer = NULL, *start;
        if (count <= (PY_SSIZE_T_MAX - 4 * MAX_LANES) / 2)
            buffer = PyMem_Malloc(size);
        if (buffer != NULL) {
            Py_BEGIN_ALLOW_THREADS
            start = encode(view.buf, count, frequencies, (size_t)lanes.value, buffer + size);
            Py_END_ALLOW_THREADS
            if (start != NULL)
                result = PyBytes_FromStringAndSize((char *)start, buffer + size - start);
            else
                refuse("symbol without frequency");
            PyMem_Free(buffer);
        } else
            PyErr_NoMemory();
    }
    PyBuffer_Release(&view);
    return result;
}

typedef struct {
    unsigned char symbol[SCALE]; /* of a slot */
    uint32_t range[256];         /* of a symbol: cumulative << 16 | frequency */
} Tables;

typedef struct {
    const unsigned char *words;
    unsigned char *out;
    size_t count; /* of symbols to decode */
} Cursor;

/* Reads a word even if it is not needed: a branch would be mispredicted too often. */
static inline uint32_t decode_symbol(uint32_t x, const Tables *tables, Cursor *at)
{
    uint32_t slot = x & (SCALE - 1), symbol = tables->symbol[slot], range = tables->range[symbol];
    uint32_t word = at->words[0] | (uint32_t)at->words[1] << 8;
    x = (range & 0xFFFF) * (x >> SCALE_BITS) + slot - (range >> 16);
    uint32_t grow = x < LOWEST;
    *at->out++ = (unsigned char)symbol;
    at->words += 2 * grow;
    return x << (16 * grow) | (word & (0 - grow));
}

#define DECODE(state) state = decode_symbol(state, tables, &at)

/* Decodes rows of one symbol per lane as long as the words are not read beyond `last`. */
static Cursor decode_rows(Cursor at, const unsigned char *last, const Tables *tables, uint32_t *x,
                          size_t lanes)
{
    uint32_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], x4 = x[4], x5 = x[5], x6 = x[6], x7 = x[7];
    for (; lanes == 1 && at.count > 0 && at.words <= last; at.count--)
        DECODE(x0);
    for (; lanes == 8 && at.count >= 8 && at.words <= last; at.count -= 8) {
        DECODE(x0), DECODE(x1), DECODE(x2), DECODE(x3);
        DECODE(x4), DECODE(x5), DECODE(x6), DECODE(x7);
    }
    x[0] = x0, x[1] = x1, x[2] = x2, x[3] = x3, x[4] = x4, x[5] = x5, x[6] = x6, x[7] = x7;
    for (; at.count >= lanes && at.words <= last; at.count -= lanes)
        for (size_t lane = 0; lane < lanes; lane++)
            DECODE(x[lane]);
    return at;
}

/* Returns the error, or NULL. */
static const char *decode(const unsigned char *data, size_t size, const uint32_t *frequencies,
                          size_t lanes, unsigned char *out, size_t count)
{
    Tables storage, *tables = &storage;
    uint32_t x[MAX_LANES] = {0}, cumulative = 0;
    unsigned char tail[4 * MAX_LANES] = {0};
    if (size < 4 * lanes)
        return "too short";
    if (size % 2 != 0)
        return "odd length";
    for (size_t i = 0; i < 4 * lanes; i++)
        x[i / 4] |= (uint32_t)data[i] << (8 * (i % 4));
    for (size_t lane = 0; lane < lanes; lane++)
        if (x[lane] < LOWEST)
            return "initial state out of range";
    for (int s = 0; s < 256; cumulative += frequencies[s++]) {
        memset(tables->symbol + cumulative, s, frequencies[s]);
        tables->range[s] = cumulative << 16 | frequencies[s];
    }
    /* A row reads up to 2 * lanes bytes; where fewer are left, it reads from a padded copy. */
    Cursor at = {data + 4 * lanes, out, count};
    at = decode_rows(at, data + size - 2 * lanes, tables, x, lanes);
    size_t left = (size_t)(data + size - at.words), copied = smaller(left, 2 * lanes);
    memcpy(tail, at.words, copied);
    at.words = tail;
    at = decode_rows(at, tail + copied, tables, x, lanes);
    for (size_t lane = 0; at.count < lanes && lane < at.count; lane++)
        DECODE(x[lane]);
    size_t used = (size_t)(at.words - tail);
    if (used != left)
        return used > left ? "too short" : "words left over";
    for (size_t lane = 0; lane < lanes; lane++)
        if (x[lane] != LOWEST)
            return "final state";
    return NULL;
}

KERNEL(rans_decode)
{
    static char *names[] = {"data", "frequencies", "lanes", "out", NULL};
    Py_buffer data = {0}, out = {0};
    Integer lanes = {"lanes", 1, MAX_LANES, 0};
    uint32_t frequencies[256];
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&:rans_decode", names, readable, &data,
                                    frequencies256, frequencies, integer, &lanes, writable, &out)) {
        Py_BEGIN_ALLOW_THREADS
        error = decode(data.buf, (size_t)data.len, frequencies, (size_t)lanes.value, out.buf,
                       (size_t)out.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    return outcome(error);
}
