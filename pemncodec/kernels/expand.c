/* Values of a prototype or a seed under a mask. */
#include <string.h>

#include "bits.h"
#include "generator.h"
#include "kernels.h"
#include "mersenne.h"
#include "parallel.h"
#include "processor.h"
#include "torch_values.h"
#include "words.h"
#include "writing.h"

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

/* Writes 8 entries of `table`, which the upper bits of the words choose, where all bits are kept. */
static ALWAYS_INLINE void put_chosen(unsigned char *out, const uint32_t *words, const uint32_t *table,
                                     const uint32_t *kept, bool past_cache)
{
    /* One by one: where processors have an instruction for it, that takes longer. */
#define ENTRY(i) (int)table[words[i] >> 20]
    __m128i front = _mm_setr_epi32(ENTRY(0), ENTRY(1), ENTRY(2), ENTRY(3));
    __m128i back = _mm_setr_epi32(ENTRY(4), ENTRY(5), ENTRY(6), ENTRY(7));
#undef ENTRY
    front = _mm_and_si128(front, _mm_loadu_si128((const __m128i *)kept));
    back = _mm_and_si128(back, _mm_loadu_si128((const __m128i *)kept + 1));
    if (past_cache) {
        _mm_stream_si128((__m128i *)out, front);
        _mm_stream_si128((__m128i *)out + 1, back);
    } else {
        _mm_storeu_si128((__m128i *)out, front);
        _mm_storeu_si128((__m128i *)out + 1, back);
    }
}
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

static ALWAYS_INLINE void put_chosen(unsigned char *out, const uint32_t *words, const uint32_t *table,
                                     const uint32_t *kept, bool past_cache)
{
    uint32_t chosen[8];
    for (int i = 0; i < 8; i++)
        chosen[i] = table[words[i] >> 20] & kept[i];
    memcpy(out, chosen, sizeof chosen);
    (void)past_cache;
}
#endif

/* All bits of the words that a mask byte keeps, of items of one to 16 bytes. */
static uint8_t kept_mask_1[256][8];
static uint16_t kept_mask_2[256][8];
uint32_t kept_words[256][8];
static uint64_t kept_mask_8[256][8], kept_mask_16[256][16];

/* Copies groups of 8 items, each of PARTS words, with zeros where the mask's bit is 0. */
#define MASKER(NAME, WORD, PARTS, KEPT) \
    static void NAME(unsigned char *out, const unsigned char *values, const unsigned char *mask, \
                     size_t groups, bool past_cache) \
    { \
        WORD words[8 * PARTS]; \
        past_cache = past_cache && can_pass_cache(out, sizeof words); \
        for (; groups > 0; groups--, mask++, out += sizeof words, values += sizeof words) { \
            memcpy(words, values, sizeof words); \
            for (int i = 0; i < 8 * PARTS; i++) \
                words[i] &= KEPT[*mask][i]; \
            if (past_cache) \
                store_past_cache(out, words, sizeof words); \
            else \
                memcpy(out, words, sizeof words); \
        } \
    }
MASKER(mask_1, uint8_t, 1, kept_mask_1)
MASKER(mask_2, uint16_t, 1, kept_mask_2)
MASKER(mask_4, uint32_t, 1, kept_words)
MASKER(mask_8, uint64_t, 1, kept_mask_8)
MASKER(mask_16, uint64_t, 2, kept_mask_16)

void prepare_kernels(void)
{
    for (int byte = 0; byte < 256; byte++)
        for (int i = 0; i < 8; i++)
            if (byte & (1 << i)) {
                kept_mask_1[byte][i] = UINT8_MAX;
                kept_mask_2[byte][i] = UINT16_MAX;
                kept_words[byte][i] = UINT32_MAX;
                kept_mask_8[byte][i] = UINT64_MAX;
                kept_mask_16[byte][2 * i] = kept_mask_16[byte][2 * i + 1] = UINT64_MAX;
            }
}

enum { PART_ITEMS = 1 << 16, PAST_CACHE_FROM = 1 << 20 }; /* bytes */

typedef struct {
    Masker *masker;
    Bytes values, mask;
    Room out;
    size_t itemsize, offset, part; /* items of each part */
    bool past_cache;
} Expansion;

