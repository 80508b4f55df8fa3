/* Work shared by threads.
 *
 * The threads are those that torch computes with: its OpenMP runtime keeps them, and they spin for a
 * while after each operator, so that threads of our own would have to wait for a core. The runtime is
 * looked up in the process, so that nothing is linked to it, and a process without one has none. Like
 * torch's operators, a call with several threads hangs in a process that was forked after another one.
 */
#define _GNU_SOURCE
#include "parallel.h"

#include <stdbool.h>
#include <string.h>

#ifndef _WIN32
#include <dlfcn.h>

/* Entries of libgomp, which LLVM's and Intel's runtimes have too: a parallel region, and where in it
 * a thread is. */
typedef void Parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags);
typedef int Number(void);

typedef struct {
    Work *work;
    void *all;
    size_t parts;
    Number *thread, *threads;
} Team;

/* The same parts by the same thread each time: what they wrote is in its cache. */
static void do_share(void *argument)
{
    const Team *team = argument;
    size_t thread = (size_t)team->thread(), threads = (size_t)team->threads();
    if (thread < threads) { /* as it is where both are of one library */
        size_t part = team->parts * thread / threads, end = team->parts * (thread + 1) / threads;
        for (; part < end; part++)
            team->work(team->all, part);
    }
}

/* False where the process has no such function. */
static bool find_function(const char *name, void *function)
{
    void *symbol = dlsym(RTLD_DEFAULT, name);
    memcpy(function, &symbol, sizeof symbol); /* ISO C has no cast from data to functions */
    return symbol != NULL;
}
#endif

void run_parts(Work *work, void *all, size_t parts, uint64_t threads)
{
#ifndef _WIN32
    Team team = {work, all, parts, NULL, NULL};
    Parallel *parallel;
    if (parts > 1 && threads > 1 && find_function("GOMP_parallel", &parallel)
        && find_function("omp_get_thread_num", &team.thread)
        && find_function("omp_get_num_threads", &team.threads)) {
        /* As many as torch asks for, also for fewer parts: another number would start them anew. */
        enum { MOST_THREADS = 1 << 10 };
        parallel(do_share, &team, threads < MOST_THREADS ? (unsigned)threads : MOST_THREADS, 0);
        return;
    }
#else
    (void)threads;
#endif
    for (size_t part = 0; part < parts; part++)
        work(all, part);
}
