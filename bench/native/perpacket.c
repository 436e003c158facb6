/* A queue served as most programs in C do: one recv, one decision and one send a packet.
 *
 * Nothing is read or written that is not needed, and the queue's flags are Evenlink's: what is left
 * between the two is the number of system calls. The decision hashes the address pair with a few
 * multiplications to a mark of 1, 2 or 3.
 *
 * perpacket QUEUE LENGTH COPY-BYTES BUFFER-BYTES says "ready" when the queue is bound, and serves
 * until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEADER_BYTES = NLMSG_HDRLEN + sizeof(struct nfgenmsg),
    SOURCE_AT = 12, /* in the IPv4 header; the destination follows */
    SHORTEST = 20,
    MARKS = 3,
};

struct message {
    _Alignas(8) uint8_t bytes[128];
    uint32_t length;
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void begin(struct message *message, uint16_t type, uint16_t flags, uint16_t queue)
{
    struct nlmsghdr *header = (struct nlmsghdr *)message->bytes;
    struct nfgenmsg *general = NLMSG_DATA(header);

    memset(message->bytes, 0, HEADER_BYTES);
    header->nlmsg_type = (uint16_t)(NFNL_SUBSYS_QUEUE << 8 | type);
    header->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    general->res_id = htons(queue);
    message->length = HEADER_BYTES;
}

static void add(struct message *message, uint16_t type, const void *value, uint16_t size)
{
    struct nlattr *attribute = (struct nlattr *)(message->bytes + message->length);

    attribute->nla_type = type;
    attribute->nla_len = (uint16_t)(NLA_HDRLEN + size);
    memcpy(attribute + 1, value, size);
    message->length += NLA_ALIGN(attribute->nla_len);
}

static ssize_t deliver(int fd, struct message *message)
{
    ((struct nlmsghdr *)message->bytes)->nlmsg_len = message->length;
    return send(fd, message->bytes, message->length, 0);
}

/* Sends a setting and waits for the kernel's answer; packets that come before it are not ours yet,
 * since the copy mode is set last. */
static void set(int fd, struct message *message)
{
    uint8_t answer[4096];
    const struct nlmsghdr *header = (const struct nlmsghdr *)answer;

    if (deliver(fd, message) < 0 || recv(fd, answer, sizeof answer, 0) < 0)
        fail("nfnetlink");
    if (header->nlmsg_type != NLMSG_ERROR)
        return;
    errno = -((const struct nlmsgerr *)NLMSG_DATA(header))->error;
    if (errno)
        fail("binding the queue");
}

static void configure(int fd, uint16_t queue, uint32_t length, uint32_t copy_bytes)
{
    const struct nfqnl_msg_config_cmd bind_it = {.command = NFQNL_CFG_CMD_BIND};
    const struct nfqnl_msg_config_params copy = {
        .copy_range = htonl(copy_bytes),
        .copy_mode = NFQNL_COPY_PACKET,
    };
    const uint32_t flags = htonl(NFQA_CFG_F_FAIL_OPEN | NFQA_CFG_F_GSO), longest = htonl(length);
    struct message message;

    begin(&message, NFQNL_MSG_CONFIG, NLM_F_ACK, queue);
    add(&message, NFQA_CFG_CMD, &bind_it, sizeof bind_it);
    set(fd, &message);
    begin(&message, NFQNL_MSG_CONFIG, NLM_F_ACK, queue);
    add(&message, NFQA_CFG_QUEUE_MAXLEN, &longest, sizeof longest);
    add(&message, NFQA_CFG_FLAGS, &flags, sizeof flags);
    add(&message, NFQA_CFG_MASK, &flags, sizeof flags);
    add(&message, NFQA_CFG_PARAMS, &copy, sizeof copy);
    set(fd, &message);
}

static uint32_t decide(const uint8_t *packet, uint32_t size)
{
    uint64_t pair;

    if (size < SHORTEST)
        return 1;
    memcpy(&pair, packet + SOURCE_AT, sizeof pair);
    pair *= 0x9e3779b97f4a7c15u;
    pair ^= pair >> 32;
    return 1 + (uint32_t)(pair % MARKS);
}

/* One queued packet: its verdict, or nothing where the message is none. */
static void answer(int fd, uint16_t queue, const uint8_t *bytes, ssize_t size)
{
    const struct nlmsghdr *header = (const struct nlmsghdr *)bytes;
    struct nfqnl_msg_verdict_hdr verdict = {.verdict = htonl(NF_ACCEPT)};
    const uint8_t *at = bytes + HEADER_BYTES, *end = bytes + size, *packet = NULL;
    uint32_t packet_bytes = 0, mark;
    struct message message;

    if (header->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
        return;
    while (end - at >= NLA_HDRLEN) {
        const struct nlattr *attribute = (const struct nlattr *)at;

        if (attribute->nla_len < NLA_HDRLEN || attribute->nla_len > end - at)
            break;
        switch (attribute->nla_type & NLA_TYPE_MASK) {
        case NFQA_PACKET_HDR:
            verdict.id = ((const struct nfqnl_msg_packet_hdr *)(attribute + 1))->packet_id;
            break;
        case NFQA_PAYLOAD:
            packet = (const uint8_t *)(attribute + 1);
            packet_bytes = attribute->nla_len - NLA_HDRLEN;
            break;
        }
        at += NLA_ALIGN(attribute->nla_len);
    }
    mark = htonl(packet ? decide(packet, packet_bytes) : 1);
    begin(&message, NFQNL_MSG_VERDICT, 0, queue);
    add(&message, NFQA_VERDICT_HDR, &verdict, sizeof verdict);
    add(&message, NFQA_MARK, &mark, sizeof mark);
    if (deliver(fd, &message) < 0)
        fail("verdict");
}

int main(int count, char **words)
{
    static _Alignas(8) uint8_t bytes[65536 + 4096];
    const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    int one = 1;

    if (count != 5) {
        fprintf(stderr, "usage: %s QUEUE LENGTH COPY-BYTES BUFFER-BYTES\n", words[0]);
        return 2;
    }
    uint16_t queue = (uint16_t)atoi(words[1]);
    int buffer_bytes = atoi(words[4]), fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&kernel, sizeof kernel) < 0)
        fail("netlink");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof buffer_bytes);
    setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof one);
    configure(fd, queue, (uint32_t)atoi(words[2]), (uint32_t)atoi(words[3]));
    puts("ready");
    fflush(stdout);
    for (;;) {
        ssize_t size = recv(fd, bytes, sizeof bytes, 0);

        if (size < 0 && errno != EINTR && errno != ENOBUFS)
            fail("recv");
        if (size >= (ssize_t)HEADER_BYTES)
            answer(fd, queue, bytes, size);
    }
}
