/* Bytes -> flow | reason.
 *
 * Every byte is hostile. The parser carries an `end` pointer and compares before each read; every
 * way out returns a named reason, which is also a counter that an operator can see.
 */
#ifndef EVENLINK_PACKET_H
#define EVENLINK_PACKET_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EVENLINK_REASONS(X)                       \
    X(DECIDED, "decided")                         \
    X(SHORT_HEADER, "short-header")               \
    X(NOT_IP, "not-ip")                           \
    X(BAD_HEADER_LENGTH, "bad-header-length")     \
    X(BAD_TOTAL_LENGTH, "bad-total-length")       \
    X(SHORT_EXTENSION, "short-extension")         \
    X(MANY_EXTENSIONS, "many-extensions")         \
    X(SHORT_PORTS, "short-ports")                 \
    X(NO_RULE, "no-rule")                         \
    X(DRAWN, "drawn")                             \
    X(NO_PAYLOAD, "no-payload")                   \
    X(BAD_MESSAGE, "bad-message")

enum reason {
#define EVENLINK_REASON_ENUM(name, text) REASON_##name,
    EVENLINK_REASONS(EVENLINK_REASON_ENUM)
#undef EVENLINK_REASON_ENUM
        REASON_COUNT
};

static const char *const reason_names[REASON_COUNT] = {
#define EVENLINK_REASON_TEXT(name, text) text,
    EVENLINK_REASONS(EVENLINK_REASON_TEXT)
#undef EVENLINK_REASON_TEXT
};

/* More extension headers than this are an attack or a fault: RFC 8200 lists seven, each once. */
enum { PACKET_MAX_EXTENSIONS = 12 };

/* What is hashed and matched. `key` holds source address, destination address, source port and
 * destination port, in network order with nothing between them: 12 bytes for IPv4, 36 for IPv6,
 * so that most field sets are one contiguous piece of it. Ports are zero for protocols that have
 * none and for fragments. */
struct flow {
    uint8_t key[36];
    uint8_t family; /* 4 or 6 */
    uint8_t protocol;
    uint8_t fragment;
    uint8_t dscp;       /* 0 to 63 */
    uint32_t interface; /* no part of the packet: the index of where it came in, or 0 */
};

static inline size_t flow_address_length(const struct flow *flow)
{
    return flow->family == 4 ? 4 : 16;
}

static inline uint16_t load_be16(const uint8_t *bytes)
{
    return (uint16_t)(bytes[0] << 8 | bytes[1]);
}

static inline uint32_t load_be32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static inline uint64_t load_be64(const uint8_t *bytes)
{
    return (uint64_t)load_be32(bytes) << 32 | load_be32(bytes + 4);
}

static inline int protocol_has_ports(uint8_t protocol)
{
    switch (protocol) {
    case 6:   /* TCP */
    case 17:  /* UDP */
    case 33:  /* DCCP */
    case 132: /* SCTP */
    case 136: /* UDP-Lite */
        return 1;
    default:
        return 0;
    }
}

static inline enum reason packet_parse_ports(const uint8_t *at, const uint8_t *end,
                                             struct flow *flow)
{
    uint8_t *ports = flow->key + 2 * flow_address_length(flow);

    if (flow->fragment || !protocol_has_ports(flow->protocol)) {
        memset(ports, 0, 4);
        return REASON_DECIDED;
    }
    if (end - at < 4)
        return REASON_SHORT_PORTS;
    memcpy(ports, at, 4);
    return REASON_DECIDED;
}

static inline enum reason packet_parse_ipv4(const uint8_t *at, const uint8_t *end,
                                            struct flow *flow)
{
    if (end - at < 20)
        return REASON_SHORT_HEADER;

    size_t header_length = (size_t)(at[0] & 0x0f) * 4;
    if (header_length < 20)
        return REASON_BAD_HEADER_LENGTH;

