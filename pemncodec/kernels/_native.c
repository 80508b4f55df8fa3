/* Inner loops of pemncodec. numpy_twin.py documents them and has the same results and errors.
 *
 * The GIL is released around every loop, so another thread may change a caller's buffer meanwhile:
 * what bounds a memory access is copied before it is checked. Buffers may be unaligned and may
 * overlap, so they are accessed as bytes or through memcpy only. Numbers in coded data are put
 * together from bytes; frequencies and generated words are in native byte order.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_mixing.h"

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define HAVE_AVX2 1
#endif

#ifdef __GNUC__
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE inline
#endif

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* ---- Arguments: converters for PyArg_ParseTupleAndKeywords ---- */

static int refuse(const char *message)
{
    PyErr_SetString(PyExc_ValueError, message);
    return 0;
}

static int get_buffer(PyObject *object, Py_buffer *view, int flags)
{
    if (PyObject_GetBuffer(object, view, flags) == 0)
        return 1;
    view->obj = NULL;
    /* Exporters disagree about the exception for a buffer that is read-only or not contiguous. */
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError))
        return 0;
    PyErr_Clear();
    return refuse("buffer");
}

static int readable(PyObject *object, void *to) { return get_buffer(object, to, PyBUF_SIMPLE); }
static int writable(PyObject *object, void *to) { return get_buffer(object, to, PyBUF_WRITABLE); }

typedef struct {
    const char *name;
    uint64_t least, most, value;
} Integer;

static int integer(PyObject *object, void *argument)
{
    Integer *to = argument;
    PyObject *index = PyNumber_Index(object);
    if (index == NULL)
        return 0;
    to->value = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (PyErr_Occurred() ? PyErr_ExceptionMatches(PyExc_OverflowError)
                         : to->value < to->least || to->value > to->most) {
        PyErr_Clear();
        return refuse(to->name);
    }
    return !PyErr_Occurred();
}

static PyObject *outcome(const char *error) /* when "" an exception is already set */
{
    if (error == NULL)
        return Py_NewRef(Py_None);
    if (*error != '\0')
        refuse(error);
    return NULL;
}

/* ---- Philox4x32-10 (section 5) ---- */

enum { BLOCKS = 64 }; /* below 32, gcc unrolls the loops over blocks instead of vectorising them */

static void philox_blocks(uint32_t *words, uint64_t block, uint64_t stream, uint64_t seed)
{
    uint32_t c0[BLOCKS], c1[BLOCKS], c2[BLOCKS], c3[BLOCKS];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (unsigned b = 0; b < BLOCKS; b++) {
        c0[b] = (uint32_t)(block + b);
        c1[b] = (uint32_t)((block + b) >> 32);
        c2[b] = (uint32_t)stream;
        c3[b] = (uint32_t)(stream >> 32);
    }
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        for (int b = 0; b < BLOCKS; b++) {
            uint64_t p0 = (uint64_t)c0[b] * 0xD2511F53u, p1 = (uint64_t)c2[b] * 0xCD9E8D57u;
            c0[b] = (uint32_t)(p1 >> 32) ^ c1[b] ^ k0;
            c2[b] = (uint32_t)(p0 >> 32) ^ c3[b] ^ k1;
            c1[b] = (uint32_t)p1;
            c3[b] = (uint32_t)p0;
        }
    }
    for (int b = 0; b < BLOCKS; b++, words += 4)
        words[0] = c0[b], words[1] = c1[b], words[2] = c2[b], words[3] = c3[b];
}

#ifdef HAVE_AVX2
/* As above, for processors that have AVX2, since the compiler finds no 32 × 32-bit product by itself;
 * and for those with AVX-512's third operand and twice the registers. GROUPS of four blocks are in
 * registers at one time, their words in 64-bit lanes; what is in the upper halves does no harm. */
#define PHILOX_BLOCKS(NAME, TARGET, GROUPS, XOR3) \
    __attribute__((target(TARGET))) static void NAME(uint32_t *words, uint64_t block, \
                                                     uint64_t stream, uint64_t seed) \
    { \
        const __m256i low = _mm256_set1_epi64x(UINT32_MAX); \
        const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57); \
        for (int b = 0; b < BLOCKS; b += 4 * GROUPS, block += 4 * GROUPS) { \
            __m256i c0[GROUPS], c1[GROUPS], c2[GROUPS], c3[GROUPS]; \
            uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32); \
            for (int g = 0; g < GROUPS; g++) { \
                __m256i first = _mm256_set1_epi64x((long long)(block + 4 * (uint64_t)g)); \
                c0[g] = _mm256_add_epi64(first, _mm256_setr_epi64x(0, 1, 2, 3)); \
                c1[g] = _mm256_srli_epi64(c0[g], 32); \
                c2[g] = _mm256_set1_epi64x((long long)stream); \
                c3[g] = _mm256_srli_epi64(c2[g], 32); \
            } \
            for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) { \
                __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1); \
                for (int g = 0; g < GROUPS; g++) { \
                    __m256i p0 = _mm256_mul_epu32(c0[g], m0), p1 = _mm256_mul_epu32(c2[g], m1); \
                    c0[g] = XOR3(_mm256_srli_epi64(p1, 32), c1[g], key0); \
                    c2[g] = XOR3(_mm256_srli_epi64(p0, 32), c3[g], key1); \
                    c1[g] = p1; \
                    c3[g] = p0; \
                } \
            } \
            for (int g = 0; g < GROUPS; g++, words += 16) { \
                __m256i front = _mm256_or_si256(_mm256_and_si256(c0[g], low), _mm256_slli_epi64(c1[g], 32)); \
                __m256i back = _mm256_or_si256(_mm256_and_si256(c2[g], low), _mm256_slli_epi64(c3[g], 32)); \
                __m256i even = _mm256_unpacklo_epi64(front, back), odd = _mm256_unpackhi_epi64(front, back); \
                _mm256_storeu_si256((__m256i *)words, _mm256_permute2x128_si256(even, odd, 0x20)); \
                _mm256_storeu_si256((__m256i *)(words + 8), _mm256_permute2x128_si256(even, odd, 0x31)); \
            } \
        } \
    }
