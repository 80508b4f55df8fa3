/* The generator of torch's words (spec section 5.5), a state at a time. */
#ifndef PEMNCODEC_MERSENNE_H
#define PEMNCODEC_MERSENNE_H

#include <stdint.h>
#include <string.h>

#include "kernels.h"

enum { MERSENNE_STATE = 624, MERSENNE_MIDDLE = 397 }; /* words; the distance of two that make one */

static const uint32_t MERSENNE_MATRIX = 0x9908B0DFu;

/* Of two neighbours, what the word a state later is made of beside the one in the middle. */
static inline uint32_t twist(uint32_t upper, uint32_t lower)
{
    uint32_t both = (upper & 0x80000000u) | (lower & 0x7FFFFFFFu);
    return (both >> 1) ^ ((0u - (lower & 1)) & MERSENNE_MATRIX);
}

static inline uint32_t temper(uint32_t word)
{
    word ^= word >> 11;
    word ^= (word << 7) & 0x9D2C5680u;
    word ^= (word << 15) & 0xEFC60000u;
    return word ^ (word >> 18);
}

static inline uint32_t number_at(Bytes numbers, size_t index)
{
    uint32_t number;
    memcpy(&number, numbers.at + 4 * index, 4);
    return number;
}

static inline uint32_t parity(uint32_t word)
{
    word ^= word >> 16;
    word ^= word >> 8;
    word ^= word >> 4;
    word ^= word >> 2;
    word ^= word >> 1;
    return word & 1;
}

/* What a mask of bits after tempering is about, as a mask of bits before. */
static inline uint32_t before_tempering(uint32_t mask)
{
    uint32_t before = 0;
    for (int i = 0; i < 32; i++)
        before |= parity(temper((uint32_t)1 << i) & mask) << i;
    return before;
}

/* Moves a state on, and writes its 624 words. */
void next_words(uint32_t *state, uint32_t *words);

#endif
