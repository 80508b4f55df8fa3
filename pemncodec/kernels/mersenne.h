/* The generator of torch's words (spec section 5.5), a state at a time. */
#ifndef PEMNCODEC_MERSENNE_H
#define PEMNCODEC_MERSENNE_H

#include <stdint.h>

enum { MERSENNE_STATE = 624 };

/* Moves a state on, and writes its 624 words. */
void next_words(uint32_t *state, uint32_t *words);

#endif
