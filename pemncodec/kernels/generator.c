/* Philox4x32-10 and quantiles (section 5). */
#include "generator.h"

#include <string.h>

#include "kernels.h"
#include "processor.h"
#include "words.h"

static void philox_blocks(uint32_t *words, uint64_t block, uint64_t stream, uint64_t seed)
{
    uint32_t c0[BLOCKS], c1[BLOCKS], c2[BLOCKS], c3[BLOCKS];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (unsigned b = 0; b < BLOCKS; b++) {
        c0[b] = (uint32_t)(block + b);
        c1[b] = (uint32_t)((block + b) >> 32);
        c2[b] = (uint32_t)stream;
        c3[b] = (uint32_t)(stream >> 32);
    }
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        for (int b = 0; b < BLOCKS; b++) {
            uint64_t p0 = (uint64_t)c0[b] * 0xD2511F53u, p1 = (uint64_t)c2[b] * 0xCD9E8D57u;
            c0[b] = (uint32_t)(p1 >> 32) ^ c1[b] ^ k0;
            c2[b] = (uint32_t)(p0 >> 32) ^ c3[b] ^ k1;
            c1[b] = (uint32_t)p1;
            c3[b] = (uint32_t)p0;
        }
    }
    for (int b = 0; b < BLOCKS; b++, words += 4)
        words[0] = c0[b], words[1] = c1[b], words[2] = c2[b], words[3] = c3[b];
}

#ifdef HAVE_X86
/* As above, for processors that have AVX2, since the compiler finds no 32 × 32-bit product by itself;
 * and for those with AVX-512's third operand and twice the registers. GROUPS of four blocks are in
 * registers at one time, their words in 64-bit lanes; what is in the upper halves does no harm. */
#define PHILOX_BLOCKS(NAME, TARGET, GROUPS, XOR3) \
    TARGET static void NAME(uint32_t *words, uint64_t block, uint64_t stream, uint64_t seed) \
    { \
        const __m256i low = _mm256_set1_epi64x(UINT32_MAX); \
        const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57); \
        __m256i keys0[10], keys1[10]; \
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32); \
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) { \
            keys0[round] = _mm256_set1_epi64x(k0); \
            keys1[round] = _mm256_set1_epi64x(k1); \
        } \
        for (int b = 0; b < BLOCKS; b += 4 * GROUPS, block += 4 * GROUPS) { \
            __m256i c0[GROUPS], c1[GROUPS], c2[GROUPS], c3[GROUPS]; \
            for (int g = 0; g < GROUPS; g++) { \
                __m256i first = _mm256_set1_epi64x((long long)(block + 4 * (uint64_t)g)); \
                c0[g] = _mm256_add_epi64(first, _mm256_setr_epi64x(0, 1, 2, 3)); \
                c1[g] = _mm256_srli_epi64(c0[g], 32); \
                c2[g] = _mm256_set1_epi64x((long long)stream); \
                c3[g] = _mm256_srli_epi64(c2[g], 32); \
            } \
            for (int round = 0; round < 10; round++) { \
                for (int g = 0; g < GROUPS; g++) { \
                    __m256i p0 = _mm256_mul_epu32(c0[g], m0), p1 = _mm256_mul_epu32(c2[g], m1); \
                    c0[g] = XOR3(_mm256_srli_epi64(p1, 32), c1[g], keys0[round]); \
                    c2[g] = XOR3(_mm256_srli_epi64(p0, 32), c3[g], keys1[round]); \
                    c1[g] = p1; \
                    c3[g] = p0; \
                } \
            } \
            for (int g = 0; g < GROUPS; g++, words += 16) { \
                __m256i front = _mm256_or_si256(_mm256_and_si256(c0[g], low), _mm256_slli_epi64(c1[g], 32)); \
                __m256i back = _mm256_or_si256(_mm256_and_si256(c2[g], low), _mm256_slli_epi64(c3[g], 32)); \
                __m256i even = _mm256_unpacklo_epi64(front, back), odd = _mm256_unpackhi_epi64(front, back); \
                _mm256_storeu_si256((__m256i *)words, _mm256_permute2x128_si256(even, odd, 0x20)); \
                _mm256_storeu_si256((__m256i *)(words + 8), _mm256_permute2x128_si256(even, odd, 0x31)); \
            } \
        } \
    }
#define XOR3_AVX2(a, b, c) _mm256_xor_si256(a, _mm256_xor_si256(b, c))
#define XOR3_AVX512(a, b, c) _mm256_ternarylogic_epi64(a, b, c, 0x96)
PHILOX_BLOCKS(philox_blocks_avx2, AVX2, 2, XOR3_AVX2)
PHILOX_BLOCKS(philox_blocks_avx512, AVX512, 4, XOR3_AVX512)
#endif

void generate_words(uint32_t *words, uint64_t block, uint64_t stream, uint64_t seed)
{
    BEST(philox_blocks)(words, block, stream, seed);
}

const char *philox4x32(Room out, uint64_t seed, uint64_t stream, uint64_t start)
{
    size_t count = out.size / 4, skip = (size_t)(start % 4), taken;
    uint64_t block = start / 4;
    if (out.size % 4 != 0)
        return "out";
    if (count > 0 && count - 1 > UINT64_MAX - start)
        return "start";
    for (; count > 0; count -= taken, block += BLOCKS, skip = 0) {
        uint32_t words[4 * BLOCKS];
        taken = smaller(4 * BLOCKS - skip, count);
        generate_words(words, block, stream, seed);
        memcpy(out.at, words + skip, 4 * taken);
        out.at += 4 * taken;
    }
    return NULL;
}

const char *quantiles(Bytes words, Bytes table, Room out)
{
    uint32_t copy[QUANTILES], word;
    if (words.size % 4 != 0)
        return "words";
    if (table.size != sizeof copy)
        return "table";
    if (out.size != words.size)
        return "out";
    memcpy(copy, table.at, sizeof copy);
    for (size_t i = 0; i < out.size; i += 4) {
        memcpy(&word, words.at + i, 4);
        memcpy(out.at + i, &copy[word >> 20], 4);
    }
    return NULL;
}
