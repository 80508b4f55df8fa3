/* Values of a prototype or a seed under a mask. */
#include "_native.h"

typedef void Masker(unsigned char *out, const unsigned char *values, const unsigned char *mask,
                    size_t groups, bool past_cache);

#ifdef HAVE_X86
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

void fill_kept_words(void)
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

KERNEL(expand)
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

KERNEL(expand_normal)
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
