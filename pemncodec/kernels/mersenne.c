/* Words of MT19937 (section 5.5). */
#include "mersenne.h"

#include <string.h>

#include "kernels.h"
#include "processor.h"
#include "words.h"

enum { STATE = MERSENNE_STATE, MIDDLE = MERSENNE_MIDDLE };

/* The next 624 words, before tempering, in place of those that they follow. */
#define NEXT_STATE(NAME, TARGET) \
    TARGET static void NAME(uint32_t *state) \
    { \
        int i = 0; \
        for (; i < STATE - MIDDLE; i++) \
            state[i] = state[i + MIDDLE] ^ twist(state[i], state[i + 1]); \
        for (; i < STATE - 1; i++) \
            state[i] = state[i + MIDDLE - STATE] ^ twist(state[i], state[i + 1]); \
        state[i] = state[MIDDLE - 1] ^ twist(state[i], state[0]); \
    }
VERSIONS(NEXT_STATE, next_state)

#define TEMPER(NAME, TARGET) \
    TARGET static void NAME(const uint32_t *state, uint32_t *words) \
    { \
        for (int i = 0; i < STATE; i++) \
            words[i] = temper(state[i]); \
    }
VERSIONS(TEMPER, temper_state)

void next_words(uint32_t *state, uint32_t *words)
{
    BEST(next_state)(state);
    BEST(temper_state)(state, words);
}

const char *mersenne_seed(uint64_t seed, Room out)
{
    uint32_t state[STATE] = {(uint32_t)seed};
    if (out.size != sizeof state)
        return "out";
    for (uint32_t i = 1; i < STATE; i++)
        state[i] = 1812433253u * (state[i - 1] ^ (state[i - 1] >> 30)) + i;
    memcpy(out.at, state, sizeof state);
    return NULL;
}

const char *mersenne_advance(Room state, uint64_t blocks)
{
    uint32_t words[STATE];
    if (state.size != sizeof words)
        return "state";
    memcpy(words, state.at, sizeof words);
    for (; blocks > 0; blocks--)
        BEST(next_state)(words);
    memcpy(state.at, words, sizeof words);
    return NULL;
}

const char *mersenne_words(Bytes state, uint64_t skip, Room out)
{
    uint32_t before[STATE], words[STATE];
    if (state.size != sizeof before)
        return "state";
    if (out.size % 4 != 0)
        return "out";
    memcpy(before, state.at, sizeof before);
    for (size_t count = out.size / 4, taken; count > 0; count -= taken, skip = 0) {
        next_words(before, words);
        taken = smaller(STATE - (size_t)skip, count);
        memcpy(out.at, words + skip, 4 * taken);
        out.at += 4 * taken;
    }
    return NULL;
}