#define XOR3_AVX2(a, b, c) _mm256_xor_si256(a, _mm256_xor_si256(b, c))
#define XOR3_AVX512(a, b, c) _mm256_ternarylogic_epi64(a, b, c, 0x96)
PHILOX_BLOCKS(philox_blocks_avx2, "avx2", 2, XOR3_AVX2)
PHILOX_BLOCKS(philox_blocks_avx512, "avx512f,avx512vl", 4, XOR3_AVX512)
#endif

static void generate_words(uint32_t *words, uint64_t block, uint64_t stream, uint64_t seed)
{
#ifdef HAVE_AVX2
    if (__builtin_cpu_supports("avx512vl")) {
        philox_blocks_avx512(words, block, stream, seed);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        philox_blocks_avx2(words, block, stream, seed);
        return;
    }
#endif
    philox_blocks(words, block, stream, seed);
}

static PyObject *philox4x32(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"out", "seed", "stream", "start", NULL};
    Integer seed = {"seed", 0, UINT64_MAX, 0}, stream = {"stream", 0, UINT64_MAX, 0};
    Integer start = {"start", 0, UINT64_MAX, 0};
    Py_buffer view = {0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&:philox4x32", names, writable, &view,
                                    integer, &seed, integer, &stream, integer, &start)) {
        size_t count = (size_t)view.len / 4, skip = (size_t)(start.value % 4), taken;
        error = view.len % 4 != 0 ? "out"
                : count > 0 && count - 1 > UINT64_MAX - start.value ? "start" : NULL;
        Py_BEGIN_ALLOW_THREADS
        unsigned char *out = view.buf;
        uint64_t block = start.value / 4;
        for (; error == NULL && count > 0; count -= taken, block += BLOCKS, skip = 0) {
            uint32_t words[4 * BLOCKS];
            taken = smaller(4 * BLOCKS - skip, count);
            generate_words(words, block, stream.value, seed.value);
            memcpy(out, words + skip, 4 * taken);
            out += 4 * taken;
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    return outcome(error);
}

/* ---- Quantiles (section 5) ---- */

enum { QUANTILES = 4096 };

static PyObject *quantiles(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"words", "table", "out", NULL};
    Py_buffer words = {0}, table = {0}, out = {0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&:quantiles", names, readable, &words,
                                    readable, &table, writable, &out)) {
        uint32_t copy[QUANTILES], word;
        size_t bytes = (size_t)out.len;
        error = words.len % 4 != 0 ? "words" : (size_t)table.len != sizeof copy ? "table"
                : bytes != (size_t)words.len ? "out" : NULL;
        Py_BEGIN_ALLOW_THREADS
        if (error == NULL)
            memcpy(copy, table.buf, sizeof copy);
        for (size_t i = 0; error == NULL && i < bytes; i += 4) {
            memcpy(&word, (unsigned char *)words.buf + i, 4);
            memcpy((unsigned char *)out.buf + i, &copy[word >> 20], 4);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&words);
    PyBuffer_Release(&table);
    PyBuffer_Release(&out);
    return outcome(error);
}

/* ---- rANS (section 6) ---- */

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

