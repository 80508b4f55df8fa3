/* The largest values, and what they keep of others. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "pages.h"
#include "parallel.h"
#include "processor.h"
#include "words.h"

enum {
    PART = 1 << 15, /* scores that are looked at together */
    ROW = 64,       /* of them, whose candidates are marked in a word */
};

/* What ranks a score: its order, or that of its magnitude; NaN anywhere, −0 as +0. Computed from its
 * bits, since what is made of subnormal numbers depends on the thread. */
static inline int32_t key_at(const unsigned char *scores, size_t index, bool magnitude)
{
    uint32_t bits;
    memcpy(&bits, scores + index * sizeof bits, sizeof bits);
    int32_t size = (int32_t)(bits & INT32_MAX), sign = -(int32_t)(bits >> 31);
    return magnitude ? size : (size ^ sign) - sign;
}

typedef struct {
    size_t found, below; /* candidates, and scores with smaller keys */
    size_t dropped;      /* how many of its ties at the cut are not kept: the first ones */
} Part;

/* Which scores are kept. A range of keys is guessed from a sample such that what is above it is kept
 * and what is below it is not; only the scores within, the candidates, are ranked. So one pass over
 * all is enough unless the guess was wrong, and then all are candidates. */
typedef struct {
    const unsigned char *scores; /* float */
    const unsigned char *values; /* of 4 bytes, or NULL where ones are written, of 1 byte */
    unsigned char *out;
    size_t count;
    uint64_t threads;
    bool magnitude;
    int32_t lowest, highest; /* of the candidates' keys */
    int32_t cut;             /* keys from it on are kept, but for some ties */
    Part *parts;
    int32_t *keys;       /* of candidates, in order; those of a part are where its scores start */
    uint16_t *positions; /* of candidates in their part, likewise */
} Selection;

static size_t parts_of(const Selection *all) { return (all->count + PART - 1) / PART; }

/* ---- The cut ---- */

typedef size_t Count(const int32_t *keys, size_t count, int32_t limit);

/* Keys below `limit`. */
#define COUNT_BELOW(NAME, TARGET) \
    TARGET static size_t NAME(const int32_t *keys, size_t count, int32_t limit) \
    { \
        uint32_t below = 0; /* of PART keys at most, as narrow as they are */ \
        for (size_t i = 0; i < count; i++) \
            below += keys[i] < limit; \
        return below; \
    }
VERSIONS(COUNT_BELOW, count_below)

static size_t candidates_below(const Selection *all, int32_t limit)
{
    Count *count = BEST(count_below);
    size_t below = 0;
    for (size_t part = 0; part < parts_of(all); part++)
        below += count(all->keys + part * PART, all->parts[part].found, limit);
    return below;
}

/* A key that has `least` to `most` candidates below it; where ties leave none, the largest key that has
 * no more than `most`. */
static int32_t key_with_below(const Selection *all, size_t least, size_t most)
{
    int64_t lowest = all->lowest, highest = all->highest;
    while (lowest < highest) {
        int64_t middle = lowest + (highest - lowest + 1) / 2;
        size_t below = candidates_below(all, (int32_t)middle);
        if (below > most)
            highest = middle - 1;
        else {
            lowest = middle;
            if (below >= least)
                break;
        }
    }
    return (int32_t)lowest;
}

/* A sample of one score in SAMPLED, or fewer: clusters that share a cache line. */
enum { CLUSTER = 16, FEWEST_CLUSTERS = 64, MOST_CLUSTERS = 1 << 10, SAMPLED = 32 };

typedef char sample_is_a_part[MOST_CLUSTERS * CLUSTER <= PART ? 1 : -1];

/* The variance of the number of samples below the cut: of whole clusters, since neighbours are alike. */
static size_t variance_below(const int32_t *keys, size_t clusters, int32_t cut)
{
    size_t sum = 0, squares = 0;
    for (size_t cluster = 0; cluster < clusters; cluster++) {
        size_t below = 0;
        for (size_t i = 0; i < CLUSTER; i++)
            below += *keys++ < cut;
        sum += below;
        squares += below * below;
    }
    return squares - sum * sum / clusters;
}

