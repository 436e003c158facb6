/* nfnetlink messages: bytes of the kernel -> queued packet; decision -> verdict message.
 *
 * No system call is made here. The queue's constants are spelled out because libnetfilter_queue
 * ships an older copy of the kernel's header under the same include guard.
 */
#ifndef EVENLINK_NFNETLINK_H
#define EVENLINK_NFNETLINK_H

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <string.h>

#include "packet.h"

enum {
    QUEUE_SUBSYSTEM = 3,
    QUEUE_MSG_PACKET = QUEUE_SUBSYSTEM << 8 | 0,
    QUEUE_MSG_VERDICT = QUEUE_SUBSYSTEM << 8 | 1,
    QUEUE_MSG_CONFIG = QUEUE_SUBSYSTEM << 8 | 2,
    QUEUE_MSG_VERDICT_BATCH = QUEUE_SUBSYSTEM << 8 | 3,

    QUEUE_ATTR_PACKET_HDR = 1,
    QUEUE_ATTR_VERDICT_HDR = 2,
    QUEUE_ATTR_MARK = 3,
    QUEUE_ATTR_INTERFACE_IN = 5,
    QUEUE_ATTR_PAYLOAD = 10,

    QUEUE_CONFIG_MAXLEN = 3,
    QUEUE_CONFIG_MASK = 4,
    QUEUE_CONFIG_FLAGS = 5,

    QUEUE_FLAG_FAIL_OPEN = 1 << 0,
    QUEUE_FLAG_GSO = 1 << 2,

    QUEUE_ACCEPT = 1,

    MESSAGE_HEADER = 20, /* nlmsghdr, nfgenmsg */
    VERDICT_BYTES = MESSAGE_HEADER + 12 + 8,
    CONFIG_BYTES = MESSAGE_HEADER + 8 + 8,
};

struct queued {
    uint32_t id; /* network order, as it goes back */
    uint32_t mark;
    uint32_t interface;          /* index of the one it came in by; 0: none, it is the router's own */
    const uint8_t *packet, *end; /* NULL: the message holds no payload */
};

enum message {
    MESSAGE_PACKET,
    MESSAGE_BAD_PACKET, /* the id could be read, so that a verdict can be given; no more */
    MESSAGE_ERROR,      /* NLMSG_ERROR with an errno */
    MESSAGE_ACK,
    MESSAGE_NOTHING, /* padding messages of netlink itself */
    MESSAGE_UNKNOWN,
};

static inline enum message message_parse_packet(const uint8_t *at, const uint8_t *end,
                                                struct queued *queued)
{
    int has_id = 0;

    queued->id = queued->mark = queued->interface = 0; /* the kernel leaves a mark of zero out */
    queued->packet = queued->end = NULL;
    while (end - at >= 4) {
        uint16_t length, type;
        const uint8_t *value = at + 4;

        memcpy(&length, at, 2);
        memcpy(&type, at + 2, 2);
        if (length < 4 || length > end - at)
            return has_id ? MESSAGE_BAD_PACKET : MESSAGE_UNKNOWN;
        switch (type & NLA_TYPE_MASK) {
        case QUEUE_ATTR_PACKET_HDR:
            if (length < 4 + 7)
                return MESSAGE_UNKNOWN;
            memcpy(&queued->id, value, 4);
            has_id = 1;
            break;
        case QUEUE_ATTR_MARK:
            if (length < 4 + 4)
                return has_id ? MESSAGE_BAD_PACKET : MESSAGE_UNKNOWN;
            queued->mark = load_be32(value);
            break;
        case QUEUE_ATTR_INTERFACE_IN:
            if (length < 4 + 4)
                return has_id ? MESSAGE_BAD_PACKET : MESSAGE_UNKNOWN;
            queued->interface = load_be32(value);
            break;
        case QUEUE_ATTR_PAYLOAD:
            queued->packet = value;
            queued->end = at + length;
            break;
        }
        if (NLA_ALIGN(length) >= end - at)
            break;
        at += NLA_ALIGN(length);
    }
    return has_id ? MESSAGE_PACKET : MESSAGE_UNKNOWN;
}

/* Reads one message of [*at, end) and moves *at behind it. `error` gets the errno of a
 * MESSAGE_ERROR, `sequence` the number of the request that an error or ACK answers. */
