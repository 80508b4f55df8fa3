/* Memory that was never touched, where the system lets us say what we want. */
#define _GNU_SOURCE
#include "pages.h"

#include <stdint.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>

Pages whole_pages(unsigned char *out, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (page - (uintptr_t)out % page) % page;
    Pages pages = {out, out, page};
    if (before < size) {
        pages.first += before;
        pages.end = pages.first + (size - before) / page * page;
    }
    return pages;
}

bool is_there(const Pages *pages, unsigned char *page)
{
    unsigned char present = 0;
    return mincore(page, pages->size, &present) == 0 && (present & 1);
}
#else
Pages whole_pages(unsigned char *out, size_t size)
{
    (void)size;
    return (Pages){out, out, 1};
}

bool is_there(const Pages *pages, unsigned char *page)
{
    (void)pages, (void)page;
    return true;
}
#endif

#if defined(MADV_POPULATE_WRITE) || defined(MADV_HUGEPAGE)
static void advise(unsigned char *out, size_t size, int advice)
{
    Pages pages = whole_pages(out, size);
    /* It costs more to populate memory that is there than to write it. The last page tells. */
    if (pages.first < pages.end && !is_there(&pages, pages.end - pages.size))
        madvise(pages.first, (size_t)(pages.end - pages.first), advice);
}
#endif

void populate(unsigned char *out, size_t size)
{
#ifdef MADV_POPULATE_WRITE
    enum { WORTHWHILE = 1 << 16 };
    if (size >= WORTHWHILE)
        advise(out, size, MADV_POPULATE_WRITE);
#else
    (void)out, (void)size;
#endif
}

void allow_large_pages(unsigned char *out, size_t size)
{
#ifdef MADV_HUGEPAGE
    enum { WORTHWHILE = 1 << 22 };
    if (size >= WORTHWHILE)
        advise(out, size, MADV_HUGEPAGE);
#else
    (void)out, (void)size;
#endif
}