/* Sets the range of candidates: what lies about the cut in a sample, three to four standard deviations
 * to either side. */
static void guess_candidates(Selection *all, size_t rank)
{
    int32_t keys[MOST_CLUSTERS * CLUSTER];
    size_t firsts[MOST_CLUSTERS];
    size_t clusters = smaller(all->count / CLUSTER / SAMPLED, MOST_CLUSTERS), margin = 1;
    uint64_t random = 0;
    all->lowest = INT32_MIN, all->highest = INT32_MAX;
    if (clusters < FEWEST_CLUSTERS)
        return;
    size_t samples = clusters * CLUSTER, step = all->count / clusters;
    size_t middle = smaller((size_t)((double)rank / (double)all->count * (double)samples), samples - 1);
    for (size_t i = 0; i < clusters; i++) { /* at positions without a pattern */
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        firsts[i] = (i * step + (size_t)(random >> 33) % (step - CLUSTER + 1)) / CLUSTER * CLUSTER;
        PREFETCH(all->scores + 4 * firsts[i]);
    }
    for (size_t i = 0; i < samples; i++)
        keys[i] = key_at(all->scores, firsts[i / CLUSTER] + i % CLUSTER, all->magnitude);
    Part part = {.found = samples};
    Selection sample = {.count = samples, .lowest = INT32_MIN, .highest = INT32_MAX,
                        .parts = &part, .keys = keys};
    size_t variance = variance_below(keys, clusters, key_with_below(&sample, middle, middle));
    while (margin * margin < 9 * variance)
        margin++;
    size_t slack = (margin + 2) / 3;
    if (middle >= margin + slack)
        all->lowest = sample.lowest = key_with_below(&sample, middle - margin - slack, middle - margin);
    if (middle + margin + slack < samples)
        all->highest = key_with_below(&sample, middle + margin, middle + margin + slack);
}

/* ---- Ranking ---- */

/* Writes a row, candidates as kept, and lists these behind `found` others; returns how many there are. */
static ALWAYS_INLINE size_t rank_row(const Selection *all, size_t part, size_t start, size_t size,
                                     bool magnitude, size_t found, size_t *below)
{
    int32_t keys[ROW], under = 0;
    uint32_t items[ROW];
    unsigned char within[ROW] = {0};
    size_t first = part * PART + start;
    for (size_t i = 0; i < size; i++)
        keys[i] = key_at(all->scores, first + i, magnitude);
    for (size_t i = 0; i < size; i++)
        under += keys[i] < all->lowest;
    for (size_t i = 0; i < size; i++)
        within[i] = (keys[i] >= all->lowest) & (keys[i] <= all->highest);
    *below += (size_t)under;
    if (all->values == NULL)
        for (size_t i = 0; i < size; i++)
            all->out[first + i] = keys[i] >= all->lowest;
    else {
        for (size_t i = 0; i < size; i++) {
            memcpy(items + i, all->values + 4 * (first + i), 4);
            items[i] &= 0u - (uint32_t)(keys[i] >= all->lowest);
        }
        memcpy(all->out + 4 * first, items, 4 * size);
    }
    uint64_t word = 0;
    for (size_t i = 0; i < ROW; i += 8) /* bytes of 0 or 1 to bits */
        word |= (load64(within + i, 8) * UINT64_C(0x0102040810204080) >> 56) << i;
    for (; word != 0; word &= word - 1, found++) {
        all->keys[part * PART + found] = keys[lowest_bit(word)];
        all->positions[part * PART + found] = (uint16_t)(start + lowest_bit(word));
    }
    return found;
}

static ALWAYS_INLINE void rank_rows(const Selection *all, size_t part, bool magnitude)
{
    size_t size = smaller(PART, all->count - part * PART), start = 0, found = 0, below = 0;
    for (; size - start >= ROW; start += ROW)
        found = rank_row(all, part, start, ROW, magnitude, found, &below);
    if (start < size)
        found = rank_row(all, part, start, size - start, magnitude, found, &below);
    all->parts[part] = (Part){.found = found, .below = below};
}