static inline enum message message_parse(const uint8_t **at, const uint8_t *end, uint16_t number,
                                         struct queued *queued, int *error, uint32_t *sequence)
{
    const uint8_t *message = *at;
    struct nlmsghdr header;

    *at = end;
    *sequence = 0;
    if (end - message < (ptrdiff_t)sizeof header)
        return MESSAGE_UNKNOWN;
    memcpy(&header, message, sizeof header);
    *sequence = header.nlmsg_seq;
    if (header.nlmsg_len < sizeof header)
        return MESSAGE_UNKNOWN;
    /* A message that was cut off is still read: its id stands at its beginning, and without a
     * verdict the packet would sit in the queue for ever. */
    int cut = header.nlmsg_len > (size_t)(end - message);
    if (!cut && NLMSG_ALIGN((size_t)header.nlmsg_len) < (size_t)(end - message))
        *at = message + NLMSG_ALIGN((size_t)header.nlmsg_len);
    const uint8_t *body = message + sizeof header;
    const uint8_t *body_end = cut ? end : message + header.nlmsg_len;

    switch (header.nlmsg_type) {
    case NLMSG_ERROR: {
        int32_t code;

        if (body_end - body < 4)
            return MESSAGE_UNKNOWN;
        memcpy(&code, body, 4);
        *error = code > -4096 && code < 0 ? -code : 0;
        return code ? MESSAGE_ERROR : MESSAGE_ACK;
    }
    case QUEUE_MSG_PACKET:
        if (body_end - body < 4 || load_be16(body + 2) != number)
            return MESSAGE_UNKNOWN;
        enum message kind = message_parse_packet(body + 4, body_end, queued);
        return cut && kind == MESSAGE_PACKET ? MESSAGE_BAD_PACKET : kind;
    case NLMSG_NOOP:
    case NLMSG_DONE:
        return MESSAGE_NOTHING;
    default:
        return MESSAGE_UNKNOWN;
    }
}

static inline uint8_t *message_begin(uint8_t *at, uint32_t length, uint16_t type, uint16_t flags,
                                     uint32_t sequence, uint16_t number)
{
    struct nlmsghdr header = {
        .nlmsg_len = length,
        .nlmsg_type = type,
        .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags),
        .nlmsg_seq = sequence,
    };
    uint8_t general[4] = {0, 0, (uint8_t)(number >> 8), (uint8_t)number}; /* any family, v0 */

    memcpy(at, &header, sizeof header);
    memcpy(at + sizeof header, general, sizeof general);
    return at + MESSAGE_HEADER;
}

static inline uint8_t *message_add(uint8_t *at, uint16_t type, const void *value, uint16_t length)
{
    uint16_t header[2] = {(uint16_t)(4 + length), type};

    memcpy(at, header, 4);
    memcpy(at + 4, value, length);
    return at + 4 + NLA_ALIGN(length);
}

/* ACCEPT; with `remark` the packet's whole mark becomes `mark`, without it stays as it is.
 * Writes at most VERDICT_BYTES, returns the place behind. */
static inline uint8_t *message_verdict(uint8_t *at, uint16_t number, uint32_t id, int remark,
                                       uint32_t mark)
{
    uint32_t verdict[2] = {htonl(QUEUE_ACCEPT), id};
    uint32_t wire = htonl(mark);

    at = message_begin(at, remark ? VERDICT_BYTES : VERDICT_BYTES - 8, QUEUE_MSG_VERDICT, 0, 0,
                       number);
    at = message_add(at, QUEUE_ATTR_VERDICT_HDR, verdict, sizeof verdict);
    return remark ? message_add(at, QUEUE_ATTR_MARK, &wire, sizeof wire) : at;
}

/* Makes the verdict that begins at `verdict` one for all packets up to `id`. The kernel then takes
 * every packet that waits and whose id is not after it: all before must have been answered. */
static inline void message_verdict_extend(uint8_t *verdict, uint32_t id)
{
    const uint16_t type = QUEUE_MSG_VERDICT_BATCH;

    memcpy(verdict + offsetof(struct nlmsghdr, nlmsg_type), &type, sizeof type);
    memcpy(verdict + MESSAGE_HEADER + 8, &id, sizeof id);
}

#endif
