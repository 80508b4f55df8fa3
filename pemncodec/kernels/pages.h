/* Memory that was never touched. */
#ifndef PEMNCODEC_PAGES_H
#define PEMNCODEC_PAGES_H

#include <stddef.h>

/* One system call instead of a page fault for every 4 KiB. */
void populate(unsigned char *out, size_t size);

/* A page fault for every 2 MiB instead, where the system has such pages; for 4 MiB and more. */
void allow_large_pages(unsigned char *out, size_t size);

#endif