#ifdef HAVE_X86
/* As rank_rows, for processors that pack the candidates' keys by one instruction. */
AVX512 static ALWAYS_INLINE void rank_rows_avx512(const Selection *all, size_t part, bool magnitude)
{
    enum { LANES = 16, AHEAD = 2048 }; /* bytes, since processors do not look past a page */
    const __m512i lowest = _mm512_set1_epi32(all->lowest), highest = _mm512_set1_epi32(all->highest);
    const __m512i size_bits = _mm512_set1_epi32(INT32_MAX), zero = _mm512_setzero_si512(), step = _mm512_set1_epi32(LANES);
    __m512i position = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t size = smaller(PART, all->count - part * PART), start = 0, found = 0, above = 0;
    const unsigned char *scores = all->scores + 4 * part * PART;
    const unsigned char *values = all->values + (all->values == NULL ? 0 : 4 * part * PART);
    unsigned char *out = all->out + (all->values == NULL ? 1 : 4) * part * PART;
    int32_t *keys = all->keys + part * PART;
    uint16_t *positions = all->positions + part * PART;
    bool ones = all->values == NULL;
    for (; size - start >= LANES; start += LANES) {
        PREFETCH(scores + 4 * start + AHEAD);
        __m512i bits = _mm512_loadu_si512(scores + 4 * start), key = _mm512_and_si512(bits, size_bits);
        if (!magnitude)
            key = _mm512_mask_sub_epi32(key, _mm512_cmplt_epi32_mask(bits, zero), zero, key);
        __mmask16 kept = _mm512_cmpge_epi32_mask(key, lowest);
        __mmask16 within = _mm512_mask_cmple_epi32_mask(kept, key, highest);
        if (ones)
            _mm_storeu_si128((__m128i *)(out + start), _mm_maskz_set1_epi8(kept, 1));
        else {
            PREFETCH(values + 4 * start + AHEAD);
            _mm512_storeu_si512(out + 4 * start, _mm512_maskz_loadu_epi32(kept, values + 4 * start));
        }
        /* All lanes: as many scores of the part have been looked at, so there is room for them. */
        _mm512_storeu_si512(keys + found, _mm512_maskz_compress_epi32(within, key));
        _mm256_storeu_si256((__m256i *)(positions + found),
                            _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(within, position)));
        position = _mm512_add_epi32(position, step);
        above += (size_t)__builtin_popcount(kept);
        found += (size_t)__builtin_popcount(within);
    }
    size_t below = start - above;
    if (start < size)
        found = rank_row(all, part, start, size - start, magnitude, found, &below);
    all->parts[part] = (Part){.found = found, .below = below};
}
#endif

/* Constant arguments: a loop for each kind of ranking, without a branch in it. */
#define RANK_PART(NAME, TARGET, ROWS) \
    TARGET static void NAME(void *selection, size_t part) \
    { \
        const Selection *all = selection; \
        if (all->magnitude) \
            ROWS(all, part, true); \
        else \
            ROWS(all, part, false); \
    }
RANK_PART(rank_part, , rank_rows)
#ifdef HAVE_X86
RANK_PART(rank_part_avx2, AVX2, rank_rows)
RANK_PART(rank_part_avx512, AVX512, rank_rows_avx512)
#endif

static void rank_parts(Selection *all, size_t *found, size_t *below)
{
    run_parts(BEST(rank_part), all, parts_of(all), all->threads);
    *found = *below = 0;
    for (size_t part = 0; part < parts_of(all); part++) {
        *found += all->parts[part].found;
        *below += all->parts[part].below;
    }
}

