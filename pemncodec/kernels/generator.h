/* The generator of words (spec section 5), in batches. */
#ifndef PEMNCODEC_GENERATOR_H
#define PEMNCODEC_GENERATOR_H

#include <stdint.h>

enum {
    BLOCKS = 64, /* below 32, gcc unrolls the loops over blocks instead of vectorising them */
    QUANTILES = 4096,
};

/* Writes the 4 * BLOCKS words from `block` on. */
void generate_words(uint32_t *words, uint64_t block, uint64_t stream, uint64_t seed);

#endif
