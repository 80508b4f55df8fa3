/* What the counters of a weight do all at one time (spec section 6.4): predict its bit, learn from it.
 *
 * Inputs fit into 16 bits, and so do mixing weights less their lowest 7 bits: SSE2, which every x86-64
 * has, multiplies and adds eight pairs of them at a time. Counters lie far from each other. They are put
 * into vectors one by one, and taken out again, without memory in between: a load waits for several
 * stores that make its bytes. */
#ifndef PEMNCODEC_MIXING_LANES_H
#define PEMNCODEC_MIXING_LANES_H

#include <stdint.h>

#include "processor.h"

enum {
    STRETCH = 4096,
    SQUASH = 3072,
    SQUASH_HALF = SQUASH / 2,
    INPUTS = 11,
    LANES = 12,
    STEADY_INPUTS = 3, /* the first ones, whose counters adapt more slowly in the end */
    COUNT_BITS = 10,   /* of a counter: probability << COUNT_BITS | count */
    COUNTS = 1 << COUNT_BITS,
    SLOW = COUNTS - 1, /* counts above which a counter no longer adapts more slowly */
    FAST = 255,
    WEIGHT_MOST = (1 << 21) - 1,
};

/* Of a counter in `stretch`. */
static inline uint32_t input_index(uint32_t counter) { return counter >> 20; }

static inline int32_t clip(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

#ifdef HAVE_X86

typedef struct {
    __m128i of[3]; /* four lanes each: counters, or mixing weights */
} Lanes;

typedef struct {
    __m128i front, back; /* 8 and 3 lanes of 16 bits */
} Inputs;

static ALWAYS_INLINE Lanes load_lanes(const int32_t *from)
{
    const __m128i *at = (const __m128i *)from;
    return (Lanes){{_mm_loadu_si128(at), _mm_loadu_si128(at + 1), _mm_loadu_si128(at + 2)}};
}

static ALWAYS_INLINE void store_lanes(int32_t *to, const Lanes *lanes)
{
    for (int v = 0; v < 3; v++)
        _mm_storeu_si128((__m128i *)to + v, lanes->of[v]);
}

static ALWAYS_INLINE Lanes gather(const uint32_t *c)
{
    return (Lanes){{
        _mm_setr_epi32((int)c[0], (int)c[1], (int)c[2], (int)c[3]),
        _mm_setr_epi32((int)c[4], (int)c[5], (int)c[6], (int)c[7]),
        _mm_setr_epi32((int)c[8], (int)c[9], (int)c[10], (int)c[11]),
    }};
}

static ALWAYS_INLINE void scatter(uint32_t *c, const Lanes *lanes)
{
    for (int v = 0; v < 3; v++, c += 4) {
        __m128i four = lanes->of[v];
        c[0] = (uint32_t)_mm_cvtsi128_si32(four);
        c[1] = (uint32_t)_mm_cvtsi128_si32(_mm_shuffle_epi32(four, 1));
        c[2] = (uint32_t)_mm_cvtsi128_si32(_mm_shuffle_epi32(four, 2));
        c[3] = (uint32_t)_mm_cvtsi128_si32(_mm_shuffle_epi32(four, 3));
    }
}

static ALWAYS_INLINE Inputs inputs_of(const uint32_t *c, const int16_t *stretch)
{
#define INPUT(j) stretch[input_index(c[j])]
    return (Inputs){
        _mm_setr_epi16(INPUT(0), INPUT(1), INPUT(2), INPUT(3), INPUT(4), INPUT(5), INPUT(6), INPUT(7)),
        _mm_setr_epi16(INPUT(8), INPUT(9), INPUT(10), 0, 0, 0, 0, 0),
    };
#undef INPUT
}

/* The index in `squash` of the inputs' sum by their weights. */
static ALWAYS_INLINE uint32_t mix(const Inputs *inputs, const Lanes *weights)
{
    __m128i w[3];
    for (int v = 0; v < 3; v++)
        w[v] = _mm_srai_epi32(weights->of[v], 7);
    __m128i sum = _mm_add_epi32(_mm_madd_epi16(inputs->front, _mm_packs_epi32(w[0], w[1])),
                                _mm_madd_epi16(inputs->back, _mm_packs_epi32(w[2], w[2])));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(1, 0, 3, 2)));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(2, 3, 0, 1)));
    /* The upper half of a lane is sum >> 16. Saturation clips it, first above, then below. */
    const short above = INT16_MAX - (SQUASH_HALF - 1), below = above - SQUASH_HALF;
    sum = _mm_subs_epu16(_mm_adds_epi16(sum, _mm_set1_epi16(above)), _mm_set1_epi16(below));
    return (uint32_t)_mm_extract_epi16(sum, 1);
}

