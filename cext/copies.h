/* nfnetlink_log messages: bytes of the kernel -> copied packet. No system call is made here. */
#ifndef EVENLINK_COPIES_H
#define EVENLINK_COPIES_H

#include <linux/netlink.h>
#include <stdint.h>
#include <string.h>

#include "packet.h"

enum {
    COPY_MSG_PACKET = 4 << 8 | 0,

    COPY_ATTR_IN = 4,
    COPY_ATTR_OUT = 5,
    COPY_ATTR_PAYLOAD = 9,
    COPY_ATTR_PREFIX = 10,
    COPY_ATTR_NUMBER = 12,

    COPY_MESSAGE_HEADER = 20, /* nlmsghdr, nfgenmsg */
};

/* The rule's prefix says from which side the packet came: "lan…" or "wan…". */
enum copy_side { COPY_SIDE_UNKNOWN, COPY_SIDE_LAN, COPY_SIDE_WAN };

/* It may also say its direction in the connection: "… original" or "… reply". */
enum copy_direction { COPY_DIRECTION_UNKNOWN, COPY_DIRECTION_ORIGINAL, COPY_DIRECTION_REPLY };

struct copied {
    const uint8_t *packet, *end; /* NULL: the message holds no packet */
    uint32_t number;             /* the kernel counts the copies of a group, lost ones too */
    uint32_t in, out;            /* interface indexes, 0 where there is none */
    uint8_t numbered, side, direction;
};

static inline int copied_prefix_is(const uint8_t *text, size_t length, const char *word)
{
    return length >= strlen(word) && !memcmp(text, word, strlen(word));
}

static inline void copied_read_prefix(const uint8_t *text, size_t length, struct copied *copied)
{
    if (copied_prefix_is(text, length, "lan"))
        copied->side = COPY_SIDE_LAN;
    else if (copied_prefix_is(text, length, "wan"))
        copied->side = COPY_SIDE_WAN;
    else
        return;
    if (copied_prefix_is(text + 3, length - 3, " original"))
        copied->direction = COPY_DIRECTION_ORIGINAL;
    else if (copied_prefix_is(text + 3, length - 3, " reply"))
        copied->direction = COPY_DIRECTION_REPLY;
}

static inline void copied_read_attributes(const uint8_t *at, const uint8_t *end,
                                          struct copied *copied)
{
    while (end - at >= 4) {
        uint16_t length, type;
        const uint8_t *value = at + 4;

        memcpy(&length, at, 2);
        memcpy(&type, at + 2, 2);
        if (length < 4 || length > end - at)
            return;
        switch (type & NLA_TYPE_MASK) {
        case COPY_ATTR_IN:
            copied->in = length >= 8 ? load_be32(value) : 0;
            break;
        case COPY_ATTR_OUT:
            copied->out = length >= 8 ? load_be32(value) : 0;
            break;
        case COPY_ATTR_PAYLOAD:
            copied->packet = value;
            copied->end = at + length;
            break;
        case COPY_ATTR_PREFIX:
            copied_read_prefix(value, length - 4, copied);
            break;
        case COPY_ATTR_NUMBER:
            copied->numbered = length >= 8;
            copied->number = length >= 8 ? load_be32(value) : 0;
            break;
        }
        if (NLA_ALIGN(length) >= end - at)
            return;
        at += NLA_ALIGN(length);
    }
}

/* Reads one message of [*at, end) and moves *at behind it; what cannot be read is skipped to the
 * end. Returns whether it was a copy with a packet. */
static inline int copied_parse(const uint8_t **at, const uint8_t *end, struct copied *copied)
{
    const uint8_t *message = *at;
    struct nlmsghdr header;

    *at = end;
    memset(copied, 0, sizeof *copied);
    if (end - message < (ptrdiff_t)sizeof header)
        return 0;
    memcpy(&header, message, sizeof header);
    if (header.nlmsg_len < sizeof header || header.nlmsg_len > (size_t)(end - message))
        return 0;
    if (NLMSG_ALIGN((size_t)header.nlmsg_len) < (size_t)(end - message))
        *at = message + NLMSG_ALIGN((size_t)header.nlmsg_len);
    if (header.nlmsg_type != COPY_MSG_PACKET || header.nlmsg_len < COPY_MESSAGE_HEADER)
        return 0;
    copied_read_attributes(message + COPY_MESSAGE_HEADER, message + header.nlmsg_len, copied);
    return copied->packet != NULL && copied->packet < copied->end;
}

#endif
