/* The queue worker: read queued packets in batches, write verdicts in batches.
 *
 * The descriptor is a queue that NetfilterQueue has opened and bound. A batch is one recvmmsg (the
 * kernel sends one message a datagram) and one send. Packets that follow one another and get equal
 * marks share a verdict message; the kernel gives out ids and messages in one order, under one
 * lock. Reinjection, routing and transmission happen inside that send, on this thread.
 *
 * Replacing the program. `program` is one atomic pointer, `order` counts replacements and is
 * stored after it. At each batch boundary, when no verdict is held back, the worker reads `order`,
 * then `program`, and publishes `passed` = that order. While it may sleep it is `outside`: it
 * holds neither verdict nor program. Both sides of `outside` are sequentially consistent: who sees
 * it set after storing a new program knows that the worker will read the new one.
 */
#ifndef EVENLINK_NFQUEUE_H
#define EVENLINK_NFQUEUE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "decide.h"
#include "nfnetlink.h"

#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif

enum {
    QUEUE_BATCH = 128,
    /* All attributes that the kernel may send beside the payload come to about 250 bytes. */
    QUEUE_ATTRIBUTE_BYTES = 512,
    QUEUE_ERRNOS = 134,
    QUEUE_SEND_TRIES = 1000, /* a millisecond each */
    QUEUE_DRAIN_BATCHES = 4096,
};

struct queue_counters {
    uint64_t packets, batches, unknown_messages, enobufs, recv_errors, send_retries;
    uint64_t verdict_errors[QUEUE_ERRNOS]; /* by errno; 0: none that is known */
    struct tally decided;
};

struct queue_worker {
    int fd, wake;
    uint16_t number;
    uint8_t fail_open;
    uint32_t length, spin_us, buffer_bytes;
    struct program *program; /* atomic, as are the next five */
    uint64_t order, passed;
    uint32_t outside, stopping, serving;
    uint8_t *arena, *verdicts, *verdicts_at;
    uint8_t *run; /* the last verdict, if what follows may share it; its mark is run_mark */
    uint32_t run_mark;
    struct memory *memory; /* the worker's own, whatever its program */
    struct mmsghdr messages[QUEUE_BATCH];
    struct iovec pieces[QUEUE_BATCH];
    struct queue_counters counters;
};

static inline void queue_worker_close(struct queue_worker *worker)
{
    if (!worker)
        return;
    if (worker->wake >= 0)
        close(worker->wake);
    free(worker->arena);
    free(worker->verdicts);
    memory_close(worker->memory);
    free(worker);
}

/* `seed` is what random draws begin with. NULL: errno says why. */
static inline struct queue_worker *queue_worker_open(int fd, uint16_t number, uint32_t length,
                                                     uint32_t copy_bytes, uint32_t spin_us,
                                                     uint64_t seed)
{
    struct queue_worker *worker = calloc(1, sizeof *worker);

    if (!worker)
        return NULL;
    worker->fd = fd;
    worker->number = number;
    worker->length = length;
    worker->spin_us = spin_us;
    worker->outside = 1;
    worker->buffer_bytes = (copy_bytes + QUEUE_ATTRIBUTE_BYTES + 63) / 64 * 64;
    worker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    worker->arena = aligned_alloc(64, (size_t)worker->buffer_bytes * QUEUE_BATCH);
    worker->verdicts = aligned_alloc(64, VERDICT_BYTES * QUEUE_BATCH);
    worker->memory = memory_open(seed);
    if (worker->wake < 0 || !worker->arena || !worker->verdicts || !worker->memory) {
        queue_worker_close(worker);
        return NULL;
    }
    worker->verdicts_at = worker->verdicts;
    for (int at = 0; at < QUEUE_BATCH; at++) {
        worker->pieces[at].iov_base = worker->arena + (size_t)at * worker->buffer_bytes;
        worker->pieces[at].iov_len = worker->buffer_bytes;
        worker->messages[at].msg_hdr.msg_iov = &worker->pieces[at];
        worker->messages[at].msg_hdr.msg_iovlen = 1;
    }
    return worker;
}

/* Connects the socket to the kernel: netlink then refuses what any process sends to it, and there
 * is no sender to be looked at message by message. Returns 0 or an errno. */
