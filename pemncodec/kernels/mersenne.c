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

/* Of a word that a seed is spread to, the next one, up to its number. */
static inline uint32_t spread(uint32_t word)
{
    return 1812433253u * (word ^ (word >> 30));
}

const char *mersenne_seed(uint64_t seed, Room out)
{
    uint32_t state[STATE] = {(uint32_t)seed};
    if (out.size != sizeof state)
        return "out";
    for (uint32_t i = 1; i < STATE; i++)
        state[i] = spread(state[i - 1]) + i;
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

/* ---- Back ---- */

/* `twist` of two neighbours, turned back: the highest bit of the upper, the others of the lower. */
static inline uint32_t untwist(uint32_t twisted)
{
    uint32_t odd = twisted >> 31;
    return ((twisted ^ ((0u - odd) & MERSENNE_MATRIX)) << 1) | odd;
}

/* The word that is in front of `word` of a state. */
static inline uint32_t before(const uint32_t *word)
{
    uint32_t upper = untwist(word[STATE] ^ word[MIDDLE]);
    uint32_t lower = untwist(word[STATE - 1] ^ word[MIDDLE - 1]);
    return (upper & 0x80000000u) | (lower & 0x7FFFFFFFu);
}

/* Writes the state before the one in the second half of `words` into the first half. Returns whether
 * the words of a seed may begin there: of one of 2^32 others, too. */
#define PREVIOUS_STATE(NAME, TARGET) \
    TARGET static bool NAME(uint32_t *words) \
    { \
        uint32_t any = 0; \
        for (int i = STATE - MIDDLE + 1; i < STATE; i++) \
            words[i] = before(words + i); \
        for (int i = 0; i < STATE - MIDDLE + 1; i++) \
            words[i] = before(words + i); \
        for (int i = 1; i <= STATE; i++) \
            any |= words[i + 1] - spread(words[i]) == 2; \
        return any != 0; \
    }
VERSIONS(PREVIOUS_STATE, previous_state)

/* Of the first only the highest bit is part of a state. */
static bool is_seeding(const uint32_t *words)
{
    for (uint32_t i = 2; i < STATE; i++)
        if (words[i] - spread(words[i - 1]) != i)
            return false;
    return true;
}

const char *mersenne_rewind(Room state, uint64_t blocks, int64_t *back)
{
    uint32_t words[2 * STATE];
    const size_t size = sizeof words / 2;
    if (state.size != size)
        return "state";
    memcpy(words, state.at, size);
    *back = -1;
    for (uint64_t done = 1; done <= blocks && *back < 0; done++) {
        memcpy(words + STATE, words, size);
        if (!BEST(previous_state)(words))
            continue;
        for (int i = STATE - 1; i >= 0; i--) {
            if (is_seeding(words + i)) {
                *back = (int64_t)(done * STATE) - i;
                memmove(words, words + i, size);
                break;
            }
        }
    }
    memcpy(state.at, words, size);
    return NULL;
}
