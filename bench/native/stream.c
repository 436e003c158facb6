/* One TCP stream through each of several paths, in turn, and how long its bytes took.
 *
 * Every path keeps its connection. In each round each path sends for a while, in another order,
 * alone; its time ends when all of it was read at the other end. What comes first in a turn is not
 * counted: TCP and the caches have to find their way back. A thread on another core reads.
 *
 * stream CORE OTHER-CORE ADDRESS ROUNDS TURN-MS (SENDER-NAMESPACE SINK-NAMESPACE)... prints a line
 * a round: for each path the bytes, the nanoseconds, nanoseconds of CPU of the sending and of the
 * reading thread, and segments that were sent again.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "turns.h"

enum {
    PORT = 5201,
    BLOCK_BYTES = 128 << 10,
    READ_BYTES = 1 << 20,
    WARM_UP_PERCENT = 20,
    LATE_NS = 2000000000,
};

struct turn {
    uint64_t bytes, took_ns, sender_ns, reader_ns, again;
};

struct path {
    int sender, reader;
    uint64_t sent;
    uint64_t got; /* atomic: the reading thread's */
};

struct reading {
    struct path *paths;
    int count, core;
    uint64_t cpu_ns; /* atomic: what the thread has used */
};

static uint64_t cpu_ns(void)
{
    struct timespec used;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000 + (uint64_t)used.tv_nsec;
}

static void *read_all(void *argument)
{
    static char bytes[READ_BYTES];
    struct reading *reading = argument;
    struct pollfd ready[MOST_TURNS];

    stay_on(reading->core);
    for (int at = 0; at < reading->count; at++)
        ready[at] = (struct pollfd){.fd = reading->paths[at].reader, .events = POLLIN};
    for (;;) {
        if (poll(ready, (nfds_t)reading->count, -1) < 0 && errno != EINTR)
            fail("poll");
        for (int at = 0; at < reading->count; at++) {
            ssize_t got = ready[at].revents ? recv(ready[at].fd, bytes, sizeof bytes, 0) : 0;

            if (got < 0)
                fail("recv");
            if (got) {
                __atomic_store_n(&reading->cpu_ns, cpu_ns(), __ATOMIC_RELAXED);
                __atomic_add_fetch(&reading->paths[at].got, (uint64_t)got, __ATOMIC_RELEASE);
            }
        }
    }
    return NULL;
}

static void open_path(struct path *path, const char *sender, const char *sink,
                      const struct sockaddr_in *there)
{
    const struct timeval patience = {.tv_sec = 5};
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = there->sin_port};
    int one = 1, listening;

    enter(sink);
    listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listening < 0 || setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0
        || bind(listening, (const struct sockaddr *)&here, sizeof here) < 0
        || listen(listening, 1) < 0)
        fail("listen");
    enter(sender);
    path->sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (path->sender < 0
        || setsockopt(path->sender, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0
        || connect(path->sender, (const struct sockaddr *)there, sizeof *there) < 0)
        fail("connect");
    path->reader = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    if (path->reader < 0)
        fail("accept");
    close(listening);
}

static void send_until(struct path *path, uint64_t end)
{
    static char block[BLOCK_BYTES];

    do {
        ssize_t sent = send(path->sender, block, sizeof block, MSG_NOSIGNAL);

        if (sent < 0 && errno != EINTR)
            fail("send");
        if (sent > 0)
            path->sent += (uint64_t)sent;
    } while (now_ns() < end);
}

static uint64_t sent_again(const struct path *path)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;

    getsockopt(path->sender, IPPROTO_TCP, TCP_INFO, &info, &size);
    return info.tcpi_total_retrans;
}

/* Counts from where the reader is when the warm-up ends, to when it has everything. It sleeps a
 * little while it waits, so that its own core is free for the packets. */
static struct turn take_turn(struct path *path, const struct reading *reading, uint64_t turn_ns)
{
    const struct timespec moment = {.tv_nsec = 20000};
    uint64_t start = now_ns();

    send_until(path, start + turn_ns * WARM_UP_PERCENT / 100);
    uint64_t begun = now_ns(), got = __atomic_load_n(&path->got, __ATOMIC_ACQUIRE);
    struct turn turn = {
        .sender_ns = cpu_ns(),
        .reader_ns = __atomic_load_n(&reading->cpu_ns, __ATOMIC_RELAXED),
        .again = sent_again(path),
    };
    send_until(path, begun + turn_ns);
    while (__atomic_load_n(&path->got, __ATOMIC_ACQUIRE) < path->sent) {
        if (now_ns() - begun > turn_ns + LATE_NS) {
            fputs("what was sent does not arrive\n", stderr);
            exit(1);
        }
        nanosleep(&moment, NULL);
    }
    turn.took_ns = now_ns() - begun;
    turn.bytes = path->sent - got;
    turn.sender_ns = cpu_ns() - turn.sender_ns;
    turn.reader_ns = __atomic_load_n(&reading->cpu_ns, __ATOMIC_RELAXED) - turn.reader_ns;
    turn.again = sent_again(path) - turn.again;
    return turn;
}

int main(int count, char **words)
{
    static struct path paths[MOST_TURNS];
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int spaces = (count - 6) / 2, rounds = count > 7 ? atoi(words[4]) : 0;
    int order[MOST_TURNS];
    struct turn turns[MOST_TURNS];
    pthread_t thread;

    if (rounds < 1 || spaces > MOST_TURNS || !inet_aton(words[3], &there.sin_addr)) {
        fputs("stream CORE OTHER-CORE ADDRESS ROUNDS TURN-MS (SENDER SINK)...\n", stderr);
        return 2;
    }
    struct reading reading = {.paths = paths, .count = spaces, .core = atoi(words[2])};
    uint64_t turn_ns = strtoull(words[5], NULL, 10) * 1000000;
    for (int at = 0; at < spaces; at++) {
        open_path(&paths[at], words[6 + 2 * at], words[7 + 2 * at], &there);
        order[at] = at;
    }
    if (pthread_create(&thread, NULL, read_all, &reading))
        fail("thread");
    stay_on(atoi(words[1]));
    for (int round = 0; round < rounds; round++) {
        shuffle(order, spaces);
        for (int at = 0; at < spaces; at++)
            turns[order[at]] = take_turn(&paths[order[at]], &reading, turn_ns);
        for (int at = 0; at < spaces; at++)
            printf("%llu %llu %llu %llu %llu%c", (unsigned long long)turns[at].bytes,
                   (unsigned long long)turns[at].took_ns, (unsigned long long)turns[at].sender_ns,
                   (unsigned long long)turns[at].reader_ns, (unsigned long long)turns[at].again,
                   at + 1 < spaces ? ' ' : '\n');
    }
    return 0;
}
