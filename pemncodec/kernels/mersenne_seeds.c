/* All seeds of MT19937 of which equations hold.
 *
 * Every bit of every word is a sum of bits of the 624 words that a seed is spread to. So whether a bit
 * is as it should be takes a pass over these, however many words lie before it. Several equations and
 * several seeds share a pass. Seeds that pass wait until there are enough of them for the next one.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "mersenne.h"
#include "processor.h"
#include "words.h"

enum {
    STATE = MERSENNE_STATE,
    LAST = 1 << 28,         /* above all words */
    STAGES = 3,             /* of a place, one after the other, */
    EACH = 4,               /* with so many equations. Before, places share a pass */
    SHARED = 2,             /* with so many of each */
    MOST_TOGETHER = 4,      /* places in such a pass */
    MOST_LANES = 96,        /* seeds in a pass */
    LEAST = STAGES * EACH + SHARED,
};

/* ---- Equations over the words of a seed ---- */

/* Replaces a word, in all equations, by what it is made of: the word a state before, whose slot it
 * shares, the next one, and the one in the middle. */
#define STEP_BACK(NAME, TARGET) \
    TARGET static void NAME(uint32_t *restrict slot, uint32_t *restrict next, \
                            uint32_t *restrict middle, size_t count) \
    { \
        for (size_t i = 0; i < count; i++) { \
            uint32_t mask = slot[i], both = mask << 1; \
            slot[i] = both & 0x80000000u; \
            next[i] ^= (both & 0x7FFFFFFFu) | parity(mask & MERSENNE_MATRIX); \
            middle[i] ^= mask; \
        } \
    }
VERSIONS(STEP_BACK, step_back)

const char *mersenne_pull_back(Bytes words, Bytes masks, Room out)
{
    size_t count = words.size / 4;
    uint32_t last = 0;
    if (words.size % 4 != 0)
        return "words";
    for (size_t i = 0; i < count; i++) {
        uint32_t word = number_at(words, i);
        if (word < last || word >= LAST)
            return "words";
        last = word;
    }
    if (masks.size != words.size)
        return "masks";
    if (out.size / STATE != words.size || out.size % STATE != 0)
        return "out";
    uint32_t *slots = calloc(STATE * count + 1, 4);
    if (slots == NULL)
        return OUT_OF_MEMORY;
    size_t left = count;
    for (size_t word = (size_t)last + 1; word-- > 0;) {
        uint32_t *slot = slots + word % STATE * count;
        for (; left > 0 && number_at(words, left - 1) >= word; left--)
            slot[left - 1] ^= before_tempering(number_at(masks, left - 1));
        BEST(step_back)(slot, slots + (word + 1) % STATE * count,
                        slots + (word + MERSENNE_MIDDLE) % STATE * count, count);
    }
    memcpy(out.at, slots, out.size);
    free(slots);
    return NULL;
}

/* ---- Passes ---- */

#ifdef __GNUC__
#define LANES(BYTES) typedef uint32_t Lanes __attribute__((vector_size(BYTES)))
#define UNROLL _Pragma("GCC unroll 32")
#else
#define LANES(BYTES) typedef uint32_t Lanes
#define UNROLL
#endif

/* Tells of seeds, in VECTORS vectors, whether EQUATIONS equations about each of PLACES hold: the lowest
 * bit of `wrong` is 1 if not, in a row of seeds for each place. `masks` has a row for each word. */
#define PASS(NAME, TARGET, BYTES, VECTORS, PLACES, EQUATIONS, ADD) \
    TARGET static void NAME(const uint32_t *seeds, const uint32_t *masks, const uint32_t *parities, \
                            uint32_t *wrong) \
    { \
        LANES(BYTES); \
        enum { SUMS = (PLACES) * (EQUATIONS) }; \
        Lanes words[VECTORS], sums[SUMS][VECTORS]; \
        memcpy(words, seeds, sizeof words); \
        UNROLL for (int i = 0; i < SUMS; i++) \
            UNROLL for (int v = 0; v < VECTORS; v++) sums[i][v] = words[v] & masks[i]; \
        for (uint32_t step = 1; step < STATE; step++) { \
            masks += SUMS; \
            UNROLL for (int v = 0; v < VECTORS; v++) \
                words[v] = (words[v] ^ (words[v] >> 30)) * 1812433253u + step; \
            UNROLL for (int i = 0; i < SUMS; i++) \
                UNROLL for (int v = 0; v < VECTORS; v++) \
                    sums[i][v] = ADD(sums[i][v], words[v], masks[i]); \
        } \
        for (int place = 0; place < PLACES; place++) { \
            for (int v = 0; v < VECTORS; v++) { \
                Lanes any = words[v] ^ words[v]; \
                for (int i = place * EQUATIONS; i < (place + 1) * EQUATIONS; i++) { \
                    Lanes sum = sums[i][v]; \
                    for (int shift = 16; shift > 0; shift /= 2) \
                        sum ^= sum >> shift; \
                    any |= sum ^ parities[i]; \
                } \
                memcpy(wrong, &any, sizeof any); \
                wrong += sizeof any / 4; \
            } \
        } \
    }

