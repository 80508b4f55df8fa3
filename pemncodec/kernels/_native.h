/* What the kernels share: arguments, memory, threads, versions for processors; and all calls from Python.
 *
 * The GIL is released around every loop, so another thread may change a caller's buffer meanwhile:
 * what bounds a memory access is copied before it is checked. Buffers may be unaligned and may
 * overlap, so they are accessed as bytes or through memcpy only. Numbers in coded data are put
 * together from bytes; frequencies and generated words are in native byte order.
 */
#ifndef PEMNCODEC_NATIVE_H
#define PEMNCODEC_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_X86 1
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt")))
/* Defines a function for any processor, for those with AVX2 and for those with AVX-512. */
#define VERSIONS(DEFINE, NAME) DEFINE(NAME, ) DEFINE(NAME##_avx2, AVX2) DEFINE(NAME##_avx512, AVX512)
/* That of this processor: NAME_avx512, NAME_avx2 or NAME. Tests choose one themselves. */
#ifndef BEST
#define BEST(NAME) \
    (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") ? NAME##_avx512 \
     : __builtin_cpu_supports("avx2") ? NAME##_avx2 : NAME)
#endif
#else
#define VERSIONS(DEFINE, NAME) DEFINE(NAME, )
#define BEST(NAME) NAME
#endif

#ifdef __GNUC__
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define ALWAYS_INLINE inline
#define PREFETCH(address) ((void)(address))
#endif

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* ---- Arguments: converters for PyArg_ParseTupleAndKeywords ---- */

typedef struct {
    const char *name;
    uint64_t least, most, value;
} Integer;

int readable(PyObject *object, void *view);
int writable(PyObject *object, void *view);
int integer(PyObject *object, void *to);

/* Sets a ValueError; returns 0, as converters do. */
int refuse(const char *message);
/* None, or NULL with the error as a ValueError; when "", an exception is set already. */
PyObject *outcome(const char *error);

/* Position of the lowest bit; word != 0. */
static inline unsigned lowest_bit(uint64_t word)
{
#ifdef __GNUC__
    return (unsigned)__builtin_ctzll(word);
#else
    unsigned position = 0;
    for (; (word & 1) == 0; word >>= 1)
        position++;
    return position;
#endif
}

static inline uint64_t load64(const unsigned char *bytes, size_t size) /* little-endian, 1 to 8 */
{
    uint64_t word = 0;
    for (size_t i = 0; i < size; i++)
        word |= (uint64_t)bytes[i] << (8 * i);
    return word;
}

/* ---- Memory and threads ---- */

/* One system call instead of a page fault for every 4 KiB of memory that was never touched. */
void populate(unsigned char *out, size_t size);
/* A page fault for every 2 MiB instead, where the system has such pages. */
void allow_large_pages(unsigned char *out, size_t size);

typedef void Work(void *all, size_t part);

/* Does all parts in any order, shared by that many threads of the process's OpenMP runtime if it has
 * one. */
void run_parts(Work *work, void *all, size_t parts, uint64_t threads);

/* ---- The generator (section 5) ---- */

enum {
    BLOCKS = 64, /* below 32, gcc unrolls the loops over blocks instead of vectorising them */
    QUANTILES = 4096,
};

/* Writes the 4 * BLOCKS words from `block` on. */
void generate_words(uint32_t *words, uint64_t block, uint64_t stream, uint64_t seed);

/* ---- Values under a mask ---- */

/* Once, before any call. */
void fill_kept_words(void);

/* ---- Calls from Python, documented in numpy_twin.py and mixing_twin.py ---- */

#define KERNEL(name) PyObject *name(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
KERNEL(philox4x32);
KERNEL(quantiles);
KERNEL(rans_encode);
KERNEL(rans_decode);
KERNEL(runs_encode);
KERNEL(runs_decode);
KERNEL(expand);
KERNEL(expand_normal);
KERNEL(top_k);
KERNEL(keep_largest);
KERNEL(magnitude_gradient);
KERNEL(mixing_encode);
KERNEL(mixing_decode);

#endif
