/* The queue worker's boundary protocol: when is no verdict of an older program still to come?
 * And its verdicts: does each packet get its own mark where neighbours share one?
 *
 *   boundary BLOCK BLOCK      files with legal programs that decide the packet differently
 *
 * One end of a socket pair is the worker's queue, the other end plays the kernel. A send passes
 * while the return path holds less than its limit, however much it adds. So a path that is full of
 * small fillers holds the worker at its next send, and room can be made for exactly one.
 */
#define _GNU_SOURCE
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>

#include "loader.h"
#include "nfqueue.h"

enum {
    NUMBER = 7477,
    COPY_BYTES = 65535,
    PATIENCE_S = 20,
    SPIN_US = 1000000,
    STEADY_TRIES = 20,
    RACES = 1000,
    TURN = 1,
    UNREADABLE = 2,
    UNMARKED = 0xffff,             /* what a verdict without a mark is noted as */
    FIRST_BATCH = QUEUE_BATCH + 1, /* one more than one send takes: the batch has two */
};

static const uint8_t packet[] = {0x45, 0, 0, 28, 0, 0, 0,   0, 64, 17, 0, 0, 10, 0,
                                 0,    1, 0, 0,  0, 0, 0x10, 0, 0,  53, 0, 8, 0,  0};

static struct queue_worker *worker;
static int kernel, fault;
static pthread_t thread;
static uint32_t fed, answered, verdicts, marks[FIRST_BATCH + 2 + 2 * RACES + QUEUE_BATCH];

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "boundary.c:%d: not so: %s\n", __LINE__, #condition);                 \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

