/* Words to what torch's CPU kernels make of them (section 5.5).
 *
 * Every operation rounds to the nearest number by itself: the build has to turn off contraction. Where
 * values are fused, torch's own kernels use fused multiply-adds, and so do we: by an instruction, or
 * in double precision, which gives the same bits.
 */
#include "torch_values.h"

#include <math.h>
#include <string.h>

#include "kernels.h"
#include "processor.h"
#include "words.h"

static ALWAYS_INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static ALWAYS_INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* The lower 24 bits of a word, from 0 to 1. */
static ALWAYS_INLINE float fraction(uint32_t word)
{
    return (float)(int32_t)(word & 0xFFFFFF) * 0x1p-24f;
}

/* ---- a * b + c, rounded once ---- */

/* The product is exact in double precision. The sum is rounded to odd, so that rounding it again to
 * binary32 gives what one rounding gives. */
static ALWAYS_INLINE float fused_in_double(float a, float b, float c)
{
    double product = (double)a * b, sum = product + c, part = sum - product;
    double error = (product - (sum - part)) + (c - part);
    uint64_t bits;
    memcpy(&bits, &sum, 8);
    if (error != 0 && bits % 2 == 0)
        bits += (error > 0) == (sum > 0) ? 1 : UINT64_MAX;
    memcpy(&sum, &bits, 8);
    return (float)sum;
}

#ifdef __GNUC__
#define fused_by_instruction __builtin_fmaf
#endif
#ifdef __FP_FAST_FMAF
#define fused_anywhere fused_by_instruction
#else
#define fused_anywhere fused_in_double
#endif

/* ---- The "vector" variant ---- */

/* The two values of two words: radius times cosine and sine of the angle. F is one of the above. */
#define VECTOR_PAIR(F) \
    float u1 = 1.0f - fraction(words[i]), u2 = fraction(words[i + APART]); \
    /* The logarithm of u1 = x * 2^e. */ \
    float e = (float)((int32_t)(bits_of(u1) >> 23) - 126); \
    float x = float_of((bits_of(u1) & 0x007FFFFF) | 0x3F000000); \
    int32_t low = x < 0.707106781186547524f; \
    e -= low ? 1.0f : 0.0f; \
    x = (x - 1.0f) + (low ? x : 0.0f); \
    float z = x * x, y = 7.0376836292E-2f; \
    y = F(y, x, -1.1514610310E-1f); \
    y = F(y, x, 1.1676998740E-1f); \
    y = F(y, x, -1.2420140846E-1f); \
    y = F(y, x, 1.4249322787E-1f); \
    y = F(y, x, -1.6668057665E-1f); \
    y = F(y, x, 2.0000714765E-1f); \
    y = F(y, x, -2.4999993993E-1f); \
    y = F(y, x, 3.3333331174E-1f); \
    y = F(y * x, z, e * -2.12194440e-4f); \
    y = F(z, -0.5f, y); \
    float radius = sqrtf(-2.0f * F(e, 0.693359375f, x + y)); \
    /* The angle, as q eighths of a turn and x; s is the sine of x, c its cosine. */ \
    float angle = 6.283185307179586f * u2; \
    int32_t q = ((int32_t)(angle * 1.27323954473516f) + 1) & ~1; \
    x = F((float)q, -0.78515625f, angle); \
    x = F((float)q, -2.4187564849853515625e-4f, x); \
    x = F((float)q, -3.77489497744594108e-8f, x); \
    z = x * x; \
    float c = F(2.443315711809948E-5f, z, -1.388731625493765E-3f); \
    c = F(c, z, 4.166664568298827E-2f); \
    c = F(c * z, z, -(z * 0.5f)) + 1.0f; \
    float s = F(-1.9515295891E-4f, z, 8.3321608736E-3f); \
    s = F(s, z, -1.6666654611E-1f); \
    s = F(s * z, x, x); \
    uint32_t sine = bits_of(q & 2 ? c : s) ^ ((uint32_t)(q & 4) << 29); \
    uint32_t cosine = bits_of(q & 2 ? s : c) ^ ((uint32_t)((q + 2) & 4) << 29); \
    /* Adding zero makes +0 of −0. */ \
    values[i] = radius * float_of(cosine) + 0.0f; \
    values[i + APART] = radius * float_of(sine) + 0.0f;

