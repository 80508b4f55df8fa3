/* Runs (section 6.3). */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "words.h"

/* Puts the run from `start` to a one, or to the end, behind `out`. */
static inline unsigned char *put_run(unsigned char *out, size_t run, size_t longest)
{
    for (; run >= longest; run -= longest)
        *out++ = (unsigned char)longest;
    *out++ = (unsigned char)run;
    return out;
}

/* Writes at most one run for each one, and one for every `longest` bits and the last. */
static size_t find_runs(const unsigned char *bits, size_t count, size_t longest, unsigned char *out)
{
    unsigned char *end = out;
    size_t start = 0;
    for (size_t at = 0; at < count; at += 64) {
        size_t left = count - at;
        uint64_t word = left >= 64 ? load64(bits + at / 8, 8) : load64(bits + at / 8, (left + 7) / 8);
        if (left < 64)
            word &= (UINT64_C(1) << left) - 1;
        for (; word != 0; word &= word - 1) {
            size_t one = at + lowest_bit(word);
            end = put_run(end, one - start, longest);
            start = one + 1;
        }
    }
    for (; start < count; start += smaller(longest, count - start))
        *end++ = (unsigned char)longest;
    return (size_t)(end - out);
}

static size_t count_ones(const unsigned char *bits, size_t size)
{
    size_t ones = 0;
    for (; size > 0; size--, bits++)
        for (unsigned byte = *bits; byte != 0; byte &= byte - 1)
            ones++;
    return ones;
}

const char *runs_encode(Bytes mask, uint64_t count, uint64_t longest, Coded *coded)
{
    *coded = (Coded){NULL, NULL, 0};
    if (mask.size != count / 8 + (count % 8 != 0))
        return "mask";
    /* A copy, so that the ones that were counted are those that are found. */
    unsigned char *copy = malloc(mask.size + 1);
    if (copy == NULL)
        return OUT_OF_MEMORY;
    memcpy(copy, mask.at, mask.size);
    unsigned char *runs = malloc(count_ones(copy, mask.size) + (size_t)(count / longest) + 1);
    if (runs != NULL)
        *coded = (Coded){runs, runs, find_runs(copy, (size_t)count, (size_t)longest, runs)};
    free(copy);
    return runs == NULL ? OUT_OF_MEMORY : NULL;
}

const char *runs_decode(Bytes runs, uint64_t longest, uint64_t count, Room out)
{
    size_t at = 0, j = 0;
    if (out.size != count / 8 + (count % 8 != 0))
        return "out";
    memset(out.at, 0, out.size);
    for (; j < runs.size && at < count; j++) {
        size_t run = runs.at[j], one = run < longest;
        if (run > longest)
            return "run too long";
        at += run;
        if (at < count)
            out.at[at / 8] |= (unsigned char)(one << (at % 8));
        else if (one)
            return "one behind the end";
        at += one;
    }
    return j < runs.size ? "runs left over" : at < count ? "runs missing" : NULL;
}