/* Writes `count` items from `start` on. */
static void expand_items(const Expansion *all, unsigned char *out, size_t start, size_t count,
                         bool past_cache)
{
    const unsigned char *mask = all->mask.at + start / 8;
    unsigned char group[8 * 16] = {0};
    size_t item = all->itemsize, period = all->values.size / item, taken;
    size_t offset = (all->offset + start) % period;
    for (; count > 0; count -= taken, out += taken * item) {
        size_t groups = smaller(count, period - offset) / 8;
        taken = groups > 0 ? 8 * groups : smaller(count, 8);
        if (groups > 0) {
            all->masker(out, all->values.at + offset * item, mask, groups, past_cache);
            offset = (offset + taken) % period;
            mask += groups;
        } else { /* 8 items that wrap, or fewer at the end */
            for (size_t i = 0; i < taken; i++, offset = (offset + 1) % period)
                memcpy(group + i * item, all->values.at + offset * item, item);
            all->masker(group, group, mask++, 1, false);
            memcpy(out, group, taken * item);
        }
    }
}

/* Those values that are read for `count` items from `start` on. */
static Bytes values_from(const Expansion *all, size_t start, size_t count)
{
    size_t item = all->itemsize, period = all->values.size / item;
    size_t offset = (all->offset + start) % period;
    if (count > period - offset)
        return all->values;
    return (Bytes){all->values.at + offset * item, count * item};
}

static void expand_part(void *expansion, size_t part)
{
    const Expansion *all = expansion;
    Writing writing;
    size_t item = all->itemsize, start = part * all->part, taken;
    size_t end = start + smaller(all->part, all->out.size / item - start);
    Room own = {all->out.at + start * item, (end - start) * item};
    Bytes mask = {all->mask.at + start / 8, (end - start + 7) / 8};
    start_writing(&writing, own, values_from(all, start, end - start), mask);
    for (; start < end; start += taken) {
        taken = smaller(end - start, WRITTEN_AT_ONCE / item);
        expand_items(all, next_place(&writing), start, taken, all->past_cache && in_memory(&writing));
        has_written(&writing, taken * item);
    }
    finish_stores();
}

/* Repeats few values until they fill `tile`, so that runs without a wrap are long. */
static Bytes repeated(Bytes values, unsigned char *tile, size_t size)
{
    size_t filled = values.size, taken;
    if (filled > size / 2)
        return values;
    memcpy(tile, values.at, filled);
    for (size_t full = size / filled * filled; filled < full; filled += taken) {
        taken = smaller(filled, full - filled);
        memcpy(tile + filled, tile, taken);
    }
    return (Bytes){tile, filled};
}

const char *expand(Bytes values, uint64_t itemsize, uint64_t offset, Bytes mask, Room out,
                   bool read_next, uint64_t threads)
{
    unsigned char tile[1 << 14];
    Masker *masker = itemsize == 1 ? mask_1 : itemsize == 2 ? mask_2 : itemsize == 4 ? mask_4
                     : itemsize == 8 ? mask_8 : itemsize == 16 ? mask_16 : NULL;
    if (masker == NULL)
        return "itemsize";
    size_t item = (size_t)itemsize, count = out.size / item, period = values.size / item;
    if (period == 0 || values.size % item != 0)
        return "values";
    if (offset >= period)
        return "offset";
    if (out.size % item != 0)
        return "out";
    if (mask.size != (count + 7) / 8)
        return "mask";
    if (count == 0)
        return NULL;
    bool past_cache = !read_next && out.size >= PAST_CACHE_FROM;
    size_t part = threads > 1 ? PART_ITEMS : count;
    Expansion all = {masker, repeated(values, tile, sizeof tile), mask, out, item, (size_t)offset,
                     part, past_cache};
    run_parts(expand_part, &all, (count + part - 1) / part, threads);
    return NULL;
}

/* ---- Generated values under a mask ---- */

/* Writes values of 4 bytes, with zeros where the mask's bit is 0; there is room for whole groups of 8. */
static void put_masked(unsigned char *out, unsigned char *values, const unsigned char *mask,
                       size_t count, bool past_cache)
{
    if (count % 8 == 0)
        mask_4(out, values, mask, count / 8, past_cache);
    else {
        mask_4(values, values, mask, (count + 7) / 8, false);
        memcpy(out, values, 4 * count);
    }
}

/* Writes quantiles of `count` words, with zeros where the mask's bit is 0. */
static void choose_masked(unsigned char *out, size_t count, const uint32_t *words,
                          const uint32_t *table, const unsigned char *mask, bool past_cache)
{
    past_cache = past_cache && can_pass_cache(out, 32);
    for (; count >= 8; count -= 8, out += 32, words += 8, mask++)
        put_chosen(out, words, table, kept_words[*mask], past_cache);
    if (count > 0) {
        unsigned char group[32];
        put_chosen(group, words, table, kept_words[*mask], false);
        memcpy(out, group, 4 * count);
    }
}