/* Groups of eight pairs, so that compilers make vectors of eight. */
#define NORMAL(NAME, TARGET, PAIR, F) \
    TARGET static void NAME(const uint32_t *restrict words, size_t count, float *restrict values) \
    { \
        enum { APART = 8 }; \
        for (size_t group = 0; group < count; group += NORMAL_GROUP) \
            for (size_t i = group; i < group + 8; i++) { \
                PAIR(F) \
            } \
    }
NORMAL(vector_normal, , VECTOR_PAIR, fused_anywhere)
#ifdef HAVE_X86
NORMAL(vector_normal_avx2, AVX2, VECTOR_PAIR, fused_by_instruction)

/* All first halves of groups, then all second ones: vectors of sixteen. */
AVX512 static void vector_normal_avx512(const uint32_t *restrict from, size_t count,
                                        float *restrict to)
{
    enum { APART = DRAWN_AT_ONCE / 2 };
    uint32_t words[DRAWN_AT_ONCE];
    float values[DRAWN_AT_ONCE];
    for (size_t i = 0; i < count / 2; i += 8) {
        memcpy(words + i, from + 2 * i, 8 * sizeof *words);
        memcpy(words + APART + i, from + 2 * i + 8, 8 * sizeof *words);
    }
    for (size_t i = 0; i < count / 2; i++) {
        VECTOR_PAIR(fused_by_instruction)
    }
    for (size_t i = 0; i < count / 2; i += 8) {
        memcpy(to + 2 * i, values + i, 8 * sizeof *values);
        memcpy(to + 2 * i + 8, values + APART + i, 8 * sizeof *values);
    }
}
#endif

/* ---- The "scalar" variant: logf, sinf and cosf as glibc has them from 2.28 on ---- */

/* 1 / c and log c, for a c near the middle of each of 16 parts of [0.7, 1.4). */
static const double INVERSES[16][2] = {
    {0x1.661ec79f8f3bep+0, -0x1.57bf7808caadep-2}, {0x1.571ed4aaf883dp+0, -0x1.2bef0a7c06ddbp-2},
    {0x1.49539f0f010bp+0, -0x1.01eae7f513a67p-2},  {0x1.3c995b0b80385p+0, -0x1.b31d8a68224e9p-3},
    {0x1.30d190c8864a5p+0, -0x1.6574f0ac07758p-3}, {0x1.25e227b0b8eap+0, -0x1.1aa2bc79c81p-3},
    {0x1.1bb4a4a1a343fp+0, -0x1.a4e76ce8c0e5ep-4}, {0x1.12358f08ae5bap+0, -0x1.1973c5a611cccp-4},
    {0x1.0953f419900a7p+0, -0x1.252f438e10c1ep-5}, {0x1p+0, 0x0p+0},
    {0x1.e608cfd9a47acp-1, 0x1.aa5aa5df25984p-5},  {0x1.ca4b31f026aap-1, 0x1.c5e53aa362eb4p-4},
    {0x1.b2036576afce6p-1, 0x1.526e57720db08p-3},  {0x1.9c2d163a1aa2dp-1, 0x1.bc2860d22477p-3},
    {0x1.886e6037841edp-1, 0x1.1058bc8a07ee1p-2},  {0x1.767dcf5534862p-1, 0x1.4043057b6ee09p-2},
};

/* The logarithm of a number from 2^-24 to 1. */
static ALWAYS_INLINE float scalar_log(float number)
{
    uint32_t from = bits_of(number) - 0x3F330000;
    int32_t exponent = (int32_t)(from & 0xFF800000) / (1 << 23);
    const double *inverse = INVERSES[from >> 19 & 15];
    double r = (double)float_of(bits_of(number) - (from & 0xFF800000)) * inverse[0] - 1;
    double first = inverse[1] + exponent * 0x1.62e42fefa39efp-1, square = r * r;
    double y = 0x1.5575b0be00b6ap-2 * r + -0x1.ffffef20a4123p-2;
    y = -0x1.00ea348b88334p-2 * square + y;
    return (float)(y * square + (first + r));
}

/* Of an angle up to an eighth of a turn, whose square is there too. */
static ALWAYS_INLINE float scalar_sine(double x, double square)
{
    double cube = x * square, last = 0x1.1107605230bc4p-7 + square * -0x1.994eb3774cf24p-13;
    return (float)((x + cube * -0x1.555545995a603p-3) + cube * square * last);
}

