/* Work shared by threads. */
#ifndef PEMNCODEC_PARALLEL_H
#define PEMNCODEC_PARALLEL_H

#include <stddef.h>
#include <stdint.h>

typedef void Work(void *all, size_t part);

/* Does all parts in any order, shared by that many threads of the process's OpenMP runtime if it has
 * one. */
void run_parts(Work *work, void *all, size_t parts, uint64_t threads);

#endif
