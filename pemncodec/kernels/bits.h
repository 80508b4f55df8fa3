/* Packed bits, of which bit i is bit i % 8 of byte i / 8. */
#ifndef PEMNCODEC_BITS_H
#define PEMNCODEC_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "processor.h"
#include "words.h"

/* All bits of the items of 4 bytes that a mask byte keeps: loaded, not computed, they cost next to
 * nothing. prepare_kernels fills them. */
extern uint32_t kept_words[256][8];

static inline uint64_t word_at(const unsigned char *bytes)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
#else
    return load64(bytes, 8);
#endif
}

/* Copies `count` bits from bit `start` on to the lowest bits of words; what is left of the last word
 * is 0. */
static ALWAYS_INLINE void copy_bits(uint64_t *restrict words, Bytes from, uint64_t start, size_t count)
{
    const unsigned char *bytes = from.at + start / 8;
    size_t left = from.size - (size_t)(start / 8), whole = count / 64;
    unsigned shift = (unsigned)(start % 8);
    if (shift == 0)
        for (size_t i = 0; i < whole; i++)
            words[i] = word_at(bytes + 8 * i);
    else /* the last bits of a word are in a ninth byte */
        for (size_t i = 0; i < whole; i++)
            words[i] = word_at(bytes + 8 * i) >> shift | word_at(bytes + 8 * i + 1) << (8 - shift);
    if (count % 64 > 0) {
        bytes += 8 * whole;
        left -= 8 * whole;
        uint64_t word = load64(bytes, smaller(left, 8)) >> shift;
        if (shift > 0 && left > 8)
            word |= (uint64_t)bytes[8] << (64 - shift);
        words[whole] = word & (((uint64_t)1 << count % 64) - 1);
    }
}

#endif
