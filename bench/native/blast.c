/* Sends 64-byte UDP packets: as fast as may be, or at a rate.
 *
 * Frames go straight to the driver, past the queueing discipline, 64 a system call: they enter the
 * router as from a network card's. A UDP socket costs 5 us a packet here, and the sender would be
 * the limit of what is measured.
 *
 * --offload sends another way: by a UDP socket, 64 packets a message, which the kernel cuts up
 * just before they leave. That source costs less than any router.
 *
 * Says "ready", sends once a line comes in, until standard input ends or --count is reached, and
 * prints how many packets the kernel took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ether.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum {
    BATCH = 64,
    FRAME_BYTES = 64,
    PAYLOAD_BYTES = 22, /* 64 with the headers of UDP, IPv4 and Ethernet */
    SEGMENTS = 64,      /* the most that Linux takes in one message, before 6.2 */
    MESSAGES = 16,
    BATCHES_A_LOOK = 16, /* at standard input */
    PORT = 9,
    FIRST_PORT = 1024,
    PORTS = 65536 - FIRST_PORT,
    /* Who was kept from the core for a while makes up for this much, not for all of it: a burst
     * would fill queues that the rate itself does not. */
    MOST_LATE_PACKETS = 256,
    SHORTEST_SLEEP_NS = 200000,
};

struct options {
    int core, offload, connections, pairs;
    uint32_t source, sources, destination, destinations;
    uint64_t rate, count;
    const char *interface;
    struct ether_addr from, to;
};