static PyObject *rans_encode(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
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

static PyObject *rans_decode(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
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

/* ---- Runs (section 6.3) ---- */

static inline uint64_t load64(const unsigned char *bytes, size_t size) /* little-endian, 1 to 8 */
{
    uint64_t word = 0;
    for (size_t i = 0; i < size; i++)
        word |= (uint64_t)bytes[i] << (8 * i);
    return word;
}

static inline unsigned lowest_bit(uint64_t word) /* position; word != 0 */
{
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(word);
#else
    unsigned position = 0;
    for (; (word & 1) == 0; word >>= 1)
        position++;
    return position;
#endif
}

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

static PyObject *runs_encode(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
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

static PyObject *runs_decode(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
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

/* ---- Values under a mask ---- */

typedef void Masker(unsigned char *out, const unsigned char *values, const unsigned char *mask,
                    size_t groups, bool past_cache);

#if defined(__x86_64__) && defined(__GNUC__)
/* Stores that do not read the memory first, and leave the cache to others. */
static inline bool can_pass_cache(const unsigned char *out, size_t size)
{
    return (uintptr_t)out % 16 == 0 && size % 16 == 0;
}

static inline void store_past_cache(unsigned char *out, const void *from, size_t size)
{
    for (size_t i = 0; i < size; i += 16)
        _mm_stream_si128((__m128i *)(out + i),
                         _mm_loadu_si128((const __m128i *)((const char *)from + i)));
}

static inline void finish_stores(void) { _mm_sfence(); }
#else
static inline bool can_pass_cache(const unsigned char *out, size_t size)
{
    (void)out, (void)size;
    return false;
}

static inline void store_past_cache(unsigned char *out, const void *from, size_t size)
{
    memcpy(out, from, size);
}

static inline void finish_stores(void) {}
#endif

/* Copies groups of 8 items, each of PARTS words, with zeros where the mask's bit is 0. `kept` has all
 * bits of the words that a mask byte keeps: loaded, not computed, they cost next to nothing. */
#define MASKER(NAME, WORD, PARTS) \
    static WORD kept_##NAME[256][8 * PARTS]; \
    static void NAME(unsigned char *out, const unsigned char *values, const unsigned char *mask, \
                     size_t groups, bool past_cache) \
    { \
        WORD words[8 * PARTS]; \
        past_cache = past_cache && can_pass_cache(out, sizeof words); \
        for (; groups > 0; groups--, mask++, out += sizeof words, values += sizeof words) { \
            memcpy(words, values, sizeof words); \
            for (int i = 0; i < 8 * PARTS; i++) \
                words[i] &= kept_##NAME[*mask][i]; \
            if (past_cache) \
                store_past_cache(out, words, sizeof words); \
            else \
                memcpy(out, words, sizeof words); \
        } \
    }
MASKER(mask_1, uint8_t, 1)
MASKER(mask_2, uint16_t, 1)
MASKER(mask_4, uint32_t, 1)
MASKER(mask_8, uint64_t, 1)
MASKER(mask_16, uint64_t, 2)

static void fill_kept_words(void)
{
    for (int byte = 0; byte < 256; byte++)
        for (int i = 0; i < 8; i++)
            if (byte & (1 << i)) {
                kept_mask_1[byte][i] = UINT8_MAX;
                kept_mask_2[byte][i] = UINT16_MAX;
                kept_mask_4[byte][i] = UINT32_MAX;
                kept_mask_8[byte][i] = UINT64_MAX;
                kept_mask_16[byte][2 * i] = kept_mask_16[byte][2 * i + 1] = UINT64_MAX;
            }
}

enum { CHUNK_ITEMS = 1 << 16, PAST_CACHE_FROM = 1 << 20 }; /* bytes */

/* Memory that was never touched costs one system call instead of a page fault for every 4 KiB. */
static void populate(unsigned char *out, size_t size)
{
#ifdef MADV_POPULATE_WRITE
    enum { PAGE = 4096, WORTHWHILE = 1 << 16 };
    uintptr_t first = ((uintptr_t)out + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = ((uintptr_t)out + size) / PAGE * PAGE;
    unsigned char present = 0;
    /* The last page tells: it costs more to populate memory that is there than to write it. */
    if (size >= WORTHWHILE
        && (mincore((void *)(last - PAGE), PAGE, &present) != 0 || !(present & 1)))
        madvise((void *)first, last - first, MADV_POPULATE_WRITE); /* if it fails, no harm is done */
#else
    (void)out, (void)size;
#endif
}

/* Memory that was never touched: a page fault for every 2 MiB where the system has such pages. */
static void allow_large_pages(unsigned char *out, size_t size)
{
#ifdef MADV_HUGEPAGE
    enum { PAGE = 4096, WORTHWHILE = 1 << 22 };
    uintptr_t first = ((uintptr_t)out + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = ((uintptr_t)out + size) / PAGE * PAGE;
    if (size >= WORTHWHILE)
        madvise((void *)first, last - first, MADV_HUGEPAGE); /* if it fails, no harm is done */
#else
    (void)out, (void)size;
#endif
}

static void expand_items(unsigned char *out, size_t count, const unsigned char *values,
                         size_t period, size_t offset, size_t itemsize, const unsigned char *mask,
                         Masker *masker, bool past_cache)
{
    unsigned char tile[1 << 14], group[8 * 16] = {0};
    size_t filled = period * itemsize, taken;
    if (filled <= sizeof tile / 2) { /* repeated, so that runs without a wrap are long */
        memcpy(tile, values, filled);
        for (size_t full = sizeof tile / filled * filled; filled < full; filled += taken) {
            taken = smaller(filled, full - filled);
            memcpy(tile + filled, tile, taken);
        }
        values = tile;
        period = filled / itemsize;
    }
    for (; count > 0; count -= taken, out += taken * itemsize) {
        size_t groups = smaller(count, period - offset) / 8;
        taken = groups > 0 ? 8 * groups : smaller(count, 8);
        if (groups > 0) {
            masker(out, values + offset * itemsize, mask, groups, past_cache);
            offset = (offset + taken) % period;
            mask += groups;
        } else { /* 8 items that wrap, or fewer at the end */
            for (size_t i = 0; i < taken; i++, offset = (offset + 1) % period)
                memcpy(group + i * itemsize, values + offset * itemsize, itemsize);
            masker(group, group, mask++, 1, false);
            memcpy(out, group, taken * itemsize);
        }
    }
}

static PyObject *expand(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"values", "itemsize", "offset", "mask", "out", NULL};
    Py_buffer values = {0}, mask = {0}, out = {0};
    Integer size = {"itemsize", 1, 16, 0}, offset = {"offset", 0, UINT64_MAX, 0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&O&:expand", names, readable, &values,
                                    integer, &size, integer, &offset, readable, &mask,
                                    writable, &out)) {
        size_t item = (size_t)size.value, count = (size_t)out.len / item;
        size_t bytes = (size_t)values.len;
        Masker *masker = item == 1 ? mask_1 : item == 2 ? mask_2 : item == 4 ? mask_4
                         : item == 8 ? mask_8 : item == 16 ? mask_16 : NULL;
        error = masker == NULL ? "itemsize"
                : bytes == 0 || bytes % item != 0 ? "values"
                : offset.value >= bytes / item ? "offset"
                : (size_t)out.len % item != 0 ? "out"
                : (size_t)mask.len != (count + 7) / 8 ? "mask" : NULL;
        Py_BEGIN_ALLOW_THREADS
        size_t period = bytes / item, start = 0, part;
        for (; error == NULL && start < count; start += part) {
            unsigned char *to = (unsigned char *)out.buf + start * item;
            part = smaller(CHUNK_ITEMS, count - start);
            populate(to, part * item); /* a chunk at a time, which is in the cache then */
            expand_items(to, part, values.buf, period, (offset.value + start) % period, item,
                         (unsigned char *)mask.buf + start / 8, masker, (size_t)out.len >= PAST_CACHE_FROM);
        }
        finish_stores();
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&mask);
    PyBuffer_Release(&out);
    return outcome(error);
}

/* ---- Generated values under a mask ---- */

/* Writes quantiles of the words from `start` on, with zeros where the mask's bit is 0: a batch at a
 * time, which never leaves the nearest cache before it is whole. */
static void generate_masked(unsigned char *out, size_t count, uint64_t seed, uint64_t stream,
                            uint64_t start, const uint32_t *table, const unsigned char *mask)
{
    uint32_t words[4 + 4 * BLOCKS], values[4 * BLOCKS]; /* first the last block of the batch before */
    uint64_t block = start / 4;
    size_t skip = (size_t)(start % 4), taken;
    bool past_cache = 4 * count >= PAST_CACHE_FROM;
    if (skip > 0) {
        uint32_t batch[4 * BLOCKS];
        generate_words(batch, block++, stream, seed);
        memcpy(words, batch, 4 * sizeof *words);
    } else
        skip = 4;
    for (size_t done = 0; done < count; done += taken, block += BLOCKS) {
        taken = smaller(4 * BLOCKS, count - done);
        if (done % CHUNK_ITEMS == 0)
            populate(out, 4 * smaller(CHUNK_ITEMS, count - done));
        generate_words(words + 4, block, stream, seed);
        for (size_t i = 0; i < 4 * BLOCKS; i++)
            values[i] = table[words[skip + i] >> 20];
        memcpy(words, words + 4 * BLOCKS, 4 * sizeof *words);
        if (taken % 8 == 0)
            mask_4(out, (unsigned char *)values, mask, taken / 8, past_cache);
        else {
            mask_4((unsigned char *)values, (unsigned char *)values, mask, (taken + 7) / 8, false);
            memcpy(out, values, 4 * taken);
        }
        out += 4 * taken;
        mask += taken / 8;
    }
    finish_stores();
}

static PyObject *expand_normal(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"seed", "stream", "start", "table", "mask", "out", NULL};
    Integer seed = {"seed", 0, UINT64_MAX, 0}, stream = {"stream", 0, UINT64_MAX, 0};
    Integer start = {"start", 0, UINT64_MAX, 0};
    Py_buffer table = {0}, mask = {0}, out = {0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&O&O&:expand_normal", names, integer,
                                    &seed, integer, &stream, integer, &start, readable, &table,
                                    readable, &mask, writable, &out)) {
        uint32_t copy[QUANTILES];
        size_t count = (size_t)out.len / 4;
        error = (size_t)table.len != sizeof copy ? "table"
                : out.len % 4 != 0 ? "out"
                : (size_t)mask.len != (count + 7) / 8 ? "mask"
                : count > 0 && count - 1 > UINT64_MAX - start.value ? "start" : NULL;
        Py_BEGIN_ALLOW_THREADS
        if (error == NULL) {
            memcpy(copy, table.buf, sizeof copy);
            generate_masked(out.buf, count, seed.value, stream.value, start.value, copy, mask.buf);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&table);
    PyBuffer_Release(&mask);
    PyBuffer_Release(&out);
    return outcome(error);
}

/* ---- Threads ---- */

/* Fewer items than that for each are done sooner than by threads, which have to wait for cores where
 * torch's own threads spin after its last operator. */
enum { MOST_THREADS = 64, ITEMS_OF_THREAD = 1 << 21 };

typedef void Work(void *all, size_t part);

typedef struct {
    Work *work;
    void *all;
    size_t part;
} Share;

enum { ROW = 64 }; /* items that vector instructions look at together */

/* Where a part of items starts: at a row of its own. */
static size_t start_of(size_t count, size_t part, size_t parts)
{
    return smaller((count + ROW - 1) / ROW * part / parts * ROW, count);
}

static size_t parts_of(size_t items, uint64_t threads)
{
    size_t most = smaller(items / ITEMS_OF_THREAD, MOST_THREADS);
    return most == 0 ? 1 : threads < most ? (size_t)threads : most;
}

static void *do_share(void *argument)
{
    const Share *share = argument;
    share->work(share->all, share->part);
    return NULL;
}

/* Does all parts, at most MOST_THREADS, each in a thread of its own. The threads end with the call,
 * so a process may fork before and after. */
static void run_parts(Work *work, void *all, size_t parts)
{
    size_t begun = 1;
#ifndef _WIN32
    pthread_t threads[MOST_THREADS];
    Share shares[MOST_THREADS];
    for (; begun < parts; begun++) {
        shares[begun] = (Share){work, all, begun};
        if (pthread_create(&threads[begun], NULL, do_share, &shares[begun]) != 0)
            break;
    }
#endif
    work(all, 0);
    for (size_t part = begun; part < parts; part++)
        work(all, part);
#ifndef _WIN32
    for (size_t part = 1; part < begun; part++)
        pthread_join(threads[part], NULL);
#endif
}

/* ---- The largest values ---- */

/* What ranks a value: its order, or that of its magnitude; NaN anywhere, −0 as +0. */
static inline int32_t ranking_key(float value, bool magnitude)
{
    int32_t bits;
    value += 0.0f;
    memcpy(&bits, &value, sizeof bits);
    return magnitude ? bits & INT32_MAX : bits ^ (bits >> 31 & INT32_MAX);
}

static inline float float_at(const unsigned char *floats, size_t index)
{
    float value;
    memcpy(&value, floats + index * sizeof value, sizeof value);
    return value;
}

static inline int32_t key_at(const unsigned char *scores, size_t index, bool magnitude)
{
    return ranking_key(float_at(scores, index), magnitude);
}

/* Radix selection by digits of 11, 11 and 10 bits: the key of rank *rank < count in ascending
 * order; what is left of *rank are the equal keys before it. The keys are lost. */
static int32_t key_of_rank(int32_t *keys, size_t count, size_t *rank)
{
    static const int shifts[] = {21, 10, 0};
    for (int digit = 0; digit < 3; digit++) {
        uint32_t histogram[4][1 << 11] = {{0}}; /* four, since neighbours often fall in one bin */
        uint32_t bin = 0, flip = digit == 0 ? 1 << 10 : 0; /* of the sign */
        for (size_t i = 0; i < count; i++)
            histogram[i % 4][((uint32_t)keys[i] >> shifts[digit] & ((1 << 11) - 1)) ^ flip]++;
        for (;; bin++) {
            size_t here = (size_t)histogram[0][bin] + histogram[1][bin] + histogram[2][bin]
                          + histogram[3][bin];
            if (*rank < here)
                break;
            *rank -= here;
        }
        size_t left = 0;
        for (size_t i = 0; i < count; i++) { /* without a branch, which nobody could predict */
            int32_t key = keys[i];
            keys[left] = key;
            left += (((uint32_t)key >> shifts[digit] & ((1 << 11) - 1)) ^ flip) == bin;
        }
        count = left;
    }
    return keys[0];
}

/* Which scores are kept. A range of keys is guessed from a sample such that what is above it is kept
 * and what is below it is not; only the scores within, the candidates, are ranked. So one pass over
 * all is enough unless the guess was wrong, and then all are candidates. */
typedef struct {
    const unsigned char *scores; /* float */
    const unsigned char *values; /* of 4 bytes, or NULL where ones are written, of 1 byte */
    unsigned char *out;
    size_t count, parts;
    bool magnitude;
    int32_t lowest, highest; /* of the candidates' keys */
    uint64_t *candidates;    /* a bit for each score, a word for each ROW */
    int32_t *keys;           /* of candidates, in order; those of a part are where its scores start */
    size_t found[MOST_THREADS], below[MOST_THREADS]; /* candidates and smaller keys of a part */
    int32_t cut;                                     /* the smallest key that is kept */
    size_t dropped[MOST_THREADS];                    /* the first of a part's ties at the cut */
} Selection;

enum { FEWEST_SAMPLES = 1 << 8, MOST_SAMPLES = 1 << 14, SAMPLED = 32 }; /* one of SAMPLED scores */

/* Candidates that most likely have the one of that rank: what is about it in a sample, at least three
 * standard deviations to either side. */
static void guess_candidates(Selection *all, size_t rank)
{
    int32_t keys[MOST_SAMPLES], copy[MOST_SAMPLES];
    size_t samples = smaller(all->count / SAMPLED, MOST_SAMPLES), step, middle, margin = 0, rest;
    uint64_t random = 0;
    all->lowest = INT32_MIN, all->highest = INT32_MAX;
    if (samples < FEWEST_SAMPLES)
        return;
    step = all->count / samples, middle = smaller(rank / step, samples - 1);
    while (4 * margin * margin < 9 * samples) /* 3 sqrt(samples) / 2 */
        margin++;
    for (size_t i = 0; i < samples; i++) { /* one of each `step`, at positions without a pattern */
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        keys[i] = key_at(all->scores, i * step + (size_t)(random >> 33) % step, all->magnitude);
    }
    memcpy(copy, keys, samples * sizeof *keys);
    rest = middle - margin;
    if (middle >= margin)
        all->lowest = key_of_rank(copy, samples, &rest);
    rest = middle + margin;
    if (rest < samples)
        all->highest = key_of_rank(keys, samples, &rest);
}

/* Writes a row, candidates as kept, and copies their keys; returns the end of these. */
static ALWAYS_INLINE int32_t *rank_row(const Selection *all, size_t start, size_t size,
                                       bool magnitude, int32_t *copied, size_t *below)
{
    int32_t keys[ROW], under = 0;
    uint32_t items[ROW];
    unsigned char within[ROW] = {0};
    for (size_t i = 0; i < size; i++)
        keys[i] = key_at(all->scores, start + i, magnitude);
    for (size_t i = 0; i < size; i++)
        under += keys[i] < all->lowest;
    for (size_t i = 0; i < size; i++)
        within[i] = (keys[i] >= all->lowest) & (keys[i] <= all->highest);
    *below += (size_t)under;
    if (all->values == NULL)
        for (size_t i = 0; i < size; i++)
            all->out[start + i] = keys[i] >= all->lowest;
    else {
        for (size_t i = 0; i < size; i++) {
            memcpy(items + i, all->values + 4 * (start + i), 4);
            items[i] &= 0u - (uint32_t)(keys[i] >= all->lowest);
        }
        memcpy(all->out + 4 * start, items, 4 * size);
    }
    uint64_t word = 0, eight;
    for (size_t i = 0; i < ROW; i += 8) {
        memcpy(&eight, within + i, sizeof eight);
        word |= (eight * UINT64_C(0x0102040810204080) >> 56) << i; /* bytes of 0 or 1 to bits */
    }
    all->candidates[start / ROW] = word;
    if (word == UINT64_MAX) {
        memcpy(copied, keys, sizeof keys);
        return copied + ROW;
    }
    for (; word != 0; word &= word - 1)
        *copied++ = keys[lowest_bit(word)];
    return copied;
}

static ALWAYS_INLINE void rank_rows(Selection *all, size_t part, bool magnitude)
{
    size_t start = start_of(all->count, part, all->parts), end = start_of(all->count, part + 1, all->parts), below = 0;
    int32_t *keys = all->keys + start, *copied = keys;
    for (; end - start >= ROW; start += ROW)
        copied = rank_row(all, start, ROW, magnitude, copied, &below);
    if (start < end)
        copied = rank_row(all, start, end - start, magnitude, copied, &below);
    all->found[part] = (size_t)(copied - keys);
    all->below[part] = below;
}

/* Constant arguments: a loop for each kind of ranking, without a branch in it. */
#define RANK_PART(NAME, TARGET, ROWS) \
    TARGET static void NAME(void *selection, size_t part) \
    { \
        Selection *all = selection; \
        if (all->magnitude) \
            ROWS(all, part, true); \
        else \
            ROWS(all, part, false); \
    }
RANK_PART(rank_part, , rank_rows)
#ifdef HAVE_AVX2
RANK_PART(rank_part_avx2, __attribute__((target("avx2"))), rank_rows)

/* As rank_rows, for processors that pack the candidates' keys by one instruction. */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt")))
AVX512 static ALWAYS_INLINE void rank_rows_avx512(Selection *all, size_t part, bool magnitude)
{
    const __m512i lowest = _mm512_set1_epi32(all->lowest), highest = _mm512_set1_epi32(all->highest);
    const __m512i positive = _mm512_set1_epi32(INT32_MAX);
    size_t start = start_of(all->count, part, all->parts), below = 0;
    size_t end = start_of(all->count, part + 1, all->parts);
    int32_t *keys = all->keys + start, *copied = keys;
    for (; end - start >= ROW; start += ROW) {
        uint64_t word = 0;
        for (size_t i = 0; i < ROW; i += 16) {
            __m512 scores = _mm512_loadu_ps(all->scores + 4 * (start + i));
            __m512i key = _mm512_castps_si512(_mm512_add_ps(scores, _mm512_setzero_ps()));
            key = magnitude ? _mm512_and_si512(key, positive)
                            : _mm512_xor_si512(key, _mm512_and_si512(_mm512_srai_epi32(key, 31), positive));
            __mmask16 above = _mm512_cmpge_epi32_mask(key, lowest);
            __mmask16 within = _mm512_mask_cmple_epi32_mask(above, key, highest);
            below += 16 - (size_t)__builtin_popcount(above);
            word |= (uint64_t)within << i;
            if (all->values == NULL)
                _mm_storeu_si128((__m128i *)(all->out + start + i), _mm_maskz_set1_epi8(above, 1));
            else
                _mm512_storeu_si512(all->out + 4 * (start + i),
                                    _mm512_maskz_loadu_epi32(above, all->values + 4 * (start + i)));
            /* All 16: as many keys of the part have been looked at, so there is room for them. */
            _mm512_storeu_si512(copied, _mm512_maskz_compress_epi32(within, key));
            copied += __builtin_popcount(within);
        }
        all->candidates[start / ROW] = word;
    }
    if (start < end)
        copied = rank_row(all, start, end - start, magnitude, copied, &below);
    all->found[part] = (size_t)(copied - keys);
    all->below[part] = below;
}
RANK_PART(rank_part_avx512, AVX512, rank_rows_avx512)
#endif

static void rank_parts(Selection *all, size_t *found, size_t *below)
{
    Work *work = rank_part;
#ifdef HAVE_AVX2
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        work = rank_part_avx512;
    else if (__builtin_cpu_supports("avx2"))
        work = rank_part_avx2;
#endif
    run_parts(work, all, all->parts);
    *found = *below = 0;
    for (size_t part = 0; part < all->parts; part++) {
        *found += all->found[part];
        *below += all->below[part];
    }
}

/* Zeros for the candidates that are not kept. */
static void drop_candidates(void *selection, size_t part)
{
    const Selection *all = selection;
    size_t start = start_of(all->count, part, all->parts), end = start_of(all->count, part + 1, all->parts);
    size_t ties = all->dropped[part];
    const int32_t *key = all->keys + start;
    for (; start < end; start += ROW)
        for (uint64_t word = all->candidates[start / ROW]; word != 0; word &= word - 1, key++) {
            size_t index = start + lowest_bit(word);
            bool tie = (*key == all->cut) & (ties > 0), kept = (*key >= all->cut) & !tie;
            ties -= tie;
            if (all->values == NULL)
                all->out[index] = kept;
            else { /* without a branch that nobody could predict */
                uint32_t item;
                memcpy(&item, all->out + 4 * index, 4);
                item &= 0u - (uint32_t)kept;
                memcpy(all->out + 4 * index, &item, 4);
            }
        }
}

/* Writes what is kept and zeros, 0 < kept < count. False without memory. */
static bool select_largest(Selection *all, size_t kept)
{
    size_t rank = all->count - kept, rows = (all->count + ROW - 1) / ROW, found, below;
    int32_t *ranked = NULL;
    all->candidates = malloc(rows * sizeof *all->candidates);
    all->keys = malloc(all->count * sizeof *all->keys);
    if (all->candidates != NULL && all->keys != NULL) {
        guess_candidates(all, rank);
        rank_parts(all, &found, &below);
        if (rank < below || rank - below >= found) {
            all->lowest = INT32_MIN, all->highest = INT32_MAX;
            rank_parts(all, &found, &below);
        }
        rank -= below;
        ranked = malloc(found * sizeof *ranked);
    }
    if (ranked != NULL) {
        int32_t *end = ranked;
        for (size_t part = 0; part < all->parts; end += all->found[part++])
            memcpy(end, all->keys + start_of(all->count, part, all->parts), all->found[part] * sizeof *ranked);
        all->cut = key_of_rank(ranked, found, &rank);
        for (size_t part = 0; part < all->parts; part++) { /* `rank` ties are left to drop */
            const int32_t *keys = all->keys + start_of(all->count, part, all->parts);
            size_t ties = 0;
            for (size_t i = 0; rank > 0 && i < all->found[part]; i++)
                ties += keys[i] == all->cut;
            all->dropped[part] = smaller(ties, rank);
            rank -= all->dropped[part];
        }
        run_parts(drop_candidates, all, all->parts);
    }
    free(all->candidates);
    free(all->keys);
    free(ranked);
    return ranked != NULL;
}

static PyObject *top_k(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"values", "kept", "out", NULL};
    Py_buffer values = {0}, out = {0};
    Integer kept = {"kept", 0, UINT64_MAX, 0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&:top_k", names, readable, &values,
                                    integer, &kept, writable, &out)) {
        size_t count = (size_t)out.len;
        Selection all = {.scores = values.buf, .out = out.buf, .count = count, .parts = 1};
        bool done = true;
        error = (size_t)values.len / sizeof(float) != count
                        || (size_t)values.len % sizeof(float) != 0 ? "values"
                : kept.value > count ? "kept" : NULL;
        Py_BEGIN_ALLOW_THREADS
        if (error == NULL && kept.value > 0 && kept.value < count)
            done = select_largest(&all, (size_t)kept.value);
        else if (error == NULL)
            memset(out.buf, kept.value > 0, count);
        Py_END_ALLOW_THREADS
        if (!done) {
            PyErr_NoMemory();
            error = "";
        }
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return outcome(error);
}

static PyObject *keep_largest(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"scores", "magnitude", "kept", "values", "out", "threads", NULL};
    Py_buffer scores = {0}, values = {0}, out = {0};
    Integer kept = {"kept", 0, UINT64_MAX, 0}, magnitude = {"magnitude", 0, 1, 0};
    Integer threads = {"threads", 1, UINT64_MAX, 0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&O&O&:keep_largest", names, readable,
                                    &scores, integer, &magnitude, integer, &kept, readable,
                                    &values, writable, &out, integer, &threads)) {
        size_t size = (size_t)scores.len;
        Selection all = {.scores = scores.buf, .values = values.buf, .out = out.buf,
                         .count = size / 4, .parts = parts_of(size / 4, threads.value),
                         .magnitude = magnitude.value != 0};
        bool done = true;
        error = size % 4 != 0 ? "scores" : kept.value > all.count ? "kept"
                : (size_t)values.len != size ? "values" : (size_t)out.len != size ? "out" : NULL;
        Py_BEGIN_ALLOW_THREADS
        if (error == NULL) {
            allow_large_pages(out.buf, size);
            if (kept.value == 0)
                memset(out.buf, 0, size);
            else if (kept.value == all.count)
                memmove(out.buf, values.buf, size);
            else
                done = select_largest(&all, (size_t)kept.value);
        }
        Py_END_ALLOW_THREADS
        if (!done) {
            PyErr_NoMemory();
            error = "";
        }
    }
    PyBuffer_Release(&scores);
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return outcome(error);
}