    /* Zero is what the kernel leaves in packets of more than 65,535 bytes that it put together
     * itself (BIG TCP); the copied bytes are then all there is to go by. */
    size_t total_length = load_be16(at + 2);
    if (total_length && total_length < header_length)
        return REASON_BAD_TOTAL_LENGTH;
    if ((size_t)(end - at) < header_length)
        return REASON_SHORT_HEADER;
    if (total_length && total_length < (size_t)(end - at))
        end = at + total_length;

    flow->family = 4;
    flow->dscp = at[1] >> 2;
    flow->protocol = at[9];
    flow->fragment = (load_be16(at + 6) & 0x3fff) != 0; /* offset, or more fragments */
    memcpy(flow->key, at + 12, 8);
    return packet_parse_ports(at + header_length, end, flow);
}

static inline int ipv6_is_extension(uint8_t next)
{
    switch (next) {
    case 0:   /* hop-by-hop options */
    case 43:  /* routing */
    case 44:  /* fragment */
    case 51:  /* authentication header */
    case 60:  /* destination options */
    case 135: /* mobility */
        return 1;
    default:
        return 0;
    }
}

static inline enum reason packet_parse_ipv6(const uint8_t *at, const uint8_t *end,
                                            struct flow *flow)
{
    if (end - at < 40)
        return REASON_SHORT_HEADER;

    /* Zero: a jumbogram (RFC 2675) or BIG TCP. */
    size_t payload_length = load_be16(at + 4);
    if (payload_length && payload_length < (size_t)(end - at) - 40)
        end = at + 40 + payload_length;

    uint8_t next = at[6];
    flow->family = 6;
    flow->dscp = (uint8_t)(load_be16(at) >> 6 & 0x3f);
    flow->fragment = 0;
    memcpy(flow->key, at + 8, 32);
    at += 40;

    for (int walked = 0;; walked++) {
        size_t length;

        if (!ipv6_is_extension(next)) {
            flow->protocol = next;
            return packet_parse_ports(at, end, flow);
        }
        if (walked == PACKET_MAX_EXTENSIONS)
            return REASON_MANY_EXTENSIONS;
        if (end - at < 8)
            return REASON_SHORT_EXTENSION;
        if (next == 44) {
            length = 8;
            if (load_be16(at + 2) & 0xfff9) {
                /* All fragments of a packet must agree, and only the first one holds what comes
                 * after this header: so none of them is read further. */
                flow->fragment = 1;
                flow->protocol = at[0];
                return packet_parse_ports(at, end, flow);
            }
        } else if (next == 51) {
            length = ((size_t)at[1] + 2) * 4; /* RFC 4302, section 2.2: 32-bit words minus 2 */
        } else {
            length = ((size_t)at[1] + 1) * 8;
        }
        if ((size_t)(end - at) < length)
            return REASON_SHORT_EXTENSION;
        next = at[0];
        at += length;
    }
}

/* Nearly every packet is plain: no options, no extension headers, and behind the header the four
 * bytes of two ports, be they ports or not. packet_parse then refuses nothing, and the address
 * pair is one piece at a fixed place, which these two return. NULL: it takes packet_parse to say. */
static inline const uint8_t *plain_pair_ipv4(const uint8_t *at, const uint8_t *end)
{
    if (end - at < 24 || at[0] != 0x45 || load_be16(at + 2) < 24)
        return NULL;
    return at + 12;
}

static inline const uint8_t *plain_pair_ipv6(const uint8_t *at, const uint8_t *end)
{
    if (end - at < 44 || at[0] >> 4 != 6 || load_be16(at + 4) < 4 || ipv6_is_extension(at[6]))
        return NULL;
    return at + 8;
}

/* Reads the packet in [at, end). On REASON_DECIDED the flow is complete but for its interface, else
 * it is undefined. */
static inline enum reason packet_parse(const uint8_t *at, const uint8_t *end, struct flow *flow)
{
    if (end - at < 1)
        return REASON_SHORT_HEADER;
    switch (at[0] >> 4) {
    case 4:
        return packet_parse_ipv4(at, end, flow);
    case 6:
        return packet_parse_ipv6(at, end, flow);
    default:
        return REASON_NOT_IP;
    }
}

#endif
