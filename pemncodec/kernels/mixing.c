/* Context-mixing coder of masks (spec section 6.4). */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum {
    STRETCH = 4096,
    SQUASH = 3072,
    BUCKETS = 32,
    BLOCK = 1 << 23, /* the most weights of a block */
    INPUTS = 11,
    STEADY_INPUTS = 3, /* the first ones, whose counters adapt more slowly in the end */
    KINDS = 3,
    CHANNELS = 1 << 14,
    POSITIONS = 512,
    COUNT_BITS = 10, /* of a counter: probability << COUNT_BITS | count */
    PROBABILITY_BITS = 22,
    COUNTS = 1 << COUNT_BITS,
    SLOW = COUNTS - 1, /* counts above which a counter no longer adapts more slowly */
    FAST = 255,
    RATES = 256,
    RATE_FLOOR = 25,
    RATE_START = 328,
    WEIGHT_START = 1 << 17,
    WEIGHT_MOST = (1 << 21) - 1,
    SQUASH_HALF = SQUASH / 2,
};

typedef struct {
    int32_t weights[INPUTS];
    uint32_t coded; /* saturates at 64 * RATES */
    uint32_t positions[POSITIONS * 8];
    uint32_t crossings[32 * 32];
    uint32_t near[9 * BUCKETS];
    uint32_t around[81 * 2];
} Kind;

/* Counters of a row or of a column. */
typedef struct {
    uint32_t whole, signs[2], buckets[BUCKETS];
} Line;

typedef struct {
    Kind kinds[KINDS];
    unsigned char known[KINDS];
    int32_t adaptation[COUNTS], rates[RATES];
    uint64_t channels_of; /* rows of the part before */
    Line columns[CHANNELS];
    uint32_t rows[2][CHANNELS]; /* whole ones, of the part before and of this one */
} State;

/* Of a part. */
enum { WEIGHTS, COLUMNS, KERNEL, WIDTH, FIRST, DENSITY, FIELDS };

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

/* Whether no sum overflows with these tables: stretch, then squash. */
static bool check_tables(const int32_t *tables)
{
    bool good = true;
    for (int i = 0; i < STRETCH; i++)
        good &= tables[i] >= -9999 && tables[i] <= 9999;
    for (int i = STRETCH; i < STRETCH + SQUASH; i++)
        good &= tables[i] > 0 && tables[i] < 65536;
    return good;
}

/* ---- Range coder: 32 bits, carries go into what is written ---- */

typedef struct {
    unsigned char *at; /* encoder: behind the last byte written */
    const unsigned char *from, *end;
    uint32_t range, code, missing;
    uint64_t low;
} Coder;

static void put_byte(Coder *coder)
{
    if (coder->low >> 32)
        for (unsigned char *byte = coder->at - 1; ++*byte == 0; byte--)
            ;
    *coder->at++ = (unsigned char)(coder->low >> 24);
    coder->low = (coder->low & 0xFFFFFF) << 8;
    coder->range <<= 8;
}

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
    while (coder->range < 1u << 24) {
        uint32_t byte = coder->from < coder->end ? *coder->from++ : (coder->missing = 1, 0);
        coder->code = coder->code << 8 | byte;
        coder->range <<= 8;
    }
    return bit;
}

/* ---- Model ---- */

static uint32_t isqrt(uint32_t x)
{
    uint32_t root = 0;
    while ((root + 1) * (root + 1) <= x)
        root++;
    return root;
}

static void start(State *state)
{
    memset(state->known, 0, sizeof state->known);
    state->channels_of = 0;
    for (int n = 0; n < COUNTS; n++)
        state->adaptation[n] = 65536 / (n + 3);
    for (uint32_t j = 0; j < RATES; j++)
        state->rates[j] = (int32_t)(RATE_FLOOR + RATE_START * 16 / isqrt(256 * (j + 1)));
}