/* ---- The gradient of scores ---- */

typedef struct {
    const unsigned char *gradient, *values, *scores; /* float */
    unsigned char *out;
    size_t count, parts;
} Products;

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

static void multiply_part(void *products, size_t part)
{
    const Products *all = products;
    size_t start = start_of(all->count, part, all->parts);
    size_t end = start_of(all->count, part + 1, all->parts);
    for (; end - start >= ROW; start += ROW)
        multiply_row(all, start, ROW);
    multiply_row(all, start, end - start);
}

static PyObject *magnitude_gradient(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"gradient", "values", "scores", "out", "threads", NULL};
    Py_buffer gradient = {0}, values = {0}, scores = {0}, out = {0};
    Integer threads = {"threads", 1, UINT64_MAX, 0};
    const char *error = "";
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&O&:magnitude_gradient", names,
                                    readable, &gradient, readable, &values, readable, &scores,
                                    writable, &out, integer, &threads)) {
        Py_ssize_t size = gradient.len;
        size_t count = (size_t)size / 4;
        Products all = {gradient.buf, values.buf, scores.buf, out.buf, count,
                        parts_of(count, threads.value)};
        error = size % 4 != 0 ? "gradient" : values.len != size ? "values"
                : scores.len != size ? "scores" : out.len != size ? "out" : NULL;
        Py_BEGIN_ALLOW_THREADS
        if (error == NULL) {
            allow_large_pages(out.buf, (size_t)size);
            run_parts(multiply_part, &all, all.parts);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&gradient);
    PyBuffer_Release(&values);
    PyBuffer_Release(&scores);
    PyBuffer_Release(&out);
    return outcome(error);
}

