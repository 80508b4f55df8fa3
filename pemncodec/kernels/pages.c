/* Memory that was never touched, where the system lets us say what we want. */
#define _GNU_SOURCE
#include "pages.h"

#include <stdint.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(MADV_POPULATE_WRITE) || defined(MADV_HUGEPAGE)
enum { PAGE = 4096 }; /* where pages are larger, calls may fail, which does no harm */

/* The last whole page tells. */
static int was_touched(const unsigned char *out, size_t size)
{
    unsigned char present = 0;
    uintptr_t last = ((uintptr_t)out + size) / PAGE * PAGE - PAGE;
    return mincore((void *)last, PAGE, &present) == 0 && (present & 1);
}
#endif

void populate(unsigned char *out, size_t size)
{
#ifdef MADV_POPULATE_WRITE
    enum { WORTHWHILE = 1 << 16 };
    uintptr_t first = ((uintptr_t)out + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = ((uintptr_t)out + size) / PAGE * PAGE;
    /* It costs more to populate memory that is there than to write it. */
    if (size >= WORTHWHILE && !was_touched(out, size))
        madvise((void *)first, last - first, MADV_POPULATE_WRITE);
#else
    (void)out, (void)size;
#endif
}

void allow_large_pages(unsigned char *out, size_t size)
{
#ifdef MADV_HUGEPAGE
    enum { WORTHWHILE = 1 << 22 };
    uintptr_t first = ((uintptr_t)out + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = ((uintptr_t)out + size) / PAGE * PAGE;
    if (size >= WORTHWHILE && !was_touched(out, size))
        madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)out, (void)size;
#endif
}
