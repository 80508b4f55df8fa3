/* Range coder of bits (spec section 6.4): 32 bits, carries go into what is written. */
#ifndef PEMNCODEC_RANGE_CODER_H
#define PEMNCODEC_RANGE_CODER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    unsigned char *at; /* encoder: behind the last byte written */
    const unsigned char *from, *end;
    uint32_t range, code;
    bool missing; /* decoder: a byte was needed where there was none */
    uint64_t low;
} Coder;

static inline void put_byte(Coder *coder)
{
    if (coder->low >> 32)
        for (unsigned char *byte = coder->at - 1; ++*byte == 0; byte--)
            ;
    *coder->at++ = (unsigned char)(coder->low >> 24);
    coder->low = (coder->low & 0xFFFFFF) << 8;
    coder->range <<= 8;
}

static inline void take_byte(Coder *coder)
{
    uint32_t byte = coder->from < coder->end ? *coder->from++ : (coder->missing = true, 0);
    coder->code = coder->code << 8 | byte;
    coder->range <<= 8;
}

/* Of a bit that is 1 with the probability `one` / 65536. */
static inline void encode_bit(Coder *coder, uint32_t one, unsigned bit)
{
    uint32_t bound = (coder->range >> 16) * one;
    coder->low += bit ? 0 : bound;
    coder->range = bit ? bound : coder->range - bound;
    while (coder->range < 1u << 24)
        put_byte(coder);
}

static inline unsigned decode_bit(Coder *coder, uint32_t one)
{
    uint32_t bound = (coder->range >> 16) * one;
    unsigned bit = coder->code < bound;
    coder->code -= bit ? 0 : bound;
    coder->range = bit ? bound : coder->range - bound;
    while (coder->range < 1u << 24)
        take_byte(coder);
    return bit;
}

#endif