/* ---- Context mixing (section 6.4) ---- */

typedef struct {
    Py_buffer bits, data, buckets, parts, tables;
    uint64_t *copied; /* parts */
    size_t count;     /* of them */
    int32_t known[MIXING_STRETCH + MIXING_SQUASH];
    void *state;
} Mixing;

static void release_mixing(Mixing *mixing)
{
    Py_buffer *views[] = {&mixing->bits, &mixing->data, &mixing->buckets, &mixing->parts,
                          &mixing->tables};
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        PyBuffer_Release(views[i]);
    PyMem_Free(mixing->copied);
    PyMem_Free(mixing->state);
    PyMem_Free(mixing);
}

/* Returns the error, "" when an exception is set, or NULL. */
static const char *prepare_mixing(Mixing *mixing)
{
    size_t row = MIXING_FIELDS * sizeof(uint64_t), size = (size_t)mixing->parts.len;
    size_t weights = (size_t)mixing->bits.len;
    unsigned char worst = 0;
    if (size % row != 0)
        return "parts";
    mixing->count = size / row;
    mixing->copied = PyMem_Malloc(size + 1);
    mixing->state = PyMem_Calloc(1, mixing_state_size());
    if (mixing->copied == NULL || mixing->state == NULL) {
        PyErr_NoMemory();
        return "";
    }
    memcpy(mixing->copied, mixing->parts.buf, size);
    if (weights == 0 || mixing_check_parts(mixing->copied, mixing->count) != weights)
        return "parts";
    if ((size_t)mixing->buckets.len != weights)
        return "buckets";
    for (size_t i = 0; i < weights; i++)
        worst |= ((unsigned char *)mixing->buckets.buf)[i];
    if (worst >= MIXING_BUCKETS)
        return "buckets";
    if (mixing->tables.len != sizeof mixing->known)
        return "tables";
    memcpy(mixing->known, mixing->tables.buf, sizeof mixing->known);
    return mixing_check_tables(mixing->known) ? NULL : "tables";
}