#define IN_TWO_STEPS(sum, word, mask) ((sum) ^ ((word) & (mask)))
PASS(one_place, , 16, 3, 1, EACH, IN_TWO_STEPS)
PASS(two_places, , 16, 3, 2, SHARED, IN_TWO_STEPS)
#ifdef HAVE_X86
PASS(one_place_avx2, AVX2, 32, 3, 1, EACH, IN_TWO_STEPS)
PASS(two_places_avx2, AVX2, 32, 3, 2, SHARED, IN_TWO_STEPS)
/* The compiler does not see that this is one instruction. */
#define AT_ONCE(sum, word, mask) \
    (Lanes) _mm512_ternarylogic_epi32((__m512i)(sum), (__m512i)(word), _mm512_set1_epi32((int)(mask)), 0x78)
PASS(one_place_avx512, AVX512, 64, 6, 1, EACH, AT_ONCE)
PASS(four_places_avx512, AVX512, 64, 3, 4, SHARED, AT_ONCE)
#endif

typedef void Pass(const uint32_t *seeds, const uint32_t *masks, const uint32_t *parities,
                  uint32_t *wrong);

typedef struct {
    Pass *one, *together;
    unsigned lanes, lanes_together, places_together;
} Version;

#ifdef __GNUC__
static const Version version = {one_place, two_places, 12, 12, 2};
#else
static const Version version = {one_place, two_places, 3, 3, 2};
#endif
#ifdef HAVE_X86
static const Version version_avx2 = {one_place_avx2, two_places_avx2, 24, 24, 2};
static const Version version_avx512 = {one_place_avx512, four_places_avx512, 96, 48, 4};
#endif

/* ---- The search ---- */

typedef struct {
    uint32_t masks[STATE * EACH], parities[EACH]; /* as a pass takes them */
    uint32_t waiting[MOST_LANES];
    unsigned count; /* of seeds that wait */
} Stage;

typedef struct {
    uint32_t masks[STATE * MOST_TOGETHER * SHARED], parities[MOST_TOGETHER * SHARED];
} Together;

typedef struct {
    Bytes masks, parities;
    size_t equations; /* of a place */
    Version version;
    Stage (*stages)[STAGES]; /* of each place */
    uint64_t *hits;          /* place << 32 | seed */
    size_t count, room;
    bool out_of_memory;
} Search;

static uint32_t mask_at(const Search *all, size_t place, size_t word, size_t equation)
{
    return number_at(all->masks, (place * STATE + word) * all->equations + equation);
}

static uint32_t parity_at(const Search *all, size_t place, size_t equation)
{
    return all->parities.at[place * all->equations + equation] & 1;
}

static bool holds(const Search *all, size_t place, uint32_t seed)
{
    uint32_t words[STATE] = {seed};
    for (uint32_t i = 1; i < STATE; i++)
        words[i] = 1812433253u * (words[i - 1] ^ (words[i - 1] >> 30)) + i;
    for (size_t i = 0; i < all->equations; i++) {
        uint32_t sum = 0;
        for (size_t word = 0; word < STATE; word++)
            sum ^= words[word] & mask_at(all, place, word, i);
        if (parity(sum) != parity_at(all, place, i))
            return false;
    }
    return true;
}

static void add_hit(Search *all, size_t place, uint32_t seed)
{
    if (all->count == all->room) {
        size_t room = 2 * all->room + 64;
        uint64_t *hits = realloc(all->hits, room * sizeof *hits);
        if (hits == NULL) {
            all->out_of_memory = true;
            return;
        }
        all->hits = hits;
        all->room = room;
    }
    all->hits[all->count++] = (uint64_t)place << 32 | seed;
}