/* As above, of the words from `start` on: a batch at a time, which never leaves the nearest cache. */
static void generate_masked(Room out, uint64_t seed, uint64_t stream, uint64_t start,
                            const uint32_t *table, Bytes mask)
{
    uint32_t words[4 + 4 * BLOCKS]; /* first the last block of the batch before */
    uint64_t block = start / 4;
    size_t count = out.size / 4, skip = (size_t)(start % 4), taken;
    bool past_cache = out.size >= PAST_CACHE_FROM;
    Writing writing;
    start_writing(&writing, out, (Bytes){NULL, 0}, mask);
    if (skip > 0) {
        uint32_t batch[4 * BLOCKS];
        generate_words(batch, block++, stream, seed);
        memcpy(words, batch, 4 * sizeof *words);
    } else
        skip = 4;
    for (size_t done = 0; done < count; done += taken, block += BLOCKS) {
        taken = smaller(4 * BLOCKS, count - done);
        generate_words(words + 4, block, stream, seed);
        choose_masked(next_place(&writing), taken, words + skip, table, mask.at + done / 8,
                      past_cache && in_memory(&writing));
        has_written(&writing, 4 * taken);
        memcpy(words, words + 4 * BLOCKS, 4 * sizeof *words);
    }
    finish_stores();
}

const char *expand_normal(uint64_t seed, uint64_t stream, uint64_t start, Bytes table, Bytes mask,
                          Room out)
{
    uint32_t copy[QUANTILES];
    size_t count = out.size / 4;
    if (table.size != sizeof copy)
        return "table";
    if (out.size % 4 != 0)
        return "out";
    if (mask.size != (count + 7) / 8)
        return "mask";
    if (count > 0 && count - 1 > UINT64_MAX - start)
        return "start";
    memcpy(copy, table.at, sizeof copy);
    generate_masked(out, seed, stream, start, copy, mask);
    return NULL;
}

/* As above, of what torch's CPU generator draws. */
static void draw_masked(Room out, uint32_t *state, size_t skip, const Drawn *drawn, float scale,
                        Bytes mask)
{
    uint32_t words[DRAWN_AT_ONCE + MERSENNE_STATE];
    float values[DRAWN_AT_ONCE];
    size_t count = out.size / 4, known = MERSENNE_STATE - skip, needed, taken;
    bool past_cache = out.size >= PAST_CACHE_FROM;
    Writing writing;
    start_writing(&writing, out, (Bytes){NULL, 0}, mask);
    next_words(state, words);
    memmove(words, words + skip, 4 * known);
    for (size_t done = 0; done < count; done += taken) {
        taken = smaller(DRAWN_AT_ONCE, count - done);
        needed = (taken + NORMAL_GROUP - 1) / NORMAL_GROUP * NORMAL_GROUP;
        for (; known < needed; known += MERSENNE_STATE)
            next_words(state, words + known);
        draw_values(drawn, words, needed, values);
        known -= needed;
        memmove(words, words + needed, 4 * known);
        for (size_t i = 0; i < needed; i++)
            values[i] *= scale;
        put_masked(next_place(&writing), (unsigned char *)values, mask.at + done / 8, taken,
                   past_cache && in_memory(&writing));
        has_written(&writing, 4 * taken);
    }
    finish_stores();
}

const char *expand_drawn(Bytes state, uint64_t skip, bool fused, Bytes bounds, Bytes scale, Bytes mask,
                         Room out)
{
    uint32_t copy[MERSENNE_STATE];
    float low_high[2], factor;
    Drawn drawn = {true, fused, 0, 0};
    size_t count = out.size / 4;
    if (state.size != sizeof copy)
        return "state";
    if (bounds.size != 0 && bounds.size != sizeof low_high)
        return "bounds";
    if (bounds.size != 0) {
        memcpy(low_high, bounds.at, sizeof low_high);
        if (!uniform_between(low_high, fused, &drawn))
            return "bounds";
    }
    if (scale.size != sizeof factor)
        return "scale";
    if (out.size % 4 != 0)
        return "out";
    if (mask.size != (count + 7) / 8)
        return "mask";
    memcpy(copy, state.at, sizeof copy);
    memcpy(&factor, scale.at, sizeof factor);
    draw_masked(out, copy, (size_t)skip, &drawn, factor, mask);
    return NULL;
}