/* Moves the weights by the error, which fits into 16 bits. */
static ALWAYS_INLINE void learn(Lanes *weights, const Inputs *inputs, int32_t error)
{
    const __m128i half = _mm_set1_epi16(512);
    const __m128i least = _mm_set1_epi32(-WEIGHT_MOST), most = _mm_set1_epi32(WEIGHT_MOST);
    const __m128i pairs[3] = { /* an input and `half` in each lane */
        _mm_unpacklo_epi16(inputs->front, half),
        _mm_unpackhi_epi16(inputs->front, half),
        _mm_unpacklo_epi16(inputs->back, half),
    };
    __m128i times = _mm_set1_epi32((error & 0xFFFF) | 1 << 16), outside = _mm_setzero_si128();
    for (int v = 0; v < 3; v++) {
        __m128i step = _mm_srai_epi32(_mm_madd_epi16(pairs[v], times), 10);
        __m128i w = weights->of[v] = _mm_add_epi32(weights->of[v], step);
        outside = _mm_or_si128(outside, _mm_or_si128(_mm_cmpgt_epi32(w, most), _mm_cmpgt_epi32(least, w)));
    }
    if (__builtin_expect(_mm_movemask_epi8(outside) == 0, 1))
        return;
    int32_t clipped[LANES];
    store_lanes(clipped, weights);
    for (int j = 0; j < LANES; j++)
        clipped[j] = clip(clipped[j], -WEIGHT_MOST, WEIGHT_MOST);
    *weights = load_lanes(clipped);
}

/* Moves the counters' probabilities p towards a bit, by a share of 1 / (count + 3), and counts it. A p
 * has 22 bits, a share 16: their product >> 16 is put together of those of p's upper and lower halves. */
static ALWAYS_INLINE void adapt(Lanes *counters, unsigned bit)
{
    const __m128i count_mask = _mm_set1_epi32(COUNTS - 1), fast = _mm_set1_epi32(FAST);
    const __m128i most[3] = {_mm_setr_epi32(SLOW, SLOW, SLOW, FAST), fast, fast};
    for (int v = 0; v < 3; v++) {
        __m128i counter = counters->of[v], count = _mm_and_si128(counter, count_mask);
        /* No quotient is so near to the integer above it that binary32 rounds it up. */
        __m128 divisor = _mm_cvtepi32_ps(_mm_add_epi32(count, _mm_set1_epi32(3)));
        __m128i share = _mm_cvttps_epi32(_mm_div_ps(_mm_set1_ps(65536), divisor));
        __m128i share_above = _mm_slli_epi32(share, 16); /* which the upper halves meet */
        if (bit) { /* p + ((2^22 - 1 - p) * share >> 16) */
            __m128i rest = _mm_srli_epi32(_mm_xor_si128(counter, _mm_set1_epi32(-1)), COUNT_BITS);
            __m128i step = _mm_add_epi32(_mm_madd_epi16(rest, share_above), _mm_mulhi_epu16(rest, share));
            counter = _mm_andnot_si128(count_mask, counter);
            counter = _mm_add_epi32(counter, _mm_slli_epi32(step, COUNT_BITS));
        } else { /* p + (-p * share >> 16) = p * (2^16 - share) >> 16 */
            __m128i p = _mm_srli_epi32(counter, COUNT_BITS);
            __m128i kept = _mm_sub_epi16(_mm_setzero_si128(), share);
            __m128i upper = _mm_andnot_si128(_mm_set1_epi32(0xFFFF), p);
            upper = _mm_sub_epi32(upper, _mm_madd_epi16(p, share_above));
            counter = _mm_slli_epi32(_mm_add_epi32(upper, _mm_mulhi_epu16(p, kept)), COUNT_BITS);
        }
        count = _mm_min_epi16(_mm_add_epi32(count, _mm_set1_epi32(1)), most[v]);
        counters->of[v] = _mm_or_si128(counter, count);
    }
}