struct sending {
    const struct options *options;
    int fd;
    uint64_t sent;
    uint32_t source_at, destination_at, round; /* of the frame that is made next */
    uint8_t frames[BATCH][FRAME_BYTES];
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void store16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void store32(uint8_t *at, uint32_t value)
{
    store16(at, value >> 16);
    store16(at + 2, value & 0xffff);
}

/* RFC 1071, over the header of 20 bytes whose checksum field is still 0. */
static uint32_t checksum(const uint8_t *header)
{
    uint32_t sum = 0;

    for (int at = 0; at < 20; at += 2)
        sum += (uint32_t)header[at] << 8 | header[at + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    return ~sum & 0xffff;
}

/* All that is the same in every frame. UDP's checksum stays 0: none was made. */
static void prepare(struct sending *sending)
{
    for (int at = 0; at < BATCH; at++) {
        uint8_t *frame = sending->frames[at];

        memcpy(frame, &sending->options->to, ETH_ALEN);
        memcpy(frame + 6, &sending->options->from, ETH_ALEN);
        store16(frame + 12, ETHERTYPE_IP);
        frame[14] = 0x45;
        store16(frame + 16, FRAME_BYTES - 14);
        frame[22] = 64; /* hops */
        frame[23] = IPPROTO_UDP;
        store16(frame + 34, FIRST_PORT);
        store16(frame + 36, PORT);
        store16(frame + 38, FRAME_BYTES - 34);
        sending->pieces[at] = (struct iovec){frame, FRAME_BYTES};
        sending->messages[at].msg_hdr.msg_iov = &sending->pieces[at];
        sending->messages[at].msg_hdr.msg_iovlen = 1;
    }
}

/* Sources and destinations in turn. With new connections the source port counts the rounds of the
 * sources, so none comes twice before 64,512 rounds are over; each source begins elsewhere, as
 * otherwise all would use the same port at a time and address translation would fight for it. A
 * source keeps its destination; with new pairs it has the next one in each round. */
static void address(struct sending *sending, uint8_t *frame)
{
    const struct options *options = sending->options;

    store32(frame + 26, options->source + sending->source_at);
    store32(frame + 30, options->destination + sending->destination_at);
    if (options->connections)
        store16(frame + 34, FIRST_PORT + (sending->source_at * 977 + sending->round) % PORTS);
    store16(frame + 24, 0);
    store16(frame + 24, checksum(frame + 14));
    if (++sending->destination_at == options->destinations)
        sending->destination_at = 0;
    if (++sending->source_at == options->sources) {
        sending->source_at = 0;
        sending->round++;
        if (options->pairs)
            sending->destination_at = sending->round % options->destinations;
    }
}

/* Sends `count` frames. What the driver had no room for is sent again: it was never on the wire. */
static void send_frames(struct sending *sending, int count)
{
    for (int at = 0; at < count; at++)
        address(sending, sending->frames[at]);
    for (int at = 0; at < count;) {
        int got = sendmmsg(sending->fd, sending->messages + at, (unsigned)(count - at), 0);
        if (got < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
            fail("sendmmsg");
        if (got > 0)
            at += got;
    }
    sending->sent += (uint64_t)count;
}

/* How many are due by the clock; moves the beginning where too many are. */
static int due(uint64_t *start, uint64_t rate, uint64_t sent)
{
    uint64_t owed = (uint64_t)((double)(now_ns() - *start) * (double)rate / 1e9);

    if (owed <= sent)
        return 0;
    if (owed - sent > MOST_LATE_PACKETS) {
        *start = now_ns() - (uint64_t)((double)(sent + BATCH) * 1e9 / (double)rate);
        return BATCH;
    }
    return owed - sent < BATCH ? (int)(owed - sent) : BATCH;
}

static int ended(int timeout_ns)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    struct timespec wait = {.tv_nsec = timeout_ns};

    return ppoll(&input, 1, &wait, NULL) != 0;
}

static uint64_t at_rate(struct sending *sending)
{
    const struct options *options = sending->options;
    uint64_t start = now_ns(), look = start, left = options->count ? options->count : UINT64_MAX;
    uint64_t gap_ns = 1000000000 / options->rate;

    while (left) {
        int count = due(&start, options->rate, sending->sent);
        uint64_t now = now_ns();

        if ((uint64_t)count > left)
            count = (int)left;
        if (count)
            send_frames(sending, count);
        left -= (uint64_t)count;
        if (!count && gap_ns > SHORTEST_SLEEP_NS) {
            if (ended((int)(gap_ns < 100000000 ? gap_ns / 2 : 50000000)))
                break;
        } else if (now - look > 1000000) {
            look = now;
            if (ended(0))
                break;
        }
    }
    return sending->sent;
}

static uint64_t flat_out(struct sending *sending)
{
    uint64_t left = sending->options->count ? sending->options->count : UINT64_MAX;

    while (left && !ended(0)) {
        for (int batch = 0; batch < BATCHES_A_LOOK && left; batch++) {
            int count = left < BATCH ? (int)left : BATCH;
            send_frames(sending, count);
            left -= (uint64_t)count;
        }
    }
    return sending->sent;
}

static int open_frames(const struct options *options)
{
    int one = 1, buffer_bytes = 4 << 20;
    struct sockaddr_ll there = {
        .sll_family = AF_PACKET,
        .sll_ifindex = (int)if_nametoindex(options->interface),
    };
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* 0: it receives nothing */

    if (fd < 0 || bind(fd, (struct sockaddr *)&there, sizeof there) < 0)
        fail(options->interface);
    if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) < 0)
        fail("PACKET_QDISC_BYPASS");
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer_bytes, sizeof buffer_bytes);
    return fd;
}

static void go(void)
{
    char line[16];

    puts("ready");
    fflush(stdout);
    /* By read, not by a stream: poll must not see what a stream has already taken. */
    while (read(STDIN_FILENO, line, sizeof line) < 0 && errno == EINTR)
        ;
}

