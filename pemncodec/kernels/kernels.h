/* The inner loops, in C99 and without Python: `_native.c` calls them, `*_twin.py` document them.
 *
 * A function here has the name, the arguments, the results and the errors of its twin in NumPy. Its
 * numbers are in the ranges that the twin states. It returns NULL, or what is wrong: a message that
 * the twin lists, or OUT_OF_MEMORY.
 *
 * Other threads may write to any of the memory during a call: so what bounds an access is copied
 * before it is checked. Memory may be unaligned and may overlap, so it is accessed as bytes or through
 * memcpy only. Numbers in coded data are put together from bytes; all others are in native byte order.
 */
#ifndef PEMNCODEC_KERNELS_H
#define PEMNCODEC_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const unsigned char *at;
    size_t size;
} Bytes; /* that are read */

typedef struct {
    unsigned char *at;
    size_t size;
} Room; /* for bytes that are written */

typedef struct {
    void *memory; /* free() it after every call, also after one that failed */
    const unsigned char *at;
    size_t size;
} Coded; /* bytes that an encoder made */

#define OUT_OF_MEMORY "out of memory"

/* Fills tables. Call it once, before any other function. */
void prepare_kernels(void);

/* ---- generator.c: words and values of a seed (spec section 5) ---- */

/* Fills `out` with 32-bit words of a stream, from word `start` on. */
const char *philox4x32(Room out, uint64_t seed, uint64_t stream, uint64_t start);

/* Writes the entry of `table`, 4096 floats, that the upper 12 bits of each word choose. */
const char *quantiles(Bytes words, Bytes table, Room out);

/* ---- mersenne.c: words of MT19937 (spec section 5.5) ---- */

enum { MERSENNE_BLOCKS = 1 << 16 };

/* Writes the state of a seed, 624 words, before its first output. */
const char *mersenne_seed(uint64_t seed, Room out);

/* Moves a state on by so many times 624 words, at most MERSENNE_BLOCKS. */
const char *mersenne_advance(Room state, uint64_t blocks);

/* Moves a state back by so many times 624 words, or to the 624 words that a seed was spread to, if they
 * are on the way: `back` is then the number of words up to there, else -1. */
const char *mersenne_rewind(Room state, uint64_t blocks, int64_t *back);

/* Fills `out` with the words that follow a state and `skip` words more, less than 624. */
const char *mersenne_words(Bytes state, uint64_t skip, Room out);

/* ---- torch_values.c: words to values of torch's CPU kernels (spec section 5.5) ---- */

/* Writes normal values, in groups of 16, fused or not. */
const char *torch_normal(Bytes words, bool fused, Room out);

/* Writes uniform values from `bounds`, the lowest and the highest, two floats; fused or not. */
const char *torch_uniform(Bytes words, bool fused, Bytes bounds, Room out);

/* ---- expand.c: values under a mask ---- */

/* Writes items of `values` from `offset` on, again and again, and zeros where the mask's bit is 0; to be
 * read at once, or later. */
const char *expand(Bytes values, uint64_t itemsize, uint64_t offset, Bytes mask, Room out,
                   bool read_next, uint64_t threads);

/* Writes quantiles of the words of a stream from `start` on, and zeros where the mask's bit is 0. */
const char *expand_normal(uint64_t seed, uint64_t stream, uint64_t start, Bytes table, Bytes mask,
                          Room out);

/* Writes values of torch from the words that follow a state and `skip` words more, times a float, and
 * zeros where the mask's bit is 0: uniform ones from `bounds`, as above, or normal ones without. */
const char *expand_drawn(Bytes state, uint64_t skip, bool fused, Bytes bounds, Bytes scale, Bytes mask,
                         Room out);

/* ---- rans.c: static range coder (spec section 6.3) ---- */

/* Codes symbols by their frequencies, 256 of uint32, in 1 or 8 lanes. */
const char *rans_encode(Bytes symbols, Bytes frequencies, uint64_t lanes, Coded *coded);

/* Decodes as many symbols as `out` has bytes; what it holds after an error is undefined. */
const char *rans_decode(Bytes data, Bytes frequencies, uint64_t lanes, Room out);

