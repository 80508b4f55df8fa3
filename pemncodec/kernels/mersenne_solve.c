/* A state of MT19937 from linear equations over bits of its words.
 *
 * Over GF(2) every bit of every word is a sum of bits of the state. A row is such a sum: a bit for
 * each unknown, and one for the constant.
 */
#include <stdlib.h>
#include <string.h>

#include "echelon.h"
#include "kernels.h"
#include "mersenne.h"
#include "words.h"

enum {
    STATE = MERSENNE_STATE,
    MIDDLE = MERSENNE_MIDDLE,
    LAST = 1 << 22, /* above all words */
};

/* ---- Words ---- */

static uint32_t untemper(uint32_t word)
{
    uint32_t upper;
    word ^= word >> 18;
    word ^= (word << 15) & 0xEFC60000u;
    upper = word;
    for (int i = 0; i < 4; i++) /* 7 bits more are right each time */
        upper = word ^ ((upper << 7) & 0x9D2C5680u);
    word = upper;
    for (int i = 0; i < 2; i++)
        upper = word ^ (upper >> 11);
    return upper;
}

/* ---- Equations ---- */

typedef struct {
    Bytes words, masks, parities;
    size_t count;
} Equations; /* in the order of their words; parities are bytes, of which the lowest bit counts */

/* What equations about one word of the state say of its tempered bits: each bit is known, or a sum of
 * bits that are not. */
typedef struct {
    uint32_t sums[32]; /* of bit i; the bit itself where it stays unknown */
    uint32_t ones;     /* added to them */
    uint32_t resolved; /* bits that are no unknowns */
} Word;

/* False where the equation contradicts those before. */
static bool resolve(Word *word, uint32_t mask, uint32_t value)
{
    uint32_t sum = 0;
    for (int i = 0; i < 32; i++) {
        if (mask >> i & 1) {
            sum ^= word->sums[i];
            value ^= word->ones >> i & 1;
        }
    }
    if (sum == 0)
        return value == 0;
    unsigned bit = lowest_bit(sum);
    for (int i = 0; i < 32; i++) {
        if (word->sums[i] >> bit & 1) {
            word->sums[i] ^= sum;
            word->ones ^= value << i;
        }
    }
    word->resolved |= (uint32_t)1 << bit;
    return true;
}

/* ---- The system ---- */

typedef struct {
    Word words[STATE];
    size_t columns[STATE]; /* of a word's first unknown */
    size_t unknowns;
    size_t width;      /* of a row; the constant is in column `unknowns` */
    uint64_t *symbols;  /* rows of the bits of the last STATE words, before tempering */
    uint32_t next;      /* word that is not yet among them */
    uint64_t *solution; /* a row: what the unknowns are, and 1 for the constant */
    uint64_t *memory;  /* of equations */
    Echelon equations; /* their rows */
    size_t most;       /* of them */
} System;

static uint64_t *symbol(const System *all, uint32_t word, unsigned bit)
{
    return all->symbols + ((size_t)(word % STATE) * 32 + bit) * all->width;
}

/* Equations about words of the state leave fewer unknowns. Of word 0 only the highest bit before
 * tempering is part of the state. Returns false where equations contradict each other. */
static bool resolve_words(System *all, const Equations *equations)
{
    for (int w = 0; w < STATE; w++) {
        for (int i = 0; i < 32; i++)
            all->words[w].sums[i] = (uint32_t)1 << i;
        all->words[w].ones = all->words[w].resolved = 0;
    }
    for (size_t i = 0; i < equations->count; i++) {
        uint32_t word = number_at(equations->words, i);
        if (word >= STATE)
            break;
        if (word > 0
            && !resolve(&all->words[word], number_at(equations->masks, i),
                        equations->parities.at[i] & 1))
            return false;
    }
    all->columns[0] = 0;
    all->unknowns = 1;
    for (int w = 1; w < STATE; w++) {
        all->columns[w] = all->unknowns;
        for (int i = 0; i < 32; i++)
            all->unknowns += !(all->words[w].resolved >> i & 1);
    }
    all->width = (all->unknowns + 64) / 64;
    return true;
}

static bool allocate(System *all)
{
    size_t bytes = 8 * all->width;
    all->most = all->unknowns + all->unknowns / 8 + 64; /* some depend on others */
    all->symbols = calloc((size_t)STATE * 32, bytes);
    all->memory = malloc(all->most * bytes);
    all->solution = calloc(all->width, 8);
    if (!all->symbols || !all->memory || !all->solution
        || !prepare_echelon(&all->equations, all->most, all->width, all->unknowns))
        return false;
    for (size_t i = 0; i < all->most; i++)
        all->equations.rows[i] = all->memory + i * all->width;
    return true;
}

static void release(System *all)
{
    free(all->symbols);
    free(all->memory);
    free(all->solution);
    release_echelon(&all->equations);
}

/* The sum that a tempered bit of a word of the state is, added to a row. */
static void add_tempered(const System *all, int w, int bit, uint64_t *row)
{
    const Word *word = &all->words[w];
    size_t column = all->columns[w];
    for (int i = 0; i < 32; i++) {
        if (word->sums[bit] >> i & 1)
            flip(row, column);
        column += !(word->resolved >> i & 1);
    }
    if (word->ones >> bit & 1)
        flip(row, all->unknowns);
}

static void first_symbols(System *all)
{
    flip(symbol(all, 0, 31), 0);
    for (int i = 0; i < 32; i++) { /* tempered bit i is in these bits */
        uint32_t bits = untemper((uint32_t)1 << i);
        for (int w = 1; w < STATE; w++)
            for (unsigned bit = 0; bit < 32; bit++)
                if (bits >> bit & 1)
                    add_tempered(all, w, i, symbol(all, (uint32_t)w, bit));
    }
    all->next = STATE;
}

