/* Context-mixing coder of masks (spec section 6.4). */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "mixing_model.h"

enum { BLOCK = 1 << 23 }; /* the most weights */

typedef char parts_have_this_size[FIELDS * sizeof(uint64_t) == MIXING_PART ? 1 : -1];

#define LARGEST (UINT64_C(1) << 62)

/* The number of weights of a block; 0 if its parts break a rule. */
static size_t check_parts(const uint64_t *parts, size_t count)
{
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++, parts += FIELDS) {
        if (parts[WEIGHTS] == 0 || parts[WEIGHTS] > BLOCK)
            return 0;
        if (parts[COLUMNS] == 0 || parts[KERNEL] == 0 || parts[WIDTH] == 0 || parts[DENSITY] > 255)
            return 0;
        if (parts[COLUMNS] > LARGEST / parts[KERNEL] || parts[FIRST] > LARGEST)
            return 0;
        if (parts[FIRST] > 0 && count > 1) /* its rows are not all known to the part behind it */
            return 0;
        total += parts[WEIGHTS];
        if (total > BLOCK)
            return 0;
    }
    return (size_t)total;
}

/* Copies the tables: stretch, then squash. Returns whether no sum overflows with them. */
static bool copy_tables(Model *model, const unsigned char *tables)
{
    bool good = true;
    int32_t entry;
    for (int i = 0; i < STRETCH; i++, tables += sizeof entry) {
        memcpy(&entry, tables, sizeof entry);
        good &= entry >= -9999 && entry <= 9999;
        model->stretch[i] = (int16_t)entry;
    }
    for (int i = 0; i < SQUASH; i++, tables += sizeof entry) {
        memcpy(&entry, tables, sizeof entry);
        good &= entry > 0 && entry < 65536;
        model->squash[i] = (uint16_t)entry;
    }
    return good;
}

typedef struct {
    size_t count;    /* of parts */
    uint64_t *parts; /* a copy, so that they stay as they were checked */
    Model model;
} Block;

static unsigned char all_bits(Bytes bytes)
{
    unsigned char all = 0;
    for (size_t i = 0; i < bytes.size; i++)
        all |= bytes.at[i];
    return all;
}

static void close_block(Block *block)
{
    if (block != NULL) {
        free(block->parts);
        free(block->model.pulls.at);
    }
    free(block);
}

/* Checks all but the bits. Returns the error, or NULL; close the block after either. */
static const char *open_block(Block **opened, size_t weights, Bytes buckets, Bytes parts, Bytes tables)
{
    Block *block = *opened = calloc(1, sizeof *block);
    if (parts.size % MIXING_PART != 0)
        return "parts";
    if (block == NULL || (block->parts = malloc(parts.size + 1)) == NULL)
        return OUT_OF_MEMORY;
    block->count = parts.size / MIXING_PART;
    memcpy(block->parts, parts.at, parts.size);
    if (weights == 0 || check_parts(block->parts, block->count) != weights)
        return "parts";
    if (buckets.size != weights || all_bits(buckets) >= BUCKETS)
        return "buckets";
    if (tables.size != (STRETCH + SQUASH) * sizeof(int32_t) || !copy_tables(&block->model, tables.at))
        return "tables";
    return start_model(&block->model, block->parts, block->count) ? NULL : OUT_OF_MEMORY;
}

const char *mixing_encode(Bytes bits, Bytes buckets, Bytes parts, Bytes tables, Coded *coded,
                          size_t *ends)
{
    Block *block;
    unsigned char *out = NULL;
    const char *error = open_block(&block, bits.size, buckets, parts, tables);
    if (error == NULL && all_bits(bits) > 1)
        error = "bits";
    /* A weight takes less than three bytes, the end four. */
    if (error == NULL && (out = malloc(3 * bits.size + 4)) == NULL)
        error = OUT_OF_MEMORY;
    Coder coder = {.at = out, .range = UINT32_MAX};
    if (error == NULL) {
        const uint64_t *part = block->parts;
        for (size_t i = 0; i < block->count; i++, part += FIELDS) {
            encode_part(&block->model, &coder, bits.at, buckets.at, part);
            bits.at += part[WEIGHTS], buckets.at += part[WEIGHTS];
            ends[i] = (size_t)(coder.at - out);
        }
        for (int i = 0; i < 4; i++)
            put_byte(&coder);
    }
    *coded = (Coded){out, out, (size_t)(coder.at - out)};
    close_block(block);
    return error;
}

static const char *decode_block(Block *block, Bytes data, const unsigned char *buckets,
                                unsigned char *bits)
{
    Coder coder = {.from = data.at, .end = data.at + data.size, .range = UINT32_MAX};
    if (data.size < 4)
        return "too short";
    for (int i = 0; i < 4; i++)
        coder.code = coder.code << 8 | *coder.from++;
    const uint64_t *part = block->parts;
    for (size_t i = 0; i < block->count; i++, part += FIELDS) {
        decode_part(&block->model, &coder, bits, buckets, part);
        if (coder.missing)
            return "too short";
        bits += part[WEIGHTS], buckets += part[WEIGHTS];
    }
    if (coder.from != coder.end)
        return "bytes left over";
    return coder.code ? "final state" : NULL;
}

const char *mixing_decode(Bytes data, Bytes buckets, Bytes parts, Bytes tables, Room out)
{
    Block *block;
    const char *error = open_block(&block, out.size, buckets, parts, tables);
    if (error == NULL)
        error = decode_block(block, data, buckets.at, out.at);
    close_block(block);
    return error;
}
