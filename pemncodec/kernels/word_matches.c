/* Words whose upper bits are in a table: where a tensor may begin among those of a generator. */
#include <string.h>

#include "kernels.h"
#include "mersenne.h"

enum { INDEX_BITS = 16, TABLE = 1 << INDEX_BITS };

const char *match_words(Bytes words, uint64_t bits, Bytes table, Room out, uint64_t *count)
{
    size_t others = INDEX_BITS / (size_t)bits - 1, number = words.size / 4;
    uint64_t index = 0;
    *count = 0;
    if (words.size % 4 != 0)
        return "words";
    if (INDEX_BITS % bits != 0)
        return "bits";
    if (table.size != TABLE)
        return "table";
    if (out.size / 8 < number)
        return "out";
    for (size_t i = 0; i < number; i++) {
        index = index << bits | number_at(words, i) >> (32 - bits);
        if (i < others)
            continue;
        if (table.at[index & (TABLE - 1)] & 1) {
            uint64_t match = (uint64_t)(i - others) << INDEX_BITS | (index & (TABLE - 1));
            memcpy(out.at + 8 * (*count)++, &match, 8);
        }
    }
    return NULL;
}
