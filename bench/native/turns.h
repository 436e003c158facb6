/* Asking several network namespaces in turn, in another order each round: what else the machine
 * does hits all alike. */
#ifndef EVENLINK_BENCH_TURNS_H
#define EVENLINK_BENCH_TURNS_H

#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MOST_TURNS = 32 };

static inline void fail(const char *what)
{
    perror(what);
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* This thread goes into the namespace of that name. Sockets stay where they were made. */
static inline void enter(const char *name)
{
    char path[256];
    int space;

    snprintf(path, sizeof path, "/run/netns/%s", name);
    space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET) < 0)
        fail(name);
    close(space);
}

/* This thread, and those that it starts, run on that core only. */
static inline void stay_on(int number)
{
    cpu_set_t core;

    CPU_ZERO(&core);
    CPU_SET((unsigned)number, &core);
    if (sched_setaffinity(0, sizeof core, &core) < 0)
        fail("core");
}

static inline void shuffle(int *order, int count)
{
    for (int at = count - 1; at > 0; at--) {
        int other = rand() % (at + 1), kept = order[at];

        order[at] = order[other];
        order[other] = kept;
    }
}

#endif
