/* What connections and answers taught: address or endpoint -> number of a set of members.
 *
 * An immutable table with open addressing, at most half full. Who sends packets chooses the keys, so
 * they are hashed under a seed, and no look-up takes more than LEARNED_PROBES steps: with a seed
 * under which one would, the table is not used.
 */
#ifndef EVENLINK_LEARNED_H
#define EVENLINK_LEARNED_H

#include <inttypes.h>
#include <stdlib.h>

#include "fault.h"
#include "flowhash.h"

enum {
    LEARNED_MOST = 1 << 20,
    LEARNED_PROBES = 64,
    LEARNED_TRIES = 6, /* seeds; after every second one the room is doubled */
};

enum learned_kind {
    LEARNED_ADDRESS, /* any protocol and port there */
    LEARNED_SERVER,  /* address, protocol and port that a connection goes to */
    LEARNED_CLIENT,  /* the same that it comes from */
    LEARNED_KINDS
};

struct learned_entry {
    uint8_t kind, family, protocol, reserved; /* family 4 or 6 */
    uint16_t port;                            /* in the machine's own byte order */
    uint16_t reserved2;
    uint32_t set;        /* from 1 */
    uint8_t address[16]; /* IPv4: the first 4 bytes */
};

struct learned_slot {
    struct learned_key {
        uint8_t address[16];
        uint64_t rest;
    } key;
    uint64_t set; /* 0: free */
};

struct learned {
    uint64_t seed;
    uint64_t mask;
    uint64_t counts[LEARNED_KINDS];
    uint64_t size; /* bytes of memory */
    struct learned_slot *slots;
};

static inline struct learned_key learned_key(enum learned_kind kind, uint8_t family,
                                             const uint8_t *address, uint8_t protocol,
                                             uint16_t port)
{
    struct learned_key key = {.rest = (uint64_t)kind << 32 | (uint64_t)family << 24};

    if (kind != LEARNED_ADDRESS)
        key.rest |= (uint64_t)protocol << 16 | port;
    if (family == 4)
        memcpy(key.address, address, 4);
    else
        memcpy(key.address, address, 16);
    return key;
}

static inline struct learned_slot *learned_slot(const struct learned *learned,
                                                const struct learned_key *key)
{
    uint64_t at = XXH3_64bits_withSeed(key, sizeof *key, learned->seed);

    for (int probe = 0; probe < LEARNED_PROBES; probe++, at++) {
        struct learned_slot *slot = &learned->slots[at & learned->mask];

        if (!slot->set || !memcmp(&slot->key, key, sizeof *key))
            return slot;
    }
    return NULL;
}

/* The set of what was learned, 0: nothing was. `address`: 4 or 16 bytes in network order; an
 * address is found whatever the protocol and port. */
static inline uint32_t learned_find(const struct learned *learned, enum learned_kind kind,
                                    uint8_t family, const uint8_t *address, uint8_t protocol,
                                    uint16_t port)
{
    if (!learned->counts[kind])
        return 0;
    struct learned_key key = learned_key(kind, family, address, protocol, port);
    const struct learned_slot *slot = learned_slot(learned, &key);
    return slot ? (uint32_t)slot->set : 0;
}

static inline int learned_check(const struct learned_entry *entries, uint64_t count,
                                uint32_t set_count, char *fault)
{
    static const uint8_t nothing[12];

    if (count > LEARNED_MOST)
        return fault_say(fault, "%" PRIu64 " learned entries, legal are 0 to %d", count,
                         LEARNED_MOST);
    for (uint64_t at = 0; at < count; at++) {
        const struct learned_entry *entry = &entries[at];

        if (entry->kind >= LEARNED_KINDS || (entry->family != 4 && entry->family != 6))
            return fault_say(fault, "learned entry %" PRIu64 ": kind %u, family %u", at,
                             entry->kind, entry->family);
        if (!entry->set || entry->set >= set_count)
            return fault_say(fault, "learned entry %" PRIu64 ": set %u, legal are 1 to %u", at,
                             entry->set, set_count - 1);
        if (entry->reserved || entry->reserved2
            || (entry->kind == LEARNED_ADDRESS && (entry->protocol || entry->port))
            || (entry->family == 4 && memcmp(entry->address + 4, nothing, sizeof nothing)))
            return fault_say(fault, "learned entry %" PRIu64 ": what it does not use is not zero",
                             at);
    }
    return 0;
}

/* 1: all are in; 0: not with this seed and size; negative: refused, with words. */
static inline int learned_fill(struct learned *learned, const struct learned_entry *entries,
                               uint64_t count, char *fault)
{
    memset(learned->counts, 0, sizeof learned->counts);
    for (uint64_t at = 0; at < count; at++) {
        const struct learned_entry *entry = &entries[at];
        struct learned_key key = learned_key((enum learned_kind)entry->kind, entry->family,
                                             entry->address, entry->protocol, entry->port);
        struct learned_slot *slot = learned_slot(learned, &key);

        if (!slot)
            return 0;
        if (slot->set)
            return fault_say(fault, "learned entry %" PRIu64 " is there a second time", at);
        *slot = (struct learned_slot){key, entry->set};
        learned->counts[entry->kind]++;
    }
    return 1;
}

static inline void learned_close(struct learned *learned)
{
    if (learned) {
        free(learned->slots);
        free(learned);
    }
}

/* `set_count` counts set 0, the empty one. NULL with words in `fault` (FAULT_LENGTH bytes), or
 * without words: no memory. */
static inline struct learned *learned_open(const struct learned_entry *entries, uint64_t count,
                                           uint32_t set_count, uint64_t seed, char *fault)
{
    struct learned *learned = calloc(1, sizeof *learned);
    uint64_t room = 16;
    int filled = 0;

    *fault = 0;
    if (!learned || learned_check(entries, count, set_count, fault) < 0) {
        learned_close(learned);
        return NULL;
    }
    while (room < 2 * count)
        room *= 2;
    for (int try = 0; try < LEARNED_TRIES && !filled; try++) {
        if (try && try % 2 == 0)
            room *= 2;
        free(learned->slots);
        learned->slots = calloc(room, sizeof *learned->slots);
        if (!learned->slots)
            break;
        learned->seed = seed + (uint64_t)try;
        learned->mask = room - 1;
        learned->size = sizeof *learned + room * sizeof *learned->slots;
        filled = learned_fill(learned, entries, count, fault);
        if (!filled && try + 1 == LEARNED_TRIES)
            fault_say(fault, "more than %d learned keys fall on one place under every seed",
                      LEARNED_PROBES);
    }
    if (filled != 1) {
        learned_close(learned);
        return NULL;
    }
    return learned;
}

#endif