static void fill(uint32_t *counters, uint64_t count, uint32_t value)
{
    for (uint64_t i = 0; i < count; i++)
        counters[i] = value;
}

static Kind *kind_of(State *state, const uint64_t *part, uint32_t initial)
{
    int which = part[KERNEL] == 1 ? 0 : part[COLUMNS] == 1 ? 1 : 2;
    Kind *kind = &state->kinds[which];
    if (!state->known[which]) {
        state->known[which] = 1;
        kind->coded = 0;
        for (int i = 0; i < INPUTS; i++)
            kind->weights[i] = WEIGHT_START;
        fill(kind->positions, POSITIONS * 8, initial);
        fill(kind->crossings, 32 * 32, initial);
        fill(kind->near, 9 * BUCKETS, initial);
        fill(kind->around, 81 * 2, initial);
    }
    return kind;
}

static inline int32_t clip(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* The pull of the weight `back` before weight i: 0 if there is none, else 1 or 2, whatever another
 * thread does to the buffers. */
static inline unsigned pull(const unsigned char *bits, const unsigned char *buckets, uint64_t i,
                            int there, uint64_t back)
{
    if (!there || i < back)
        return 0;
    return 1 + ((bits[i - back] & 1) ^ (buckets[i - back] < BUCKETS / 2));
}

/* Codes one part: `bits` are read when encoding, written when decoding. */
static inline void code_part(State *state, Coder *coder, unsigned char *bits,
                             const unsigned char *buckets, const uint64_t *part,
                             const int32_t *tables, int decoding)
{
    const int32_t *stretch = tables, *squash = tables + STRETCH + SQUASH_HALF;
    uint64_t columns = part[COLUMNS], kernel = part[KERNEL], width = part[WIDTH];
    uint64_t row_size = columns * kernel, count = part[WEIGHTS];
    uint64_t row = part[FIRST] / row_size, in_row = part[FIRST] % row_size;
    uint64_t column = in_row / kernel, position = in_row % kernel;
    int32_t base = ((int32_t)part[DENSITY] - 128) * 8;
    uint32_t initial = (uint32_t)squash[base] << (PROBABILITY_BITS - 16 + COUNT_BITS);
    int32_t center = stretch[initial >> 20];
    Kind *kind = kind_of(state, part, initial);
    int depthwise = columns == 1 && kernel > 1;
    uint64_t end_row = (part[FIRST] + part[WEIGHTS] + row_size - 1) / row_size;
    const uint32_t *before = state->rows[0];
    uint32_t *rows = state->rows[1];
    int chained = state->channels_of != 0 && state->channels_of == (depthwise ? end_row : columns);

    Line initial_line = {initial, {initial, initial}, {0}};
    fill(initial_line.buckets, BUCKETS, initial);
    Line line = initial_line; /* of the row */
    for (uint64_t i = 0; i < columns && i < CHANNELS; i++)
        state->columns[i] = initial_line;
    uint32_t fresh = initial; /* in place of a channel that nothing is known of */

    for (uint64_t i = 0; i < count; i++) {
        unsigned bucket = buckets[i] % BUCKETS, sign = bucket / (BUCKETS / 2);
        unsigned pulls[4];
        if (kernel == 1) {
            pulls[0] = pull(bits, buckets, i, column >= 1, 1);
            pulls[1] = pull(bits, buckets, i, column >= 2, 2);
            pulls[3] = pull(bits, buckets, i, 1, 2 * row_size);
        } else {
            int left = position % width > 0, up = position >= width;
            pulls[0] = pull(bits, buckets, i, left, 1);
            pulls[1] = pull(bits, buckets, i, up, width);
            pulls[3] = depthwise ? pull(bits, buckets, i, left && up, width + 1)
                                 : pull(bits, buckets, i, column >= 1, kernel);
        }
        pulls[2] = pull(bits, buckets, i, 1, row_size);
        unsigned near = pulls[0] + 3 * pulls[1], around = near + 9 * pulls[2] + 27 * pulls[3];
        Line *of_column = &state->columns[column % CHANNELS];
        int32_t from_row = stretch[line.whole >> 20], from_column = stretch[of_column->whole >> 20];
        int across = clip((from_row - center) >> 7, -16, 15) + 16;
        int down = clip((from_column - center) >> 7, -16, 15) + 16;
        uint32_t channel;
        uint32_t *counters[INPUTS] = {
            &line.whole,
            &of_column->whole,
            &kind->crossings[across * 32 + down],
            &line.signs[sign],
            &of_column->signs[sign],
            &line.buckets[bucket],
            &of_column->buckets[bucket],
            &kind->positions[position % POSITIONS * 8 + bucket / 4],
            &kind->near[near * BUCKETS + bucket],
            &kind->around[around * 2 + sign],
            &fresh,
        };
        if (chained) {
            channel = before[(depthwise ? row : column) % CHANNELS];
            counters[INPUTS - 1] = &channel;
        }
        int32_t inputs[INPUTS], sum = 0;
        for (int j = 0; j < INPUTS; j++)
            inputs[j] = stretch[*counters[j] >> 20];
        for (int j = 0; j < INPUTS; j++)
            sum += inputs[j] * (kind->weights[j] >> 7);
        uint32_t one = (uint32_t)squash[clip(sum >> 16, -SQUASH_HALF, SQUASH_HALF - 1)];
        unsigned bit;
        if (decoding)
            bits[i] = (unsigned char)(bit = decode_bit(coder, one));
        else
            encode_bit(coder, one, bit = bits[i] & 1);
        if (coder->missing) /* few bytes must not cost the time of many weights */
            return;
        int32_t rate = state->rates[kind->coded >> 6];
        kind->coded += kind->coded < 64 * RATES - 1;
        int32_t error = (((int32_t)bit << 16) - (int32_t)one) * rate >> 10;
        for (int j = 0; j < INPUTS; j++)
            kind->weights[j] = clip(kind->weights[j] + ((inputs[j] * error + 512) >> 10),
                                    -WEIGHT_MOST, WEIGHT_MOST);
        int64_t target = bit ? (1 << PROBABILITY_BITS) - 1 : 0;
        for (int j = 0; j < INPUTS; j++) {
            uint32_t counter = *counters[j], seen = counter & (COUNTS - 1);
            uint32_t most = j < STEADY_INPUTS ? SLOW : FAST;
            int64_t probability = counter >> COUNT_BITS;
            probability += ((target - probability) * state->adaptation[seen]) >> 16;
            *counters[j] = (uint32_t)probability << COUNT_BITS | (seen + (seen < most));
        }
        if (++position == kernel) {
            position = 0;
            if (++column == columns) {
                rows[row % CHANNELS] = line.whole;
                line = initial_line;
                column = 0;
                row++;
            }
        }
    }
    if (position || column)
        rows[row % CHANNELS] = line.whole;
    memcpy(state->rows[0], rows, sizeof(uint32_t) * (size_t)(end_row < CHANNELS ? end_row : CHANNELS));
    state->channels_of = end_row;
}

/* ---- Blocks ---- */

typedef struct {
    size_t count;    /* of parts */
    uint64_t *parts; /* and tables: copies, so that they stay as they were checked */
    int32_t tables[STRETCH + SQUASH];
    State state;
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
    if (block != NULL)
        free(block->parts);
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
    if (tables.size != sizeof block->tables)
        return "tables";
    memcpy(block->tables, tables.at, tables.size);
    if (!check_tables(block->tables))
        return "tables";
    start(&block->state);
    return NULL;
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
            code_part(&block->state, &coder, (unsigned char *)bits.at, buckets.at, part,
                      block->tables, 0);
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
        code_part(&block->state, &coder, bits, buckets, part, block->tables, 1);
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