/* Lets seeds that wait pass a stage of a place; those that do wait for the next one. */
static void pass_stage(Search *all, size_t place, int number)
{
    Stage *stage = &all->stages[place][number];
    uint32_t wrong[MOST_LANES];
    unsigned count = stage->count;
    stage->count = 0;
    all->version.one(stage->waiting, stage->masks, stage->parities, wrong);
    for (unsigned i = 0; i < count; i++) {
        if (wrong[i] & 1)
            continue;
        if (number + 1 == STAGES) {
            if (holds(all, place, stage->waiting[i]))
                add_hit(all, place, stage->waiting[i]);
            continue;
        }
        Stage *next = stage + 1;
        next->waiting[next->count++] = stage->waiting[i];
        if (next->count == all->version.lanes)
            pass_stage(all, place, number + 1);
    }
}

static void let_wait(Search *all, size_t place, uint32_t seed)
{
    Stage *stage = all->stages[place];
    stage->waiting[stage->count++] = seed;
    if (stage->count == all->version.lanes)
        pass_stage(all, place, 0);
}

static void prepare_stages(Search *all, size_t places)
{
    for (size_t place = 0; place < places; place++) {
        for (int number = 0; number < STAGES; number++) {
            Stage *stage = &all->stages[place][number];
            for (size_t i = 0; i < EACH; i++) {
                size_t equation = (size_t)number * EACH + i;
                stage->parities[i] = parity_at(all, place, equation);
                for (size_t word = 0; word < STATE; word++)
                    stage->masks[word * EACH + i] = mask_at(all, place, word, equation);
            }
        }
    }
}

static void prepare_together(const Search *all, size_t place, Together *together)
{
    size_t sums = all->version.places_together * SHARED;
    for (size_t i = 0; i < sums; i++) {
        size_t equation = STAGES * EACH + i % SHARED;
        together->parities[i] = parity_at(all, place + i / SHARED, equation);
        for (size_t word = 0; word < STATE; word++)
            together->masks[word * sums + i] = mask_at(all, place + i / SHARED, word, equation);
    }
}

/* All seeds, with as many places from `place` on as share a pass. */
static void try_together(Search *all, size_t place, uint32_t first, uint64_t count)
{
    Together together;
    uint32_t seeds[MOST_LANES], wrong[MOST_TOGETHER * MOST_LANES];
    unsigned lanes = all->version.lanes_together;
    prepare_together(all, place, &together);
    for (uint64_t done = 0; done < count; done += lanes) {
        for (unsigned i = 0; i < lanes; i++)
            seeds[i] = first + (uint32_t)done + i;
        all->version.together(seeds, together.masks, together.parities, wrong);
        unsigned taken = (unsigned)smaller(lanes, (size_t)(count - done));
        for (unsigned j = 0; j < all->version.places_together; j++)
            for (unsigned i = 0; i < taken; i++)
                if (!(wrong[j * lanes + i] & 1))
                    let_wait(all, place + j, seeds[i]);
    }
}

static int compare_hits(const void *a, const void *b)
{
    uint64_t left, right;
    memcpy(&left, a, sizeof left);
    memcpy(&right, b, sizeof right);
    return (left > right) - (left < right);
}

static void try_seeds(Search *all, size_t places, uint32_t first, uint64_t count)
{
    size_t place = 0, together = all->version.places_together;
    prepare_stages(all, places);
    for (; places - place >= together; place += together)
        try_together(all, place, first, count);
    for (; place < places; place++)
        for (uint64_t i = 0; i < count; i++)
            let_wait(all, place, first + (uint32_t)i);
    for (place = 0; place < places; place++)
        for (int number = 0; number < STAGES; number++)
            if (all->stages[place][number].count > 0)
                pass_stage(all, place, number);
    if (all->count > 0)
        qsort(all->hits, all->count, sizeof *all->hits, compare_hits);
}

const char *mersenne_seeds(Bytes masks, Bytes parities, uint64_t places, uint64_t first,
                           uint64_t count, Coded *coded)
{
    Search all = {masks, parities, parities.size / (size_t)places, BEST(version), NULL, NULL, 0, 0, false};
    if (masks.size / 4 / STATE != parities.size || masks.size % (4 * STATE) != 0)
        return "masks";
    if (parities.size % places != 0 || all.equations < LEAST)
        return "parities";
    if (count > ((uint64_t)1 << 32) - first)
        return "count";
    all.stages = calloc((size_t)places, sizeof *all.stages);
    if (all.stages == NULL)
        return OUT_OF_MEMORY;
    try_seeds(&all, (size_t)places, (uint32_t)first, count);
    free(all.stages);
    coded->memory = all.hits;
    coded->at = (unsigned char *)all.hits;
    coded->size = 8 * all.count;
    return all.out_of_memory ? OUT_OF_MEMORY : NULL;
}