/* The recurrence, on rows: a word in place of the one STATE before. */
static void next_symbols(System *all)
{
    uint32_t w = all->next++;
    size_t bytes = 8 * all->width;
    for (unsigned bit = 0; bit < 32; bit++) { /* upwards, since bit 30 needs the old bit 31 */
        uint64_t *row = symbol(all, w, bit);
        const uint64_t *shifted = bit == 30 ? symbol(all, w, 31) : symbol(all, w + 1, (bit + 1) % 32);
        if (bit == 31)
            memset(row, 0, bytes);
        else
            memcpy(row, shifted, bytes);
        add_row(row, symbol(all, w + MIDDLE, bit), all->width);
        if (MERSENNE_MATRIX >> bit & 1)
            add_row(row, symbol(all, w + 1, 0), all->width);
    }
}

/* Adds rows of equations from number `from` on, as far as there is room; returns the next number. */
static size_t add_equations(System *all, const Equations *equations, size_t from, size_t *rows)
{
    for (; from < equations->count && *rows < all->most; from++) {
        uint32_t word = number_at(equations->words, from);
        if (word < STATE)
            continue;
        while (all->next <= word)
            next_symbols(all);
        uint64_t *row = all->equations.rows[(*rows)++];
        memset(row, 0, 8 * all->width);
        uint32_t bits = before_tempering(number_at(equations->masks, from));
        for (; bits != 0; bits &= bits - 1)
            add_row(row, symbol(all, word, lowest_bit(bits)), all->width);
        if (equations->parities.at[from] & 1)
            flip(row, all->unknowns);
    }
    return from;
}

/* ---- The solution ---- */

/* The state, once every unknown has a row. */
static void substitute(const System *all, uint32_t *state)
{
    uint64_t *solution = all->solution;
    flip(solution, all->unknowns);
    for (size_t column = all->unknowns; column-- > 0;) { /* row i begins with unknown i */
        const uint64_t *row = all->equations.rows[column];
        uint64_t sum = 0;
        for (size_t i = column / 64; i < all->width; i++)
            sum ^= row[i] & solution[i];
        if (parity((uint32_t)(sum ^ sum >> 32)))
            flip(solution, column);
    }
    for (int w = 1; w < STATE; w++) {
        const Word *word = &all->words[w];
        uint32_t unknown = 0, tempered = word->ones;
        size_t column = all->columns[w];
        for (int i = 0; i < 32; i++)
            if (!(word->resolved >> i & 1))
                unknown |= (uint32_t)is_set(solution, column++) << i;
        for (int i = 0; i < 32; i++)
            tempered ^= parity(word->sums[i] & unknown) << i;
        state[w] = untemper(tempered);
    }
    /* The lower bits of word 0 follow from the recurrence that made the last word. */
    uint32_t mixed = state[STATE - 1] ^ state[MIDDLE - 1], odd = mixed >> 31;
    mixed = (odd ? mixed ^ MERSENNE_MATRIX : mixed) << 1 | odd;
    state[0] = (uint32_t)is_set(solution, 0) << 31 | (mixed & 0x7FFFFFFFu);
}

static bool agrees(const uint32_t *state, const Equations *equations)
{
    uint32_t next[STATE], words[STATE];
    uint64_t end = STATE;
    memcpy(next, state, sizeof next);
    for (int i = 0; i < STATE; i++)
        words[i] = temper(next[i]);
    for (size_t i = 0; i < equations->count; i++) {
        uint32_t word = number_at(equations->words, i);
        for (; word >= end; end += STATE)
            next_words(next, words);
        if (parity(words[word % STATE] & number_at(equations->masks, i))
            != (equations->parities.at[i] & 1u))
            return false;
    }
    return true;
}

/* Adds equations until every unknown has a row, or there are no more. */
static int64_t unknowns_left(System *all, const Equations *equations)
{
    size_t next = 0;
    first_symbols(all);
    Echelon *found = &all->equations;
    while (found->rank < all->unknowns) {
        size_t rows = found->rank;
        next = add_equations(all, equations, next, &rows);
        if (rows == found->rank)
            break;
        eliminate(found, rows);
        for (size_t i = found->rank; i < rows; i++)
            if (is_set(found->rows[i], all->unknowns))
                return -1;
    }
    return (int64_t)(all->unknowns - found->rank);
}

static bool are_in_order(const Equations *equations)
{
    uint32_t before = 0;
    for (size_t i = 0; i < equations->count; i++) {
        uint32_t word = number_at(equations->words, i);
        if (word < before || word >= LAST)
            return false;
        before = word;
    }
    return true;
}

const char *mersenne_solve(Bytes words, Bytes masks, Bytes parities, Room out, int64_t *left)
{
    Equations equations = {words, masks, parities, parities.size};
    uint32_t solved[STATE];
    if (words.size != 4 * parities.size || !are_in_order(&equations))
        return "words";
    if (masks.size != words.size)
        return "masks";
    if (out.size != sizeof solved)
        return "out";
    System *all = calloc(1, sizeof *all);
    if (all == NULL)
        return OUT_OF_MEMORY;
    *left = -1;
    if (resolve_words(all, &equations)) {
        if (!allocate(all)) {
            release(all);
            free(all);
            return OUT_OF_MEMORY;
        }
        *left = unknowns_left(all, &equations);
        if (*left == 0) {
            substitute(all, solved);
            if (agrees(solved, &equations))
                memcpy(out.at, solved, sizeof solved);
            else
                *left = -1;
        }
    }
    release(all);
    free(all);
    return NULL;
}
