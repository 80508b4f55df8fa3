/* Memory that is written once, from its first byte to its last. */
#define _GNU_SOURCE
#include "writing.h"

#include <stdlib.h>
#include <string.h>

#include "pages.h"
#include "words.h"

#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/userfaultfd.h>)
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

enum { PASSED_ON_AT_ONCE = 1 << 17 }; /* bytes, from a buffer that stays in the cache */

#ifdef UFFD_USER_MODE_ONLY
/* From `take_pages` to `give_back_pages` new pages belong to a userfaultfd. A thread that touches one waits
 * until it is made, or given back; so we do not touch them.
 *
 * Calls never wait for each other in a circle, whatever memory they share. One that has pages stores to no
 * others but to those right before its own, so it waits only for one whose pages lie further in front. It
 * reads inputs whose pages are all there, since it read some of each before it took its own.
 *
 * A child process that is forked meanwhile has ordinary memory. It also has a copy of the descriptor, until
 * it ends or runs another program. Nothing comes of that, but closing ours does not give back the pages. */

/* -1 where there is none. */
static int open_maker(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    int maker;
    /* Where system calls are filtered, one that is not expected may end the process. */
    if (prctl(PR_GET_SECCOMP) > 0)
        return -1;
    maker = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (maker >= 0 && ioctl(maker, UFFDIO_API, &api) != 0) {
        close(maker);
        maker = -1;
    }
    return maker;
}

/* Where a large page may begin that holds neither the first nor the last one; NULL if nowhere. */
static unsigned char *large_between(const Pages *pages)
{
    size_t large = pages->size / 8 * pages->size; /* what a page of addresses leads to */
    size_t before = large - (uintptr_t)pages->first % large;
    return before + large < (size_t)(pages->end - pages->first) ? pages->first + before : NULL;
}

/* Touches a page. True if the one beside it is there then. */
static bool comes_with(const Pages *pages, unsigned char *page, unsigned char *beside)
{
    *(volatile unsigned char *)page = 0;
    return is_there(pages, beside);
}

/* Touches the first and the last page, and one between if there is one. True if others came with them: pages
 * are large then, or the system takes several at once, and making single ones would be slower. */
static bool come_together(const Pages *pages, unsigned char *between)
{
    unsigned char *last = pages->end - pages->size;
    return comes_with(pages, pages->first, pages->first + pages->size)
           || comes_with(pages, last, last - pages->size)
           || (between != NULL && comes_with(pages, between, between + pages->size));
}

/* Reads a byte of each page. */
static void read_pages(Bytes bytes, size_t page)
{
    const volatile unsigned char *at = bytes.at;
    for (size_t i = 0; i < bytes.size; i += page)
        (void)at[i];
    if (bytes.size > 0)
        (void)at[bytes.size - 1];
}

static struct uffdio_range range_of(const Writing *writing)
{
    return (struct uffdio_range){(uintptr_t)writing->first,
                                 (uintptr_t)(writing->last - writing->first)};
}

/* Takes the pages of memory that was never touched. */
static void take_pages(Writing *writing, Room out, Bytes values, Bytes mask)
{
    enum { WORTHWHILE = 1 << 20, LARGEST_PAGE = PASSED_ON_AT_ONCE / 2 };
    struct uffdio_register taken = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    Pages pages;
    if (out.size < WORTHWHILE)
        return;
    pages = whole_pages(out.at, out.size);
    if (pages.size > LARGEST_PAGE || is_there(&pages, pages.first)
        || is_there(&pages, pages.end - pages.size))
        return;
    writing->maker = open_maker();
    if (writing->maker < 0)
        return;
    writing->page = pages.size;
    writing->first = pages.first + pages.size;
    writing->last = pages.end - pages.size;
    taken.range = range_of(writing);
    writing->buffer = malloc(PASSED_ON_AT_ONCE + WRITTEN_AT_ONCE);
    writing->touched = large_between(&pages);
    if (writing->buffer != NULL && !come_together(&pages, writing->touched)) {
        read_pages(values, pages.size);
        read_pages(mask, pages.size);
        if (ioctl(writing->maker, UFFDIO_REGISTER, &taken) == 0)
            return;
        /* Of several mappings it has some then. After other errors another call may have them. */
        if (errno == ENOMEM)
            ioctl(writing->maker, UFFDIO_UNREGISTER, &taken.range);
    }
    free(writing->buffer);
    close(writing->maker);
    writing->maker = -1;
}

