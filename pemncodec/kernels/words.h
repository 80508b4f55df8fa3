/* Arithmetic on sizes and words. */
#ifndef PEMNCODEC_WORDS_H
#define PEMNCODEC_WORDS_H

#include <stddef.h>
#include <stdint.h>

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Position of the lowest bit; word != 0. */
static inline unsigned lowest_bit(uint64_t word)
{
#ifdef __GNUC__
    return (unsigned)__builtin_ctzll(word);
#else
    unsigned position = 0;
    for (; (word & 1) == 0; word >>= 1)
        position++;
    return position;
#endif
}

static inline uint64_t load64(const unsigned char *bytes, size_t size) /* little-endian, 1 to 8 */
{
    uint64_t word = 0;
    for (size_t i = 0; i < size; i++)
        word |= (uint64_t)bytes[i] << (8 * i);
    return word;
}

#endif