static inline int queue_connect(int fd)
{
    const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};

    return connect(fd, (const struct sockaddr *)&kernel, sizeof kernel) < 0 ? errno : 0;
}

/* Sends [at, end), whole messages, to the kernel. The kernel takes all or nothing of a send, but a
 * short count would only mean going on behind it. EAGAIN, ENOBUFS and ENOMEM pass: while they last
 * nothing is thrown away, unless the worker is told to stop. Returns 0 or an errno. */
static inline int queue_send(int fd, const uint8_t *at, const uint8_t *end,
                             const uint32_t *stopping, uint64_t *retries)
{
    const struct timespec millisecond = {.tv_nsec = 1000000};

    for (int tries = 0; at < end;) {
        ssize_t sent = send(fd, at, (size_t)(end - at), MSG_DONTWAIT);
        if (sent > 0) {
            at += sent;
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM)
            return errno;
        if (!stopping || __atomic_load_n(stopping, __ATOMIC_ACQUIRE))
            if (++tries > QUEUE_SEND_TRIES)
                return EIO;
        if (retries)
            add_one(retries);
        nanosleep(&millisecond, NULL);
    }
    return 0;
}

static inline int queue_worker_flush(struct queue_worker *worker)
{
    int fault = queue_send(worker->fd, worker->verdicts, worker->verdicts_at, &worker->stopping,
                           &worker->counters.send_retries);

    worker->verdicts_at = worker->verdicts;
    worker->run = NULL;
    return fault;
}

/* A config message with one or two numbers. With `sequence` it asks for an ACK. */
static inline int queue_send_config(int fd, uint16_t number, uint16_t type, uint32_t value,
                                    uint16_t second_type, uint32_t second_value, uint32_t sequence)
{
    uint8_t message[CONFIG_BYTES];
    uint32_t wire = htonl(value), second_wire = htonl(second_value);
    uint8_t *at = message_begin(message, second_type ? CONFIG_BYTES : CONFIG_BYTES - 8,
                                QUEUE_MSG_CONFIG, sequence ? NLM_F_ACK : 0, sequence, number);

    at = message_add(at, type, &wire, 4);
    if (second_type)
        at = message_add(at, second_type, &second_wire, 4);
    return queue_send(fd, message, at, NULL, NULL);
}

/* Sets one flag of the queue and waits for the kernel's answer: 0 or an errno. Packets that come
 * in the meantime are accepted as they are. For use before the worker runs. */
static inline int queue_set_flag(int fd, uint16_t number, uint32_t flag)
{
    const uint32_t asked = 0x45564e00 | flag;
    uint8_t message[8192], verdict[VERDICT_BYTES];
    int fault = queue_send_config(fd, number, QUEUE_CONFIG_FLAGS, flag, QUEUE_CONFIG_MASK, flag,
                                  asked);

    while (!fault) {
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        int ready = poll(&readable, 1, 2000);
        ssize_t got = ready > 0 ? recv(fd, message, sizeof message, MSG_DONTWAIT) : -1;

        if (ready == 0)
            return ETIMEDOUT;
        if (got < 0 && (errno == EINTR || errno == ENOBUFS || errno == EAGAIN))
            continue;
        if (got < 0)
            return errno;
        for (const uint8_t *at = message, *end = message + got; at < end;) {
            struct queued queued;
            uint32_t sequence = 0;
            int error = 0;
            enum message kind = message_parse(&at, end, number, &queued, &error, &sequence);

            if (kind == MESSAGE_PACKET || kind == MESSAGE_BAD_PACKET)
                queue_send(fd, verdict, message_verdict(verdict, number, queued.id, 0, 0),
                           NULL, NULL);
            else if (sequence == asked && (kind == MESSAGE_ACK || kind == MESSAGE_ERROR))
                return error;
        }
    }
    return fault;
}

static inline int queue_set_length(int fd, uint16_t number, uint32_t length)
{
    return queue_send_config(fd, number, QUEUE_CONFIG_MAXLEN, length, 0, 0, 0);
}