static PyObject *mixing_encode(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"bits", "buckets", "parts", "tables", NULL};
    PyObject *result = NULL, *ends = NULL;
    unsigned char *buffer = NULL, worst = 0;
    size_t *written = NULL, size = 0;
    const char *error = "";
    Mixing *mixing = PyMem_Calloc(1, sizeof *mixing);
    if (mixing == NULL)
        return PyErr_NoMemory();
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&:mixing_encode", names, readable,
                                    &mixing->bits, readable, &mixing->buckets, readable,
                                    &mixing->parts, readable, &mixing->tables))
        error = prepare_mixing(mixing);
    for (Py_ssize_t i = 0; error == NULL && i < mixing->bits.len; i++)
        worst |= ((unsigned char *)mixing->bits.buf)[i];
    if (worst > 1)
        error = "bits";
    if (error == NULL) {
        buffer = PyMem_Malloc(3 * (size_t)mixing->bits.len + 4);
        written = PyMem_Calloc(mixing->count, sizeof *written);
        ends = PyTuple_New((Py_ssize_t)mixing->count);
        if (buffer == NULL || written == NULL || ends == NULL) {
            PyErr_NoMemory();
            error = "";
        }
    }
    if (error == NULL) {
        Py_BEGIN_ALLOW_THREADS
        size = mixing_encode_block(buffer, mixing->bits.buf, mixing->buckets.buf, mixing->copied,
                                   mixing->count, mixing->known, mixing->state, written);
        Py_END_ALLOW_THREADS
        int whole = 1;
        for (size_t i = 0; i < mixing->count; i++) {
            PyObject *end = PyLong_FromSize_t(written[i]);
            whole &= end != NULL && PyTuple_SetItem(ends, (Py_ssize_t)i, end) == 0;
        }
        if (whole)
            result = Py_BuildValue("(y#O)", buffer, (Py_ssize_t)size, ends);
    } else if (*error != '\0')
        refuse(error);
    Py_XDECREF(ends);
    PyMem_Free(buffer);
    PyMem_Free(written);
    release_mixing(mixing);
    return result;
}