static uint64_t offload(const struct options *options)
{
    static uint8_t payload[PAYLOAD_BYTES * SEGMENTS];
    struct iovec piece = {payload, sizeof payload};
    struct sockaddr_in *addresses = calloc(options->destinations, sizeof *addresses);
    struct mmsghdr *messages = calloc(options->destinations, sizeof *messages);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), segment = PAYLOAD_BYTES;
    uint64_t sent = 0;

    if (fd < 0 || !addresses || !messages)
        fail("socket");
    if (setsockopt(fd, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment) < 0)
        fail("UDP_SEGMENT");
    for (uint32_t at = 0; at < options->destinations; at++) {
        addresses[at].sin_family = AF_INET;
        addresses[at].sin_port = htons(PORT);
        addresses[at].sin_addr.s_addr = htonl(options->destination + at);
        messages[at].msg_hdr.msg_name = &addresses[at];
        messages[at].msg_hdr.msg_namelen = sizeof addresses[at];
        messages[at].msg_hdr.msg_iov = &piece;
        messages[at].msg_hdr.msg_iovlen = 1;
    }
    go();
    for (uint32_t at = 0; !ended(0);) {
        uint32_t few = options->destinations - at < MESSAGES ? options->destinations - at : MESSAGES;
        int got = sendmmsg(fd, messages + at, few, 0);

        if (got < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
            fail("sendmmsg");
        if (got > 0) {
            sent += (uint64_t)got * SEGMENTS;
            at = (at + (uint32_t)got) % options->destinations;
        }
    }
    return sent;
}

static uint64_t frames(const struct options *options)
{
    static struct sending sending;

    sending.options = options;
    sending.fd = open_frames(options);
    prepare(&sending);
    go();
    return options->rate ? at_rate(&sending) : flat_out(&sending);
}

static uint32_t to_address(const char *text)
{
    struct in_addr address;

    if (!inet_aton(text, &address)) {
        fprintf(stderr, "not an IPv4 address: %s\n", text);
        exit(2);
    }
    return ntohl(address.s_addr);
}

static struct ether_addr to_ether(const char *text)
{
    const struct ether_addr *address = ether_aton(text);

    if (!address) {
        fprintf(stderr, "not an Ethernet address: %s\n", text);
        exit(2);
    }
    return *address;
}

static struct options parse(int count, char **words)
{
    static const struct option known[] = {
        {"core", required_argument, NULL, 'c'},
        {"interface", required_argument, NULL, 'i'},
        {"from", required_argument, NULL, 'f'},
        {"to", required_argument, NULL, 't'},
        {"source", required_argument, NULL, 's'},
        {"sources", required_argument, NULL, 'S'},
        {"destination", required_argument, NULL, 'd'},
        {"destinations", required_argument, NULL, 'D'},
        {"rate", required_argument, NULL, 'r'},
        {"count", required_argument, NULL, 'n'},
        {"new-connections", no_argument, NULL, 'w'},
        {"new-pairs", no_argument, NULL, 'p'},
        {"offload", no_argument, NULL, 'o'},
        {0},
    };
    struct options options = {.core = -1, .sources = 1, .destinations = 1};

    for (int chosen; (chosen = getopt_long(count, words, "", known, NULL)) != -1;) {
        switch (chosen) {
        case 'c': options.core = atoi(optarg); break;
        case 'i': options.interface = optarg; break;
        case 'f': options.from = to_ether(optarg); break;
        case 't': options.to = to_ether(optarg); break;
        case 's': options.source = to_address(optarg); break;
        case 'S': options.sources = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'd': options.destination = to_address(optarg); break;
        case 'D': options.destinations = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'r': options.rate = strtoull(optarg, NULL, 10); break;
        case 'n': options.count = strtoull(optarg, NULL, 10); break;
        case 'w': options.connections = 1; break;
        case 'p': options.pairs = 1; break;
        case 'o': options.offload = 1; break;
        default: exit(2);
        }
    }
    if (!options.interface || !options.sources || !options.destinations) {
        fputs("--interface is needed, and at least one source and destination\n", stderr);
        exit(2);
    }
    return options;
}

int main(int count, char **words)
{
    struct options options = parse(count, words);
    cpu_set_t core;

    if (options.core >= 0) {
        CPU_ZERO(&core);
        CPU_SET((unsigned)options.core, &core);
        if (sched_setaffinity(0, sizeof core, &core) < 0)
            fail("core");
    }
    printf("%llu\n", (unsigned long long)(options.offload ? offload(&options) : frames(&options)));
    return 0;
}