/* A queue of length 0 that fails open lets every packet pass: nothing can be caught in it. */
static inline int queue_worker_gate(struct queue_worker *worker, int open)
{
    if (!worker->fail_open)
        return 0;
    return queue_set_length(worker->fd, worker->number, open ? worker->length : 0);
}

/* What the socket has refused since it was opened, packets and answers alike. */
static inline uint64_t queue_refused(int fd)
{
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof memory;

    if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size) < 0)
        return 0;
    return memory[SK_MEMINFO_DROPS];
}

static inline int queue_set_buffer(int fd, int bytes)
{
    int got = 0;
    socklen_t size = sizeof got;

    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &got, &size);
    return got;
}

static inline void queue_worker_answer(struct queue_worker *worker, uint32_t id, int remark,
                                       uint32_t mark)
{
    if (worker->run && remark && mark == worker->run_mark) {
        message_verdict_extend(worker->run, id);
        return;
    }
    worker->run = remark ? worker->verdicts_at : NULL;
    worker->run_mark = mark;
    worker->verdicts_at = message_verdict(worker->verdicts_at, worker->number, id, remark, mark);
}

static inline void queue_worker_decide(struct queue_worker *worker, const struct program *program,
                                       const struct queued *queued, int whole)
{
    struct decision decision = {.mark = queued->mark, .rule = PROGRAM_NONE};
    enum reason reason = whole ? REASON_NO_PAYLOAD : REASON_BAD_MESSAGE;

    if (whole && queued->packet) {
        decision.decision = program_decide_plain(program, queued->packet, queued->end,
                                                 &decision.rule);
        if (decision.decision) {
            decision.mark = program_mark(program, queued->mark, decision.decision);
            reason = REASON_DECIDED;
        } else {
            reason = program_classify(program, queued->packet, queued->end, queued->mark,
                                      queued->interface, worker->memory, &decision);
        }
    }
    add_one(&worker->counters.packets);
    tally_add(&worker->counters.decided, reason, &decision);
    queue_worker_answer(worker, queued->id, reason == REASON_DECIDED, decision.mark);
}

/* One datagram; almost always one message. Returns 0 or an errno. */
static inline int queue_worker_datagram(struct queue_worker *worker, const struct program *program,
                                        const uint8_t *at, const uint8_t *end)
{
    struct queue_counters *counters = &worker->counters;

    while (at < end) {
        struct queued queued;
        uint32_t sequence;
        int error = 0, fault = 0;
        enum message kind = message_parse(&at, end, worker->number, &queued, &error, &sequence);

        switch (kind) {
        case MESSAGE_PACKET:
        case MESSAGE_BAD_PACKET:
            if (worker->verdicts_at - worker->verdicts > VERDICT_BYTES * (QUEUE_BATCH - 1))
                fault = queue_worker_flush(worker);
            if (fault)
                return fault;
            queue_worker_decide(worker, program, &queued, kind == MESSAGE_PACKET);
            break;
        case MESSAGE_ERROR:
            add_one(&counters->verdict_errors[error < QUEUE_ERRNOS ? error : 0]);
            break;
        case MESSAGE_UNKNOWN:
            add_one(&counters->unknown_messages);
            break;
        case MESSAGE_ACK:
        case MESSAGE_NOTHING:
            break;
        }
    }
    return 0;
}

static inline uint64_t clock_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Good to a few milliseconds, and nearly free. */
static inline uint64_t clock_coarse_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Reads and answers one batch. Returns 0 or an errno; EAGAIN: there was nothing to read. */
static inline int queue_worker_batch(struct queue_worker *worker)
{
    struct queue_counters *counters = &worker->counters;

    __atomic_store_n(&worker->outside, 0, __ATOMIC_SEQ_CST);
    uint64_t order = __atomic_load_n(&worker->order, __ATOMIC_SEQ_CST);
    const struct program *program = __atomic_load_n(&worker->program, __ATOMIC_SEQ_CST);
    __atomic_store_n(&worker->passed, order, __ATOMIC_SEQ_CST);

    int got = recvmmsg(worker->fd, worker->messages, QUEUE_BATCH, MSG_DONTWAIT, NULL);
    if (got <= 0)
        return got < 0 ? errno : EAGAIN;

    add_one(&counters->batches);
    worker->memory->now_ms = clock_coarse_ms();
    for (int at = 0; at < got; at++) {
        const uint8_t *message = worker->pieces[at].iov_base;
        int fault = queue_worker_datagram(worker, program, message,
                                          message + worker->messages[at].msg_len);
        if (fault)
            return fault;
    }
    return queue_worker_flush(worker);
}

