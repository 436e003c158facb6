/* Pings the same address in several network namespaces in turn, and says how long each took.
 *
 * One ping at a time. Every round has each namespace once, in another order, so that what else the
 * machine does hits all alike. The kernel answers, so nobody else has to wake up; and it waits for
 * the answer without sleeping, so that its own waking up is not measured. Between two pings it
 * sleeps. Every ping has another identifier, and so is a connection of its own to conntrack.
 *
 * echo CORE ADDRESS ROUNDS PAUSE-US NAMESPACE... prints a line a round: nanoseconds for each
 * namespace in the order that they were given, 0 where no answer came in a second.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip_icmp.h>
#include <string.h>
#include <sys/socket.h>

#include "turns.h"

enum {
    PAYLOAD_BYTES = 22, /* 64 with the headers of ICMP, IPv4 and Ethernet */
    LATE_NS = 1000000000,
};

struct ping {
    struct icmphdr header;
    uint8_t payload[PAYLOAD_BYTES];
};

/* RFC 1071. */
static uint16_t checksum(const void *data, size_t size)
{
    const uint8_t *bytes = data;
    uint32_t sum = 0;

    for (size_t at = 0; at + 1 < size; at += 2) {
        uint16_t word;

        memcpy(&word, bytes + at, 2);
        sum += word;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~(sum + (sum >> 16));
}

static void send_ping(int fd, uint16_t number)
{
    struct ping ping = {.header = {.type = ICMP_ECHO}};

    ping.header.un.echo.id = number;
    ping.header.checksum = checksum(&ping, sizeof ping);
    if (send(fd, &ping, sizeof ping, 0) < 0)
        fail("send");
}

/* Whether what was read is the answer to that ping. */
static int answers(const uint8_t *bytes, ssize_t size, uint16_t number)
{
    struct icmphdr header;
    size_t length = (size_t)(bytes[0] & 15) * 4;

    if (size < (ssize_t)(length + sizeof header))
        return 0;
    memcpy(&header, bytes + length, sizeof header);
    return header.type == ICMP_ECHOREPLY && header.un.echo.id == number;
}

/* 0: no answer came in time. */
static uint64_t round_trip_ns(int fd, uint16_t number)
{
    uint8_t bytes[256];
    uint64_t start = now_ns(), end;

    send_ping(fd, number);
    do {
        ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);

        end = now_ns();
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            fail("recv");
        if (got > 0 && answers(bytes, got, number))
            return end - start;
    } while (end - start < LATE_NS);
    return 0;
}

/* A socket in the namespace of that name. */
static int open_there(const char *name, const struct sockaddr_in *there)
{
    int fd;

    enter(name);
    fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
    if (fd < 0 || connect(fd, (const struct sockaddr *)there, sizeof *there) < 0)
        fail("socket");
    return fd;
}

int main(int count, char **words)
{
    int spaces = count - 5, rounds = count > 5 ? atoi(words[3]) : 0;
    struct sockaddr_in there = {.sin_family = AF_INET};
    int fds[MOST_TURNS], order[MOST_TURNS];
    uint16_t sequence = 0;

    if (rounds < 1 || spaces > MOST_TURNS || !inet_aton(words[2], &there.sin_addr)) {
        fputs("echo CORE ADDRESS ROUNDS PAUSE-US NAMESPACE...\n", stderr);
        return 2;
    }
    struct timespec pause = {.tv_nsec = atol(words[4]) * 1000};
    uint64_t *took = calloc((size_t)rounds * (size_t)spaces, sizeof *took);
    if (!took)
        fail("rounds");
    stay_on(atoi(words[1]));
    for (int at = 0; at < spaces; at++) {
        fds[at] = open_there(words[5 + at], &there);
        order[at] = at;
    }
    for (int round = 0; round < rounds; round++) {
        shuffle(order, spaces);
        for (int at = 0; at < spaces; at++) {
            nanosleep(&pause, NULL);
            took[round * spaces + order[at]] = round_trip_ns(fds[order[at]], sequence++);
        }
    }
    for (int at = 0; at < rounds * spaces; at++)
        printf("%llu%c", (unsigned long long)took[at], (at + 1) % spaces ? ' ' : '\n');
    return 0;
}