#define EVENTUALLY(condition)                                                                     \
    do {                                                                                          \
        uint64_t until_ = clock_us() + PATIENCE_S * 1000000ull;                                   \
        while (!(condition)) {                                                                    \
            CHECK(clock_us() < until_ && #condition);                                             \
            sched_yield();                                                                        \
        }                                                                                         \
    } while (0)

static uint64_t seen(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static int outside(void)
{
    return (int)__atomic_load_n(&worker->outside, __ATOMIC_SEQ_CST);
}

static int passed(uint64_t order)
{
    return queue_worker_passed(worker, order);
}

/* Marks of others, which stay. Neighbours differ, so that each packet has a verdict of its own. */
static uint32_t others(uint32_t id)
{
    return id & 1;
}

/* One datagram with `count` queued packets, numbered on. The first mark is `first`; where `turns`
 * says TURN it is the other mark from there on, and where it says UNREADABLE, the packet is. */
static void feed_marked(int count, uint32_t first, const uint8_t *turns)
{
    static uint8_t message[COPY_BYTES];
    uint8_t *at = message;
    uint32_t mark = first;

    for (int number = 0; number < count; number++) {
        uint8_t *begin = at, header[7] = {0};
        uint32_t id = htonl(fed++), length, wire;

        if (number && (!turns || turns[number] == TURN))
            mark = !mark;
        wire = htonl(mark);

        memcpy(header, &id, sizeof id);
        at = message_begin(at, 0, QUEUE_MSG_PACKET, 0, 0, NUMBER);
        at = message_add(at, QUEUE_ATTR_PACKET_HDR, header, sizeof header);
        at = message_add(at, QUEUE_ATTR_MARK, &wire, sizeof wire);
        at = message_add(at, QUEUE_ATTR_PAYLOAD, packet,
                         turns && turns[number] == UNREADABLE ? 1 : sizeof packet);
        length = (uint32_t)(at - begin);
        memcpy(begin, &length, sizeof length);
    }
    CHECK(send(kernel, message, (size_t)(at - message), MSG_DONTWAIT) == at - message);
}

static void feed(int count)
{
    feed_marked(count, others(fed), NULL);
}

/* Takes what one send has put on the return path, and reads it as the kernel does. Returns 0:
 * nothing is there. */
static int take(void)
{
    static uint8_t message[QUEUE_BATCH * VERDICT_BYTES];
    ssize_t got = recv(kernel, message, sizeof message, MSG_DONTWAIT);

    CHECK(got > 0 || errno == EAGAIN);
    if (got < VERDICT_BYTES - 8)
        return got > 0;
    for (const uint8_t *at = message; at < message + got;) {
        struct nlmsghdr header;
        uint32_t id = load_be32(at + MESSAGE_HEADER + 8);

        memcpy(&header, at, sizeof header);
        CHECK(header.nlmsg_len == VERDICT_BYTES || header.nlmsg_len == VERDICT_BYTES - 8);
        CHECK(id >= answered && id < fed);
        CHECK(header.nlmsg_type
              == (id > answered ? QUEUE_MSG_VERDICT_BATCH : QUEUE_MSG_VERDICT));
        while (answered <= id)
            marks[answered++] = header.nlmsg_len == VERDICT_BYTES
                                    ? load_be32(at + MESSAGE_HEADER + 12 + 4)
                                    : UNMARKED;
        verdicts++;
        at += header.nlmsg_len;
    }
    return 1;
}

static int full(void)
{
    int held, limit;
    socklen_t size = sizeof limit;

    CHECK(!ioctl(worker->fd, SIOCOUTQ, &held));
    CHECK(!getsockopt(worker->fd, SOL_SOCKET, SO_SNDBUF, &limit, &size));
    return held >= limit;
}

static void fill(void)
{
    while (send(worker->fd, "", 1, MSG_DONTWAIT) == 1)
        ;
    CHECK(full());
}

static void make_room_for_one(void)
{
    while (full())
        CHECK(take());
}

/* The worker tries again and again to send, and all the while says that it has not passed. */
static void stays_held(uint64_t order)
{
    uint64_t enough = seen(&worker->counters.send_retries) + STEADY_TRIES;

    EVENTUALLY(seen(&worker->counters.send_retries) >= enough || passed(order));
    CHECK(!passed(order));
}

static struct program *opened(const char *name)
{
    static uint8_t block[4 << 20];
    char why[FAULT_LENGTH];
    FILE *file = fopen(name, "rb");

    CHECK(file);
    uint64_t size = fread(block, 1, sizeof block, file);
    fclose(file);
    struct program *program = program_open(block, size, 1, NULL, NULL, why);
    CHECK(program);
    return program;
}

static uint32_t mark_of(const struct program *program)
{
    struct decision decision;

    CHECK(program_classify(program, packet, packet + sizeof packet, 0, 0, NULL, &decision)
          == REASON_DECIDED);
    return decision.mark;
}

/* Held in the middle of a batch, at its last verdict, in the next batch; then idle. */
static void check_boundaries(struct program *first, struct program *second)
{
    EVENTUALLY(seen(&worker->counters.send_retries));
    CHECK(seen(&worker->counters.decided.reasons[REASON_DECIDED]) == QUEUE_BATCH);
    uint64_t order = queue_worker_swap(worker, second);
    CHECK(!passed(order));
    stays_held(order);
    feed(1);

    make_room_for_one();
    EVENTUALLY(full());
    stays_held(order);
    CHECK(seen(&worker->counters.packets) == FIRST_BATCH);

    make_room_for_one();
    EVENTUALLY(passed(order));
    CHECK(full()); /* the last verdict of the first program had been sent by then */
    EVENTUALLY(seen(&worker->counters.packets) == FIRST_BATCH + 1);
    CHECK(!outside());
    uint64_t next = queue_worker_swap(worker, first);
    CHECK(passed(order));
    CHECK(!passed(next));
    stays_held(next);

    uint64_t until = clock_us() + PATIENCE_S * 1000000ull;
    for (int done = 0; !done;) {
        CHECK(clock_us() < until);
        done = passed(next);
        while (take())
            ;
    }
    CHECK(answered == FIRST_BATCH + 1); /* what was to come was there when it said so */
    for (uint32_t at = 0; at < FIRST_BATCH; at++)
        CHECK(marks[at] == (mark_of(first) | others(at)));
    CHECK(marks[FIRST_BATCH] == (mark_of(second) | others(FIRST_BATCH)));

    EVENTUALLY(outside());
    order = queue_worker_swap(worker, second);
    CHECK(passed(order));
    feed(1);
    EVENTUALLY(take());
    CHECK(marks[FIRST_BATCH + 1] == (mark_of(second) | others(FIRST_BATCH + 1)));
}

/* A program is freed as soon as it may be, under traffic. The sanitizers watch. */
static void check_races(struct program *first, char **names)
{
    struct program *old = NULL;

    for (int race = 0; race < RACES; race++) {
        struct program *program = opened(names[race % 2]);
        uint32_t wanted = mark_of(program);

        feed(1);
        for (volatile int delay = race % 64 * 16; delay; delay--)
            ;
        uint64_t order = queue_worker_swap(worker, program);
        EVENTUALLY(passed(order));
        program_close(old);
        old = program;
        feed(1);
        EVENTUALLY(take() && answered == fed);
        CHECK(marks[fed - 1] == (wanted | others(fed - 1)));
    }
    queue_worker_swap(worker, first);
    EVENTUALLY(passed(worker->order));
    program_close(old);
}

/* Neighbours with equal marks share a verdict, and each packet gets its own mark; one that cannot
 * be read ends a run and keeps the mark that it came with. */
static void check_runs(const struct program *program)
{
    const uint32_t start = fed, before = verdicts;
    uint8_t turns[QUEUE_BATCH];
    uint32_t runs = 0, mark = 0;

    for (int at = 0; at < QUEUE_BATCH; at++) {
        turns[at] = at % 7 == 3 || at % 11 == 5 ? TURN : at % 17 == 8 ? UNREADABLE : 0;
        runs += at == 0 || turns[at] || turns[at - 1] == UNREADABLE;
    }
    feed_marked(QUEUE_BATCH, mark, turns);
    EVENTUALLY(take() && answered == fed);
    for (uint32_t at = 0; at < QUEUE_BATCH; at++) {
        if (at && turns[at] == TURN)
            mark = !mark;
        CHECK(marks[start + at]
              == (turns[at] == UNREADABLE ? UNMARKED : (mark_of(program) | mark)));
    }
    CHECK(verdicts - before == runs);
}

static void *serve(void *result)
{
    *(int *)result = queue_worker_run(worker);
    return NULL;
}

static void open_worker(uint32_t spin_us, struct program *first)
{
    int ends[2];

    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    kernel = ends[1];
    worker = queue_worker_open(ends[0], NUMBER, 1024, COPY_BYTES, spin_us, 1);
    CHECK(worker);
    fed = answered = 0;
    queue_worker_swap(worker, first);
}

static void start_worker(void)
{
    CHECK(!pthread_create(&thread, NULL, serve, &fault));
}

static void end_worker(struct program *last)
{
    queue_worker_stop(worker);
    CHECK(!pthread_join(thread, NULL));
    CHECK(fault == 0);
    CHECK(passed(queue_worker_swap(worker, last)));
    close(worker->fd);
    close(kernel);
    queue_worker_close(worker);
}

int main(int count, char **words)
{
    if (count != 3)
        return 2;
    struct program *first = opened(words[1]), *second = opened(words[2]);
    CHECK(mark_of(first) != mark_of(second));

    open_worker(0, first);
    fill();
    feed(FIRST_BATCH);
    start_worker();
    check_boundaries(first, second);
    end_worker(first);

    /* A worker that sleeps between packets, and one that never does. */
    for (uint32_t spin_us = 0; spin_us <= SPIN_US; spin_us += SPIN_US) {
        open_worker(spin_us, first);
        start_worker();
        check_runs(first);
        check_races(first, words + 1);
        end_worker(first);
    }
    program_close(first);
    program_close(second);
    return 0;
}