/* After a stop: nothing new comes in, what waits is answered. */
static inline int queue_worker_drain(struct queue_worker *worker)
{
    int fault = queue_worker_gate(worker, 0);

    for (int batches = 0; !fault && batches < QUEUE_DRAIN_BATCHES; batches++) {
        fault = queue_worker_batch(worker);
        if (fault == ENOBUFS) {
            add_one(&worker->counters.enobufs);
            fault = 0;
        }
    }
    return fault == EAGAIN ? 0 : fault;
}

static inline int queue_worker_loop(struct queue_worker *worker)
{
    struct queue_counters *counters = &worker->counters;
    uint64_t spin_until = 0;

    while (!__atomic_load_n(&worker->stopping, __ATOMIC_ACQUIRE)) {
        int fault = queue_worker_batch(worker);

        switch (fault) {
        case 0:
            spin_until = 0;
            continue;
        case EAGAIN:
            break;
        case ENOBUFS: /* the socket was full; what did not fit was accepted or dropped */
            add_one(&counters->enobufs);
            continue;
        case EINTR:
            return EINTR;
        case ENOMEM:
            add_one(&counters->recv_errors);
            poll(NULL, 0, 1);
            continue;
        default:
            add_one(&counters->recv_errors);
            return fault;
        }

        if (worker->spin_us) {
            uint64_t now = clock_us();
            if (!spin_until)
                spin_until = now + worker->spin_us;
            if (now < spin_until)
                continue;
        }
        struct pollfd ready[2] = {{.fd = worker->fd, .events = POLLIN},
                                  {.fd = worker->wake, .events = POLLIN}};
        __atomic_store_n(&worker->outside, 1, __ATOMIC_SEQ_CST);
        if (poll(ready, 2, -1) < 0)
            return errno;
        spin_until = 0;
    }
    return queue_worker_drain(worker);
}

/* Serves until queue_worker_stop. Returns 0; EINTR: a signal came, call again; or an errno. */
static inline int queue_worker_run(struct queue_worker *worker)
{
    int fault = queue_worker_gate(worker, 1);

    __atomic_store_n(&worker->serving, !fault, __ATOMIC_RELEASE);
    if (!fault)
        fault = queue_worker_loop(worker);
    __atomic_store_n(&worker->serving, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&worker->outside, 1, __ATOMIC_SEQ_CST);
    if (fault != EINTR) {
        /* In this order: a stop that comes between the two is kept. */
        __atomic_store_n(&worker->stopping, 0, __ATOMIC_RELEASE);
        uint64_t wakes;
        ssize_t ignored = read(worker->wake, &wakes, sizeof wakes);
        (void)ignored;
    }
    return fault;
}

static inline void queue_worker_stop(struct queue_worker *worker)
{
    uint64_t one = 1;

    __atomic_store_n(&worker->stopping, 1, __ATOMIC_RELEASE);
    ssize_t ignored = write(worker->wake, &one, sizeof one);
    (void)ignored;
}

/* Returns the order of this replacement. One thread at a time. */
static inline uint64_t queue_worker_swap(struct queue_worker *worker, struct program *program)
{
    uint64_t order = worker->order + 1;

    __atomic_store_n(&worker->program, program, __ATOMIC_SEQ_CST);
    __atomic_store_n(&worker->order, order, __ATOMIC_SEQ_CST);
    return order;
}

static inline int queue_worker_serving(struct queue_worker *worker)
{
    return (int)__atomic_load_n(&worker->serving, __ATOMIC_ACQUIRE);
}

/* True: no verdict of a program older than the one swapped in as `order` is still to come. */
static inline int queue_worker_passed(struct queue_worker *worker, uint64_t order)
{
    return __atomic_load_n(&worker->outside, __ATOMIC_SEQ_CST)
           || __atomic_load_n(&worker->passed, __ATOMIC_SEQ_CST) >= order;
}

#endif
