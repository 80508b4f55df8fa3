/* Static range coder, rANS (section 6.3). */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "words.h"

enum { SCALE_BITS = 15, SCALE = 1 << SCALE_BITS, LOWEST = 1 << 16, MANY_LANES = 8 };

static bool is_number_of_lanes(uint64_t lanes) { return lanes == 1 || lanes == MANY_LANES; }

/* Copies the frequencies, so that they stay as they were checked. Returns the error, or NULL. */
static const char *copy_frequencies(uint32_t *copy, Bytes frequencies)
{
    uint64_t sum = 0;
    if (frequencies.size != 256 * sizeof *copy)
        return "frequencies";
    memcpy(copy, frequencies.at, frequencies.size);
    for (int s = 0; s < 256; s++)
        sum += copy[s];
    return sum == SCALE ? NULL : "frequencies";
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
    uint32_t x[MANY_LANES], cumulative = 0, seen = 0;
    for (int s = 0; s < 256; cumulative += frequencies[s++]) {
        uint32_t f = frequencies[s];
        uint64_t reciprocal = f ? ((UINT64_C(1) << RECIPROCAL_BITS) + f - 1) / f : 0;
        ranges[s] = (Range){reciprocal, f, f ? cumulative : UNUSED};
    }
    for (size_t lane = 0; lane < MANY_LANES; lane++)
        x[lane] = LOWEST;
    while (count % lanes != 0) {
        uint32_t *state = &x[(count - 1) % lanes];
        ENCODE(*state);
    }
    uint32_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], x4 = x[4], x5 = x[5], x6 = x[6], x7 = x[7];
    while (lanes == 1 && count > 0)
        ENCODE(x0);
    while (lanes == MANY_LANES && count > 0) {
        ENCODE(x7), ENCODE(x6), ENCODE(x5), ENCODE(x4);
        ENCODE(x3), ENCODE(x2), ENCODE(x1), ENCODE(x0);
    }
    x[0] = x0, x[1] = x1, x[2] = x2, x[3] = x3, x[4] = x4, x[5] = x5, x[6] = x6, x[7] = x7;
    end -= 4 * lanes;
    for (size_t i = 0; i < 4 * lanes; i++)
        end[i] = (unsigned char)(x[i / 4] >> (8 * (i % 4)));
    return seen & UNUSED ? NULL : end;
}

const char *rans_encode(Bytes symbols, Bytes frequencies, uint64_t lanes, Coded *coded)
{
    uint32_t copy[256];
    *coded = (Coded){NULL, NULL, 0};
    if (!is_number_of_lanes(lanes))
        return "lanes";
    const char *error = copy_frequencies(copy, frequencies);
    if (error != NULL)
        return error;
    if (symbols.size > (SIZE_MAX - 4 * MANY_LANES) / 2)
        return OUT_OF_MEMORY;
    size_t room = 4 * (size_t)lanes + 2 * symbols.size;
    unsigned char *memory = malloc(room);
    if (memory == NULL)
        return OUT_OF_MEMORY;
    const unsigned char *start = encode(symbols.at, symbols.size, copy, (size_t)lanes, memory + room);
    *coded = (Coded){memory, start, start == NULL ? 0 : (size_t)(memory + room - start)};
    return start == NULL ? "symbol without frequency" : NULL;
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
    for (; lanes == MANY_LANES && at.count >= MANY_LANES && at.words <= last; at.count -= MANY_LANES) {
        DECODE(x0), DECODE(x1), DECODE(x2), DECODE(x3);
        DECODE(x4), DECODE(x5), DECODE(x6), DECODE(x7);
    }
    x[0] = x0, x[1] = x1, x[2] = x2, x[3] = x3, x[4] = x4, x[5] = x5, x[6] = x6, x[7] = x7;
    return at;
}

static const char *decode(Bytes data, Bytes frequencies, uint64_t lanes_given, Room out, bool whole)
{
    Tables storage, *tables = &storage;
    uint32_t copy[256], x[MANY_LANES] = {0}, cumulative = 0;
    if (!is_number_of_lanes(lanes_given))
        return "lanes";
    size_t lanes = (size_t)lanes_given;
    const char *error = copy_frequencies(copy, frequencies);
    if (error != NULL)
        return error;
    if (data.size < 4 * lanes)
        return "too short";
    if (data.size % 2 != 0)
        return "odd length";
    for (size_t i = 0; i < 4 * lanes; i++)
        x[i / 4] |= (uint32_t)data.at[i] << (8 * (i % 4));
    for (size_t lane = 0; lane < lanes; lane++)
        if (x[lane] < LOWEST)
            return "initial state out of range";
    for (int s = 0; s < 256; cumulative += copy[s++]) {
        memset(tables->symbol + cumulative, s, copy[s]);
        tables->range[s] = cumulative << 16 | copy[s];
    }
    const unsigned char *end = data.at + data.size;
    Cursor at = {data.at + 4 * lanes, out.at, out.size};
    at = decode_rows(at, end - 2 * lanes, tables, x, lanes);
    /* A row reads at most 2 * lanes bytes. Where fewer are left, they are read from a copy with zeros
     * behind it: its last row starts at their end at the latest, and fewer symbols than lanes follow. */
    unsigned char tail[(2 + 2 + 2) * MANY_LANES] = {0};
    size_t left = (size_t)(end - at.words), copied = smaller(left, 2 * lanes);
    memcpy(tail, at.words, copied);
    at.words = tail;
    at = decode_rows(at, tail + copied, tables, x, lanes);
    for (size_t lane = 0; at.count < lanes && lane < at.count; lane++)
        DECODE(x[lane]);
    size_t used = (size_t)(at.words - tail);
    if (used > left)
        return "too short";
    if (!whole)
        return NULL;
    if (used != left)
        return "words left over";
    for (size_t lane = 0; lane < lanes; lane++)
        if (x[lane] != LOWEST)
            return "final state";
    return NULL;
}

const char *rans_decode(Bytes data, Bytes frequencies, uint64_t lanes, Room out)
{
    return decode(data, frequencies, lanes, out, true);
}

const char *rans_decode_first(Bytes data, Bytes frequencies, uint64_t lanes, Room out)
{
    return decode(data, frequencies, lanes, out, false);
}