/* The same of data with more symbols, whose end is not looked at. */
const char *rans_decode_first(Bytes data, Bytes frequencies, uint64_t lanes, Room out);

/* ---- runs.c: masks as runs of zeros (spec section 6.3) ---- */

/* Cuts a mask of `count` bits into runs of at most `longest`, 1 to 255: a byte each. */
const char *runs_encode(Bytes mask, uint64_t count, uint64_t longest, Coded *coded);

/* Puts a mask together of runs; what `out` holds after an error is undefined. */
const char *runs_decode(Bytes runs, uint64_t longest, uint64_t count, Room out);

/* ---- mixing.c: context-mixing coder of masks (spec section 6.4) ---- */

enum { MIXING_PART = 48 }; /* bytes of a row of `parts` */

/* Codes a block of masks, a byte for each bit. `ends`, a number for each part, tells how many bytes
 * were written at its end. */
const char *mixing_encode(Bytes bits, Bytes buckets, Bytes parts, Bytes tables, Coded *coded,
                          size_t *ends);

/* Decodes a block of masks; what `out` holds after an error is undefined. */
const char *mixing_decode(Bytes data, Bytes buckets, Bytes parts, Bytes tables, Room out);

/* ---- selection.c: the largest values ---- */

/* Writes 1 for the `kept` largest of `values`, floats, and 0 for the others: a byte each. */
const char *top_k(Bytes values, uint64_t kept, Room out);

/* Writes the items of `values` whose scores, or their magnitudes, are the largest, and zeros. */
const char *keep_largest(Bytes scores, bool magnitude, uint64_t kept, Bytes values, Room out,
                         uint64_t threads);

/* ---- mersenne_solve.c: the seed behind weights ---- */

/* Looks for the state of MT19937, 624 words, of which equations hold; `left` is the number of unknowns
 * that they leave, or -1 where they contradict each other. */
const char *mersenne_solve(Bytes words, Bytes masks, Bytes parities, Room out, int64_t *left);

/* ---- mersenne_seeds.c: all seeds behind weights ---- */

enum { MERSENNE_PLACES = 64 };

/* Turns equations over bits of words into ones over the 624 words that a seed is spread to: `out` has a
 * row for each of these, and in it a mask for each equation. */
const char *mersenne_pull_back(Bytes words, Bytes masks, Room out);

/* Codes the seeds among `count` from `first` on of which all equations about one of the places hold,
 * with the place in the upper half of a number of 64 bits. */
const char *mersenne_seeds(Bytes masks, Bytes parities, uint64_t places, uint64_t first,
                           uint64_t count, Coded *coded);

/* ---- word_matches.c: where weights may begin among a seed's words ---- */

/* Writes where words that follow each other have an index of which `table`, 2^16 bytes, is odd: the
 * number of the first of them, times 2^16, and the index, which takes the upper `bits` of each. */
const char *match_words(Bytes words, uint64_t bits, Bytes table, Room out, uint64_t *count);

/* ---- gradient.c: the gradient of scores ---- */

/* Writes gradient * value * sign(score), floats. */
const char *magnitude_gradient(Bytes gradient, Bytes values, Bytes scores, Room out,
                               uint64_t threads);

/* ---- product.c, column_product.c, signed_product.c: products of inputs and masked weights ---- */

/* Writes the products of inputs and a matrix of `columns`, of repeated values under a mask; floats. */
const char *packed_product(Bytes bits, Bytes values, uint64_t offset, uint64_t columns, Bytes inputs,
                           Room out, uint64_t threads);

/* As above, of a matrix of `rows` that is stored transposed: as many as there are of each input. */
const char *column_product(Bytes bits, Bytes values, uint64_t offset, uint64_t rows, Bytes inputs,
                           Room out, uint64_t threads);

/* As above, of a constant, a float, with repeated signs. */
const char *signed_product(Bytes bits, Bytes signs, uint64_t period, uint64_t offset, Bytes constant,
                           uint64_t columns, Bytes inputs, Room out, uint64_t threads);

#endif