static void give_back_pages(Writing *writing)
{
    struct uffdio_range range = range_of(writing);
    /* Closing would not do: a child process that was forked has the descriptor, too. */
    ioctl(writing->maker, UFFDIO_UNREGISTER, &range);
    close(writing->maker);
    writing->maker = -1;
}

/* Makes pages of bytes; false if that could be done with none of them, or with some only. */
static bool make_pages(int maker, unsigned char *to, const unsigned char *from, size_t size)
{
    struct uffdio_copy copy = {.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = size};
    return size == 0 || ioctl(maker, UFFDIO_COPY, &copy) == 0;
}

/* As above, and writes to the page that was touched, if it is one of them. */
static bool fill_pages(const Writing *writing, unsigned char *to, const unsigned char *from, size_t size)
{
    size_t before = (size_t)((uintptr_t)writing->touched - (uintptr_t)to), behind;
    if (before >= size)
        return make_pages(writing->maker, to, from, size);
    if (!make_pages(writing->maker, to, from, before))
        return false;
    memcpy(writing->touched, from + before, writing->page);
    behind = before + writing->page;
    return make_pages(writing->maker, to + behind, from + behind, size - behind);
}

/* Writes what is in the buffer to memory, but for the beginning of a page. */
static void empty_buffer(Writing *writing)
{
    size_t done = 0, whole;
    bool ended;
    if (writing->at < writing->first) {
        done = smaller(writing->written, (size_t)(writing->first - writing->at));
        memcpy(writing->at, writing->buffer, done);
    }
    whole = smaller(writing->written - done, (size_t)(writing->last - writing->at) - done);
    whole -= whole % writing->page;
    ended = writing->at + done + whole == writing->last;
    if (fill_pages(writing, writing->at + done, writing->buffer + done, whole))
        done += whole;
    else
        ended = true; /* a page is there, or no memory for one: whatever it is, stores go on from here */
    writing->at += done;
    writing->written -= done;
    memmove(writing->buffer, writing->buffer + done, writing->written);
    if (ended) {
        give_back_pages(writing);
        memcpy(writing->at, writing->buffer, writing->written);
        free(writing->buffer);
        writing->at += writing->written;
        writing->written = 0;
    }
}

static bool overlap(Room out, Bytes other)
{
    uintptr_t start = (uintptr_t)out.at, other_start = (uintptr_t)other.at;
    return start < other_start + other.size && other_start < start + out.size;
}
#endif

/* Goes on where memory is written that was passed on, a part at a time, which is in the cache then. */
static void go_on(Writing *writing)
{
    enum { POPULATED_AT_ONCE = 1 << 18 };
    size_t left = (size_t)(writing->end - writing->at);
    if (in_memory(writing)) {
        writing->to = writing->at;
        writing->enough = smaller(left, POPULATED_AT_ONCE);
        populate(writing->to, writing->enough);
    } else {
        writing->to = writing->buffer;
        writing->enough = smaller(left, PASSED_ON_AT_ONCE);
    }
}

void start_writing(Writing *writing, Room out, Bytes values, Bytes mask)
{
    writing->at = out.at;
    writing->end = out.at + out.size;
    writing->written = 0;
    writing->maker = -1;
#ifdef UFFD_USER_MODE_ONLY
    if (!overlap(out, values) && !overlap(out, mask))
        take_pages(writing, out, values, mask);
#else
    (void)values, (void)mask;
#endif
    go_on(writing);
}

void pass_on(Writing *writing)
{
#ifdef UFFD_USER_MODE_ONLY
    if (!in_memory(writing)) {
        empty_buffer(writing);
        go_on(writing);
        return;
    }
#endif
    writing->at += writing->written;
    writing->written = 0;
    go_on(writing);
}
