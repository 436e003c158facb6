/* Flow + fields + key -> 64-bit hash.
 *
 * XXH3-64 with the key as its seed, over the chosen fields in network order: addresses first,
 * source before destination, then ports, source before destination. 8 bytes for the address pair
 * of IPv4, 32 for IPv6. Every length is a constant, so that XXH3 folds to its short path.
 */
#ifndef EVENLINK_FLOWHASH_H
#define EVENLINK_FLOWHASH_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "packet.h"

/* RouterOS's nine sets, in the order of the configuration's Fields. */
enum fields {
    FIELDS_BOTH_ADDRESSES,
    FIELDS_BOTH_PORTS,
    FIELDS_BOTH_ADDRESSES_AND_PORTS,
    FIELDS_SRC_ADDRESS,
    FIELDS_SRC_PORT,
    FIELDS_SRC_ADDRESS_AND_PORT,
    FIELDS_DST_ADDRESS,
    FIELDS_DST_PORT,
    FIELDS_DST_ADDRESS_AND_PORT,
    FIELDS_COUNT
};

/* The smaller address first; its port goes with it. Equal addresses: the smaller port first. */
static inline void flow_order(struct flow *flow)
{
    size_t length = flow_address_length(flow);
    uint8_t *source = flow->key, *destination = source + length;
    uint8_t *ports = destination + length;
    int order = memcmp(source, destination, length);
    uint8_t kept[16];

    if (order < 0 || (order == 0 && memcmp(ports, ports + 2, 2) <= 0))
        return;
    memcpy(kept, source, length);
    memcpy(source, destination, length);
    memcpy(destination, kept, length);
    memcpy(kept, ports, 2);
    memcpy(ports, ports + 2, 2);
    memcpy(ports + 2, kept, 2);
}

/* What everybody uses; `length` is a constant: 4 or 16 bytes an address. */
static inline __attribute__((always_inline)) uint64_t hash_pair(const uint8_t *pair, size_t length,
                                                                uint64_t seed)
{
    return XXH3_64bits_withSeed(pair, 2 * length, seed);
}

/* `length` is a constant in both callers. */
static inline __attribute__((always_inline)) uint64_t hash_fields(const uint8_t *key,
                                                                  size_t length,
                                                                  enum fields fields,
                                                                  uint64_t seed)
{
    const uint8_t *ports = key + 2 * length;
    uint8_t joined[18];

    switch (fields) {
    case FIELDS_BOTH_PORTS:
        return XXH3_64bits_withSeed(ports, 4, seed);
    case FIELDS_BOTH_ADDRESSES_AND_PORTS:
        return XXH3_64bits_withSeed(key, 2 * length + 4, seed);
    case FIELDS_SRC_ADDRESS:
        return XXH3_64bits_withSeed(key, length, seed);
    case FIELDS_SRC_PORT:
        return XXH3_64bits_withSeed(ports, 2, seed);
    case FIELDS_SRC_ADDRESS_AND_PORT:
        memcpy(joined, key, length);
        memcpy(joined + length, ports, 2);
        return XXH3_64bits_withSeed(joined, length + 2, seed);
    case FIELDS_DST_ADDRESS:
        return XXH3_64bits_withSeed(key + length, length, seed);
    case FIELDS_DST_PORT:
        return XXH3_64bits_withSeed(ports + 2, 2, seed);
    case FIELDS_DST_ADDRESS_AND_PORT:
        memcpy(joined, key + length, length);
        memcpy(joined + length, ports + 2, 2);
        return XXH3_64bits_withSeed(joined, length + 2, seed);
    case FIELDS_BOTH_ADDRESSES:
    default:
        return hash_pair(key, length, seed);
    }
}

/* Apart, so that what everybody uses stays small enough to fold into the caller. */
static __attribute__((noinline)) uint64_t flow_hash_any(const struct flow *flow, enum fields fields,
                                                        int symmetric, uint64_t seed)
{
    struct flow ordered;

    if (symmetric) {
        ordered = *flow;
        flow_order(&ordered);
        flow = &ordered;
    }
    if (flow->family == 4)
        return hash_fields(flow->key, 4, fields, seed);
    return hash_fields(flow->key, 16, fields, seed);
}

static inline uint64_t flow_hash(const struct flow *flow, enum fields fields, int symmetric,
                                 uint64_t seed)
{
    if (__builtin_expect(fields != FIELDS_BOTH_ADDRESSES || symmetric, 0))
        return flow_hash_any(flow, fields, symmetric, seed);
    if (flow->family == 4)
        return hash_pair(flow->key, 4, seed);
    return hash_pair(flow->key, 16, seed);
}

#endif