/* Zeros for the candidates that are not kept. */
static void drop_candidates(void *selection, size_t part)
{
    enum { AHEAD = 32 };
    const Selection *all = selection;
    const int32_t *keys = all->keys + part * PART, cut = all->cut;
    const uint16_t *positions = all->positions + part * PART;
    size_t found = all->parts[part].found, ties = all->parts[part].dropped;
    size_t itemsize = all->values == NULL ? 1 : 4;
    unsigned char *out = all->out + itemsize * part * PART;
    for (size_t i = 0; i < found; i++) { /* without a branch that nobody could predict */
        PREFETCH(out + itemsize * positions[smaller(i + AHEAD, found - 1)]);
        bool tie = (keys[i] == cut) & (ties > 0), kept = (keys[i] >= cut) & !tie;
        unsigned char *item = out + itemsize * positions[i];
        ties -= tie;
        if (itemsize == 1)
            *item = kept;
        else {
            uint32_t word;
            memcpy(&word, item, sizeof word);
            word &= 0u - (uint32_t)kept;
            memcpy(item, &word, sizeof word);
        }
    }
}

/* Shares `surplus` ties, which are to be dropped, among the parts: the first ones. */
static void drop_first_ties(Selection *all, size_t surplus)
{
    for (size_t part = 0; surplus > 0 && part < parts_of(all); part++) {
        const int32_t *keys = all->keys + part * PART;
        size_t ties = 0;
        for (size_t i = 0; i < all->parts[part].found; i++)
            ties += keys[i] == all->cut;
        all->parts[part].dropped = smaller(ties, surplus);
        surplus -= all->parts[part].dropped;
    }
}

/* Bytes to ask for, for keys and positions. */
static size_t scratch_size(const Selection *all)
{
    size_t needed = all->count * (sizeof *all->keys + sizeof *all->positions);
#ifdef __GLIBC__
    /* What is free at the end of the heap goes back to the system when it is more than twice the largest
     * block that was mapped and freed, of 32 MiB at most, and costs page faults in the next step: more
     * than all else here. So a training step asks for more than it needs, and never touches it. */
    enum { MOST = (1 << 25) - (1 << 16), EACH = 64 };
    if (all->values != NULL && needed < smaller(all->count, MOST / EACH) * EACH)
        return smaller(all->count, MOST / EACH) * EACH;
#endif
    return needed;
}

/* Writes what is kept and zeros, 0 < kept < count. Returns the error, or NULL. */
static const char *select_largest(Selection *all, size_t kept)
{
    size_t rank = all->count - kept, found, below;
    all->parts = calloc(parts_of(all), sizeof *all->parts);
    all->keys = malloc(scratch_size(all));
    bool allocated = all->parts != NULL && all->keys != NULL;
    if (allocated) {
        all->positions = (uint16_t *)(all->keys + all->count);
        guess_candidates(all, rank);
        rank_parts(all, &found, &below);
        if (rank < below || rank - below >= found) {
            all->lowest = INT32_MIN, all->highest = INT32_MAX;
            rank_parts(all, &found, &below);
        }
        rank -= below;
        all->cut = key_with_below(all, rank, rank);
        drop_first_ties(all, rank - candidates_below(all, all->cut));
        run_parts(drop_candidates, all, parts_of(all), all->threads);
    }
    free(all->parts);
    free(all->keys);
    return allocated ? NULL : OUT_OF_MEMORY;
}

const char *top_k(Bytes values, uint64_t kept, Room out)
{
    size_t count = out.size;
    Selection all = {.scores = values.at, .out = out.at, .count = count, .threads = 1};
    if (values.size / 4 != count || values.size % 4 != 0)
        return "values";
    if (kept > count)
        return "kept";
    if (kept > 0 && kept < count)
        return select_largest(&all, (size_t)kept);
    memset(out.at, kept > 0, count);
    return NULL;
}

const char *keep_largest(Bytes scores, bool magnitude, uint64_t kept, Bytes values, Room out,
                         uint64_t threads)
{
    size_t size = scores.size;
    Selection all = {.scores = scores.at, .values = values.at, .out = out.at, .count = size / 4,
                     .threads = threads, .magnitude = magnitude};
    if (size % 4 != 0)
        return "scores";
    if (kept > all.count)
        return "kept";
    if (values.size != size)
        return "values";
    if (out.size != size)
        return "out";
    allow_large_pages(out.at, size);
    if (kept > 0 && kept < all.count)
        return select_largest(&all, (size_t)kept);
    if (kept == 0)
        memset(out.at, 0, size);
    else
        memmove(out.at, values.at, size);
    return NULL;
}
