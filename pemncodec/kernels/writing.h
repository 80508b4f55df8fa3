/* Memory that is written once, from its first byte to its last. */
#ifndef PEMNCODEC_WRITING_H
#define PEMNCODEC_WRITING_H

#include "kernels.h"

enum { WRITTEN_AT_ONCE = 1 << 15 }; /* bytes, at most */

/* What is written goes into a buffer first where the system then makes new pages of it: these it need not
 * fill with zeros before. */
typedef struct {
    unsigned char *to;           /* where bytes are written: in memory, or in `buffer` */
    unsigned char *buffer;
    size_t written, enough;      /* since they were passed on; how many are passed on at once */
    unsigned char *at, *end;     /* in memory: the first byte that is not passed on, the end of all */
    unsigned char *first, *last; /* of the pages that are made of the buffer, and their end */
    unsigned char *touched;      /* one of these that is there already, or NULL */
    size_t page;                 /* bytes of each */
    int maker;                   /* that makes them, a file descriptor; -1 where `to` is in memory */
} Writing;

/* Begins to write all of `out`. Until its last byte is written the caller reads `values` and `mask`, and
 * does not touch `out` but by what is here. */
void start_writing(Writing *writing, Room out, Bytes values, Bytes mask);

/* Where the next bytes are to be written, at most WRITTEN_AT_ONCE. */
static inline unsigned char *next_place(const Writing *writing)
{
    return writing->to + writing->written;
}

static inline bool in_memory(const Writing *writing) { return writing->maker < 0; }

void pass_on(Writing *writing);

/* Says that so many bytes were written there. */
static inline void has_written(Writing *writing, size_t size)
{
    writing->written += size;
    if (writing->written >= writing->enough)
        pass_on(writing);
}

#endif
