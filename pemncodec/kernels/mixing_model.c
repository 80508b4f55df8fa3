/* The model that predicts the bits of masks (spec section 6.4). */
#include "mixing_model.h"

#include <stdlib.h>
#include <string.h>

#include "words.h"

enum {
    PROBABILITY_BITS = 22,
    RATE_FLOOR = 25,
    RATE_START = 328,
    WEIGHT_START = 1 << 17,
    AHEAD = 4, /* weights whose column's counters are fetched before they are needed */
};

static uint32_t isqrt(uint32_t x)
{
    uint32_t root = 0;
    while ((root + 1) * (root + 1) <= x)
        root++;
    return root;
}

bool start_model(Model *model, const uint64_t *parts, size_t count)
{
    uint64_t farthest = 0; /* the most weights between a weight and one whose pull it sees */
    for (size_t i = 0; i < count; i++, parts += FIELDS) {
        uint64_t two_rows = 2 * parts[COLUMNS] * parts[KERNEL];
        uint64_t most = two_rows < parts[WEIGHTS] ? two_rows : parts[WEIGHTS];
        farthest = most > farthest ? most : farthest;
    }
    while (model->pulls.mask < farthest)
        model->pulls.mask = 2 * model->pulls.mask + 1;
    for (uint32_t j = 0; j < RATES; j++)
        model->rates[j] = (int32_t)(RATE_FLOOR + RATE_START * 16 / isqrt(256 * (j + 1)));
    model->pulls.at = malloc((size_t)model->pulls.mask + 1);
    return model->pulls.at != NULL;
}

static void fill(uint32_t *counters, uint64_t count, uint32_t value)
{
    for (uint64_t i = 0; i < count; i++)
        counters[i] = value;
}

