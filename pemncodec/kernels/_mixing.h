/* Context-mixing coder of masks (spec section 6.4), free of Python; mixing_twin.py documents it. */
#ifndef PEMNCODEC_MIXING_H
#define PEMNCODEC_MIXING_H

#include <stddef.h>
#include <stdint.h>

enum {
    MIXING_STRETCH = 4096,
    MIXING_SQUASH = 3072,
    MIXING_BUCKETS = 32,
    MIXING_BLOCK = 1 << 23, /* the most weights of a block */
    MIXING_FIELDS = 6,      /* of a part: weights, columns, kernel, width, first, density */
};

/* The number of weights of a block; 0 if its parts break a rule. */
size_t mixing_check_parts(const uint64_t *parts, size_t count);
/* Whether no sum overflows with these tables: stretch, then squash. */
int mixing_check_tables(const int32_t *tables);
size_t mixing_state_size(void);

/* `bits` and `buckets` have a byte a weight, 0 or 1 and below MIXING_BUCKETS. `out` has three bytes
 * a weight and four more. Sets `ends`, the bytes written after each part; returns all that were. */
size_t mixing_encode_block(unsigned char *out, const unsigned char *bits,
                           const unsigned char *buckets, const uint64_t *parts, size_t count,
                           const int32_t *tables, void *state, size_t *ends);
/* Returns the error, or NULL. */
const char *mixing_decode_block(unsigned char *bits, const unsigned char *data, size_t size,
                                const unsigned char *buckets, const uint64_t *parts, size_t count,
                                const int32_t *tables, void *state);

#endif