static PyObject *mixing_decode(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    static char *names[] = {"data", "buckets", "parts", "tables", "out", NULL};
    const char *error = "";
    Mixing *mixing = PyMem_Calloc(1, sizeof *mixing);
    if (mixing == NULL)
        return PyErr_NoMemory();
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&O&:mixing_decode", names, readable,
                                    &mixing->data, readable, &mixing->buckets, readable,
                                    &mixing->parts, readable, &mixing->tables, writable,
                                    &mixing->bits))
        error = prepare_mixing(mixing);
    if (error == NULL) {
        Py_BEGIN_ALLOW_THREADS
        error = mixing_decode_block(mixing->bits.buf, mixing->data.buf, (size_t)mixing->data.len,
                                    mixing->buckets.buf, mixing->copied, mixing->count,
                                    mixing->known, mixing->state);
        Py_END_ALLOW_THREADS
    }
    release_mixing(mixing);
    return outcome(error);
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_VARARGS | METH_KEYWORDS, NULL}

static PyMethodDef methods[] = {
    METHOD(philox4x32), METHOD(quantiles), METHOD(rans_encode), METHOD(rans_decode),
    METHOD(runs_encode), METHOD(runs_decode), METHOD(expand), METHOD(expand_normal),
    METHOD(top_k), METHOD(keep_largest), METHOD(magnitude_gradient),
    METHOD(mixing_encode), METHOD(mixing_decode), {0},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    fill_kept_words();
    return PyModuleDef_Init(&definition);
}
