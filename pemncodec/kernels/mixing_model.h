/* The model that predicts the bits of masks (spec section 6.4). */
#ifndef PEMNCODEC_MIXING_MODEL_H
#define PEMNCODEC_MIXING_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mixing_lanes.h"
#include "range_coder.h"

enum { BUCKETS = 32, KINDS = 3, CHANNELS = 1 << 14, POSITIONS = 512, RATES = 256 };

/* Of a row of `parts`: some weights of a tensor, in whole or in a piece of it. */
enum { WEIGHTS, COLUMNS, KERNEL, WIDTH, FIRST, DENSITY, FIELDS };

typedef struct {
    int32_t weights[LANES];
    uint32_t coded; /* saturates at 64 * RATES - 1 */
    uint32_t positions[POSITIONS * 8];
    uint32_t crossings[32 * 32];
    uint32_t near[9 * BUCKETS];
    uint32_t around[81 * 2];
} Kind;

typedef struct {
    uint32_t whole, signs[2];
} Column;

/* The pulls of the last weights, a byte each: that of weight i is at i & mask. */
typedef struct {
    unsigned char *at;
    uint64_t mask;
} Pulls;

typedef struct {
    Pulls pulls;
    int16_t stretch[STRETCH];
    uint16_t squash[SQUASH];
    unsigned char levels[STRETCH]; /* of each input, by the density of the part */
    int32_t rates[RATES];
    Kind kinds[KINDS];
    bool known[KINDS];
    uint64_t channels_of; /* rows of the part before */
    Column columns[CHANNELS];
    uint32_t column_buckets[CHANNELS][BUCKETS]; /* apart: half the cache lines are read */
    uint32_t rows[2][CHANNELS]; /* whole ones, of the part before and of this one */
} Model;

/* Gets a model ready whose bytes are all 0, but for `stretch` and `squash`, for `count` parts. Returns
 * false if there is no memory for `pulls`, which the caller frees. */
bool start_model(Model *model, const uint64_t *parts, size_t count);

void encode_part(Model *model, Coder *coder, const unsigned char *bits, const unsigned char *buckets,
                 const uint64_t *part);

/* Ends early if the coder misses bytes. */
void decode_part(Model *model, Coder *coder, unsigned char *bits, const unsigned char *buckets,
                 const uint64_t *part);

#endif
