/* Memory that was never touched, where the system lets us say what we want. */
#ifndef PEMNCODEC_PAGES_H
#define PEMNCODEC_PAGES_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    unsigned char *first, *end;
    size_t size; /* of each */
} Pages;

/* Those that lie in `out` as a whole; none where the system does not say whether pages are there. */
Pages whole_pages(unsigned char *out, size_t size);

bool is_there(const Pages *pages, unsigned char *page);

/* One system call instead of a page fault for every page. */
void populate(unsigned char *out, size_t size);

/* A page fault for every 2 MiB instead of 4 KiB, where the system has such pages; for 4 MiB and more. */
void allow_large_pages(unsigned char *out, size_t size);

#endif
