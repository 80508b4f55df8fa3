/* What torch's CPU kernels make of words (spec section 5.5), in batches. */
#ifndef PEMNCODEC_TORCH_VALUES_H
#define PEMNCODEC_TORCH_VALUES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    NORMAL_GROUP = 16, /* values that are made together: 8 of a radius times a cosine, 8 times a sine */
    DRAWN_AT_ONCE = 64 * NORMAL_GROUP,
};

typedef struct {
    bool normal, fused;
    float low, span; /* of uniform values */
} Drawn;

/* Uniform values of two floats, the lowest and the highest; false where they are not finite. */
bool uniform_between(const float *bounds, bool fused, Drawn *drawn);

/* Makes at most DRAWN_AT_ONCE values, whole groups of normal ones. */
void draw_values(const Drawn *drawn, const uint32_t *words, size_t count, float *values);

#endif
