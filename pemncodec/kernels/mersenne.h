/* The generator of torch's words (spec section 5.5), a state at a time. */
#ifndef PEMNCODEC_MERSENNE_H
#define PEMNCODEC_MERSENNE_H

#include <stdint.h>

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

/* Moves a state on, and writes its 624 words. */
void next_words(uint32_t *state, uint32_t *words);

#endif