#else

typedef struct {
    int32_t of[LANES];
} Lanes;

typedef Lanes Inputs;

static ALWAYS_INLINE Lanes load_lanes(const int32_t *from)
{
    Lanes lanes;
    for (int j = 0; j < LANES; j++)
        lanes.of[j] = from[j];
    return lanes;
}

static ALWAYS_INLINE void store_lanes(int32_t *to, const Lanes *lanes)
{
    for (int j = 0; j < LANES; j++)
        to[j] = lanes->of[j];
}

static ALWAYS_INLINE Lanes gather(const uint32_t *c)
{
    Lanes lanes;
    for (int j = 0; j < LANES; j++)
        lanes.of[j] = (int32_t)c[j];
    return lanes;
}

static ALWAYS_INLINE void scatter(uint32_t *c, const Lanes *lanes)
{
    for (int j = 0; j < LANES; j++)
        c[j] = (uint32_t)lanes->of[j];
}

static ALWAYS_INLINE Inputs inputs_of(const uint32_t *c, const int16_t *stretch)
{
    Inputs inputs = {{0}};
    for (int j = 0; j < INPUTS; j++)
        inputs.of[j] = stretch[input_index(c[j])];
    return inputs;
}

/* The index in `squash` of the inputs' sum by their weights. */
static ALWAYS_INLINE uint32_t mix(const Inputs *inputs, const Lanes *weights)
{
    int32_t sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += inputs->of[j] * (weights->of[j] >> 7);
    return (uint32_t)(clip(sum >> 16, -SQUASH_HALF, SQUASH_HALF - 1) + SQUASH_HALF);
}

/* Moves the weights by the error. */
static ALWAYS_INLINE void learn(Lanes *weights, const Inputs *inputs, int32_t error)
{
    for (int j = 0; j < LANES; j++)
        weights->of[j] = clip(weights->of[j] + ((inputs->of[j] * error + 512) >> 10),
                              -WEIGHT_MOST, WEIGHT_MOST);
}

/* Moves the counters' probabilities p towards a bit, by a share of 1 / (count + 3), and counts it. */
static ALWAYS_INLINE void adapt(Lanes *counters, unsigned bit)
{
    const uint32_t flip = bit ? UINT32_MAX : 0, up = bit ? 0 : UINT16_MAX;
    for (int j = 0; j < LANES; j++) {
        uint32_t counter = (uint32_t)counters->of[j], count = counter & (COUNTS - 1);
        uint32_t most = j < STEADY_INPUTS ? SLOW : FAST;
        /* No quotient is so near to the integer above it that binary32 rounds it up. */
        uint32_t share = (uint32_t)(65536.0f / (float)(count + 3));
        uint32_t distance = (counter ^ flip) >> COUNT_BITS; /* from p to 0, or to 2^22 - 1 */
        distance -= (uint32_t)(((uint64_t)distance * share + up) >> 16);
        counter = (distance ^ flip) << COUNT_BITS;
        counters->of[j] = (int32_t)(counter | (count + (count < most)));
    }
}

#endif
#endif
