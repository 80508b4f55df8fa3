/* Memory that was never touched, where the system lets us say what we want. */
#define _GNU_SOURCE
#include "pages.h"

#include <stdint.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

void populate(unsigned char *out, size_t size)
{
#ifdef MADV_POPULATE_WRITE
    enum { PAGE = 4096, WORTHWHILE = 1 << 16 };
    uintptr_t first = ((uintptr_t)out + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = ((uintptr_t)out + size) / PAGE * PAGE;
    unsigned char present = 0;
    /* The last page tells: it costs more to populate memory that is there than to write it. */
    if (size >= WORTHWHILE
        && (mincore((void *)(last - PAGE), PAGE, &present) != 0 || !(present & 1)))
        madvise((void *)first, last - first, MADV_POPULATE_WRITE); /* if it fails, no harm is done */
#else
    (void)out, (void)size;
#endif
}

void allow_large_pages(unsigned char *out, size_t size)
{
#ifdef MADV_HUGEPAGE
    enum { PAGE = 4096, WORTHWHILE = 1 << 22 };
    uintptr_t first = ((uintptr_t)out + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = ((uintptr_t)out + size) / PAGE * PAGE;
    if (size >= WORTHWHILE)
        madvise((void *)first, last - first, MADV_HUGEPAGE); /* if it fails, no harm is done */
#else
    (void)out, (void)size;
#endif
}