static Kind *kind_of(Model *model, const uint64_t *part, uint32_t initial)
{
    int which = part[KERNEL] == 1 ? 0 : part[COLUMNS] == 1 ? 1 : 2;
    Kind *kind = &model->kinds[which];
    if (!model->known[which]) {
        model->known[which] = true;
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

static void start_columns(Model *model, uint64_t count, uint32_t initial)
{
    for (uint64_t i = 0; i < count && i < CHANNELS; i++) {
        model->columns[i] = (Column){initial, {initial, initial}};
        fill(model->column_buckets[i], BUCKETS, initial);
    }
}

static void set_levels(Model *model, uint32_t initial)
{
    int32_t center = model->stretch[input_index(initial)];
    for (int i = 0; i < STRETCH; i++)
        model->levels[i] = (unsigned char)(clip((model->stretch[i] - center) >> 7, -16, 15) + 16);
}

/* The pull of the weight `back` before weight i: 0 if there is none, else 1 or 2. */
static ALWAYS_INLINE unsigned pull(Pulls pulls, uint64_t i, bool there, uint64_t back)
{
    return there && i >= back ? pulls.at[(i - back) & pulls.mask] : 0;
}

/* Codes one part: `bits` are read when encoding, written when decoding. `pointwise`: kernel is 1. */
static ALWAYS_INLINE void code_part(Model *model, Coder *shared, unsigned char *bits,
                                    const unsigned char *buckets, const uint64_t *part, bool decoding,
                                    bool pointwise)
{
    const uint64_t columns = part[COLUMNS], kernel = pointwise ? 1 : part[KERNEL];
    const uint64_t width = part[WIDTH], row_size = columns * kernel, count = part[WEIGHTS];
    const uint64_t end_row = (part[FIRST] + count + row_size - 1) / row_size;
    const bool depthwise = columns == 1 && kernel > 1;
    uint64_t row = part[FIRST] / row_size, in_row = part[FIRST] % row_size;
    uint64_t column = in_row / kernel, position = in_row % kernel, x = position % width;
    const int32_t base = ((int32_t)part[DENSITY] - 128) * 8 + SQUASH_HALF;
    const uint32_t initial = (uint32_t)model->squash[base] << (PROBABILITY_BITS - 16 + COUNT_BITS);
    Kind *kind = kind_of(model, part, initial);
    set_levels(model, initial);
    start_columns(model, columns, initial);

    uint32_t *rows = model->rows[1], whole = initial, signs[2], row_buckets[BUCKETS]; /* of the row */
    fill(signs, 2, initial);
    fill(row_buckets, BUCKETS, initial);
    uint32_t fresh = initial; /* in place of a channel that nothing is known of */
    const uint32_t *channels = &fresh;
    uint64_t channel_mask = 0;
    if (model->channels_of != 0 && model->channels_of == (depthwise ? end_row : columns)) {
        channels = model->rows[0];
        channel_mask = CHANNELS - 1;
    }

    /* What changes with each weight is in variables of its own, since bits may lie anywhere. */
    Coder coder = *shared;
    const Pulls pulls = model->pulls;
    Lanes weights = load_lanes(kind->weights);
    uint32_t coded = kind->coded;
    unsigned a = 0, b = 0;

    for (uint64_t i = 0; i < count; i++) {
        unsigned bucket = buckets[i] % BUCKETS, sign = bucket / (BUCKETS / 2), c, d;
        c = pull(pulls, i, true, row_size);
        if (pointwise) {
            d = pull(pulls, i, true, 2 * row_size);
            unsigned later = buckets[i + AHEAD < count ? i + AHEAD : i] % BUCKETS;
            PREFETCH(&model->column_buckets[(column + AHEAD) % CHANNELS][later]);
        } else {
            bool left = x > 0, up = position >= width;
            a = pull(pulls, i, left, 1);
            b = pull(pulls, i, up, width);
            d = depthwise ? pull(pulls, i, left && up, width + 1) : pull(pulls, i, column >= 1, kernel);
        }
        unsigned near = a + 3 * b, around = near + 9 * c + 27 * d;
        Column *of_column = &model->columns[column % CHANNELS];
        uint32_t *column_bucket = &model->column_buckets[column % CHANNELS][bucket];
        unsigned across = model->levels[input_index(whole)];
        unsigned down = model->levels[input_index(of_column->whole)];
        uint32_t *crossing = &kind->crossings[across * 32 + down];
        uint32_t *at_position = &kind->positions[position % POSITIONS * 8 + bucket / 4];
        uint32_t *when_near = &kind->near[near * BUCKETS + bucket];
        uint32_t *when_around = &kind->around[around * 2 + sign];
        uint32_t counters[LANES] = {
            whole,
            of_column->whole,
            *crossing,
            signs[sign],
            of_column->signs[sign],
            row_buckets[bucket],
            *column_bucket,
            *at_position,
            *when_near,
            *when_around,
            channels[(depthwise ? row : column) & channel_mask],
        };
        Lanes lanes = gather(counters);
        Inputs inputs = inputs_of(counters, model->stretch);
        int32_t one = model->squash[mix(&inputs, &weights)], rate = model->rates[coded >> 6];
        coded += coded < 64 * RATES - 1;
        unsigned bit;
        if (decoding)
            bits[i] = (unsigned char)(bit = decode_bit(&coder, (uint32_t)one));
        else
            encode_bit(&coder, (uint32_t)one, bit = bits[i] & 1);
        /* A path for each bit: so processors guess it, and go on to the next weight meanwhile. */
        if (bit) {
            learn(&weights, &inputs, (65536 - one) * rate >> 10);
            adapt(&lanes, 1);
        } else {
            learn(&weights, &inputs, -one * rate >> 10);
            adapt(&lanes, 0);
        }
        scatter(counters, &lanes);
        whole = counters[0];
        of_column->whole = counters[1];
        *crossing = counters[2];
        signs[sign] = counters[3];
        of_column->signs[sign] = counters[4];
        row_buckets[bucket] = counters[5];
        *column_bucket = counters[6];
        *at_position = counters[7];
        *when_near = counters[8];
        *when_around = counters[9];
        fresh = counters[10];
        unsigned own = 1 + (bit == sign);
        pulls.at[i & pulls.mask] = (unsigned char)own;
        if (pointwise)
            b = a, a = own;
        if (coder.missing) /* few bytes must not cost the time of many weights */
            break;
        if (!pointwise && ++x == width)
            x = 0;
        if (++position < kernel)
            continue;
        position = x = 0;
        if (++column < columns)
            continue;
        column = 0;
        a = b = 0;
        rows[row++ % CHANNELS] = whole;
        whole = initial;
        fill(signs, 2, initial);
        fill(row_buckets, BUCKETS, initial);
    }
    *shared = coder;
    store_lanes(kind->weights, &weights);
    kind->coded = coded;
    if (position || column)
        rows[row % CHANNELS] = whole;
    memcpy(model->rows[0], rows, sizeof(uint32_t) * (size_t)(end_row < CHANNELS ? end_row : CHANNELS));
    model->channels_of = end_row;
}

void encode_part(Model *model, Coder *coder, const unsigned char *bits, const unsigned char *buckets,
                 const uint64_t *part)
{
    if (part[KERNEL] == 1)
        code_part(model, coder, (unsigned char *)bits, buckets, part, false, true);
    else
        code_part(model, coder, (unsigned char *)bits, buckets, part, false, false);
}

void decode_part(Model *model, Coder *coder, unsigned char *bits, const unsigned char *buckets,
                 const uint64_t *part)
{
    if (part[KERNEL] == 1)
        code_part(model, coder, bits, buckets, part, true, true);
    else
        code_part(model, coder, bits, buckets, part, true, false);
}