static ALWAYS_INLINE float scalar_cosine(double square, double sign)
{
    double fourth = square * square;
    double first = sign + square * (sign * -0x1.ffffffd0c621cp-2);
    double last = sign * -0x1.6c087e89a359dp-10 + square * (sign * 0x1.99343027bf8c3p-16);
    return (float)((first + fourth * (sign * 0x1.55553e1068f19p-5)) + fourth * square * last);
}

#define SCALAR_PAIR(F) \
    float u1 = 1.0f - fraction(words[i]), u2 = fraction(words[i + APART]); \
    float radius = sqrtf(-2.0f * scalar_log(u1)); \
    /* The angle, as q quarters of a turn and x. */ \
    float angle = (float)(0x1.921fb54442d18p+2 * (double)u2); \
    int32_t q = ((int32_t)(angle * 0x1.45f306dc9c883p+23) + 0x800000) >> 24; \
    double x = angle - q * 0x1.921fb54442d18p+0, square = x * x; \
    float s = scalar_sine((q + 1) & 2 ? -x : x, square); \
    float c = scalar_cosine(square, q & 2 ? -1.0 : 1.0); \
    values[i] = radius * (q & 1 ? s : c) + 0.0f; \
    values[i + APART] = radius * (q & 1 ? c : s) + 0.0f;

#define SCALAR_NORMAL(NAME, TARGET) NORMAL(NAME, TARGET, SCALAR_PAIR, )
VERSIONS(SCALAR_NORMAL, scalar_normal)

/* ---- Uniform values ---- */

#define UNIFORM(NAME, TARGET, F) \
    TARGET static void NAME(const uint32_t *restrict words, size_t count, float low, float span, \
                            float *restrict values) \
    { \
        for (size_t i = 0; i < count; i++) \
            values[i] = F(fraction(words[i]), span, low); \
    }
#define IN_TWO_STEPS(a, b, c) ((a) * (b) + (c))
UNIFORM(vector_uniform, , fused_anywhere)
#ifdef HAVE_X86
UNIFORM(vector_uniform_avx2, AVX2, fused_by_instruction)
UNIFORM(vector_uniform_avx512, AVX512, fused_by_instruction)
#endif
#define SCALAR_UNIFORM(NAME, TARGET) UNIFORM(NAME, TARGET, IN_TWO_STEPS)
VERSIONS(SCALAR_UNIFORM, scalar_uniform)

/* ---- */

bool uniform_between(const float *bounds, bool fused, Drawn *drawn)
{
    *drawn = (Drawn){false, fused, bounds[0], bounds[1] - bounds[0]};
    return isfinite(drawn->low) && isfinite(drawn->span);
}

void draw_values(const Drawn *drawn, const uint32_t *words, size_t count, float *values)
{
    if (drawn->normal && drawn->fused)
        BEST(vector_normal)(words, count, values);
    else if (drawn->normal)
        BEST(scalar_normal)(words, count, values);
    else if (drawn->fused)
        BEST(vector_uniform)(words, count, drawn->low, drawn->span, values);
    else
        BEST(scalar_uniform)(words, count, drawn->low, drawn->span, values);
}

static void draw_all(const Drawn *drawn, const unsigned char *from, unsigned char *to, size_t size)
{
    uint32_t words[DRAWN_AT_ONCE];
    float values[DRAWN_AT_ONCE];
    for (size_t done = 0, taken; done < size; done += taken) {
        taken = smaller(sizeof words, size - done);
        memcpy(words, from + done, taken);
        draw_values(drawn, words, taken / 4, values);
        memcpy(to + done, values, taken);
    }
}

const char *torch_normal(Bytes words, bool fused, Room out)
{
    if (words.size % (4 * NORMAL_GROUP) != 0)
        return "words";
    if (out.size != words.size)
        return "out";
    draw_all(&(Drawn){true, fused, 0, 0}, words.at, out.at, out.size);
    return NULL;
}

const char *torch_uniform(Bytes words, bool fused, Bytes bounds, Room out)
{
    float copy[2];
    Drawn drawn;
    if (words.size % 4 != 0)
        return "words";
    if (bounds.size != sizeof copy)
        return "bounds";
    memcpy(copy, bounds.at, sizeof copy);
    if (!uniform_between(copy, fused, &drawn))
        return "bounds";
    if (out.size != words.size)
        return "out";
    draw_all(&drawn, words.at, out.at, out.size);
    return NULL;
}
