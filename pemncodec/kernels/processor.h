/* Versions of a function for processors with more instructions than all have. */
#ifndef PEMNCODEC_PROCESSOR_H
#define PEMNCODEC_PROCESSOR_H

/* Tests define PLAIN for what processors of other kinds run. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(PLAIN)
#include <immintrin.h>
#define HAVE_X86 1
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt,fma")))
/* Defines a function for any processor, for those with AVX2 and FMA, for those with AVX-512. */
#define VERSIONS(DEFINE, NAME) DEFINE(NAME, ) DEFINE(NAME##_avx2, AVX2) DEFINE(NAME##_avx512, AVX512)
/* That of this processor: NAME_avx512, NAME_avx2 or NAME. Tests choose one themselves. */
#ifndef BEST
#define BEST(NAME) \
    (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ? NAME \
     : __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") ? NAME##_avx512 \
     : NAME##_avx2)
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

#endif
