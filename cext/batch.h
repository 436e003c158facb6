/* Many packets at once, one behind the other: packet i is [offsets[i], offsets[i + 1]).
 *
 * Plain packets under a program with pair tables are decided straight from their bytes, in a loop
 * that does nothing but check, hash, look up and mark: half the time of the general way, which
 * writes a flow and a whole decision between. Every other packet goes the general way, and so
 * could they all: what comes out is the same, and tests hold it so. Where rules ask for lists, the
 * memory that a look-up will need is fetched while packets before it are decided: with a million
 * prefixes, a packet takes 37 ns (IPv6: 55) instead of 60 to 130 (200).
 */
#ifndef EVENLINK_BATCH_H
#define EVENLINK_BATCH_H

#include "decide.h"

/* How many packets ahead something is fetched, each with the help of the one before. */
enum {
    BATCH_AHEAD = 32, /* a packet */
    BATCH_PLACE_AHEAD = 16,
    BATCH_LISTS_AHEAD = 8,
};

struct batch {
    const uint8_t *buffer;
    const void *offsets; /* uint64_t each if `wide`, else uint32_t; one more than packets */
    int wide;
    uint64_t count;
    uint32_t *marks; /* read and replaced */
    uint32_t interface;
    struct memory *memory; /* may be NULL */
};

static inline __attribute__((always_inline)) uint64_t batch_offset(const struct batch *batch,
                                                                   uint64_t at)
{
    if (batch->wide)
        return ((const uint64_t *)batch->offsets)[at];
    return ((const uint32_t *)batch->offsets)[at];
}

/* Do the offsets never fall, and end within the buffer? */
static inline int batch_is_legal(const struct batch *batch, uint64_t size)
{
    for (uint64_t at = 0; at < batch->count; at++)
        if (batch_offset(batch, at + 1) < batch_offset(batch, at))
            return 0;
    return batch_offset(batch, batch->count) <= size;
}

/* The processor does not foresee where packets begin whose sizes differ. */
static inline __attribute__((always_inline)) void batch_prefetch(const struct batch *batch,
                                                                 uint64_t at)
{
    uint64_t ahead = at + BATCH_AHEAD < batch->count ? at + BATCH_AHEAD : at;

    __builtin_prefetch(batch->buffer + batch_offset(batch, ahead));
}

/* Decides plain packets of one family from number `at` on; returns the number of the first packet
 * that is not one. Decisions are counted in `found`. `family` is a constant in both callers. */
static inline __attribute__((always_inline)) uint64_t batch_decide_plain(
    const struct program *program, const struct batch *batch, int family, uint64_t at,
    uint64_t *found)
{
    const uint8_t *table = program->pair_tables[family != 4];
    const uint32_t others = ~program->mark_mask, shift = program->mark_shift;

    for (; table && at < batch->count; at++) {
        const uint8_t *packet = batch->buffer + batch_offset(batch, at);
        const uint8_t *end = batch->buffer + batch_offset(batch, at + 1);
        const uint8_t *pair = family == 4 ? plain_pair_ipv4(packet, end)
                                          : plain_pair_ipv6(packet, end);

        if (!pair)
            break;
        batch_prefetch(batch, at);
        uint8_t decision = table[hash_pair(pair, family == 4 ? 4 : 16, program->key) >> 48];
        batch->marks[at] = (batch->marks[at] & others) | (uint32_t)decision << shift;
        found[decision]++;
    }
    return at;
}

/* What a look-up of the addresses of packet `at` needs, if there is such a packet, and it is one:
 * it would wait for memory. With `place` the first step, else the second. */
static inline __attribute__((always_inline)) void batch_prefetch_lists(
    const struct program *program, const struct batch *batch, uint64_t at, int place)
{
    if (at >= batch->count)
        return;
    const uint8_t *packet = batch->buffer + batch_offset(batch, at);
    uint64_t size = batch_offset(batch, at + 1) - batch_offset(batch, at);
    int family = size >= 20 ? packet[0] >> 4 : 0;

    for (int end = 0; end < 2; end++) {
        if (!program->without[CONDITION_SOURCE + end])
            continue;
        if (family == 4 && !place)
            lists_prefetch4(program->lists, packet + 12 + 4 * end);
        else if (family == 6 && size >= 40 && place)
            lists_prefetch6_place(program->lists, packet + 8 + 16 * end);
        else if (family == 6 && size >= 40)
            lists_prefetch6(program->lists, packet + 8 + 16 * end);
    }
}

static inline int batch_is_plain(const struct program *program, const struct batch *batch,
                                 uint64_t at)
{
    const uint8_t *packet = batch->buffer + batch_offset(batch, at);
    const uint8_t *end = batch->buffer + batch_offset(batch, at + 1);

    return (program->pair_tables[0] && plain_pair_ipv4(packet, end))
           || (program->pair_tables[1] && plain_pair_ipv6(packet, end));
}

/* Decides any one packet; returns whether it was decided. Apart, so that the loop of the plain ones
 * keeps the registers. */
static __attribute__((noinline)) int batch_decide(const struct program *program, const uint8_t *at,
                                                  const uint8_t *end, uint32_t *mark,
                                                  uint32_t interface, struct memory *memory,
                                                  struct tally *tally)
{
    struct decision decision;
    enum reason reason = program_classify(program, at, end, *mark, interface, memory, &decision);

    tally_add(tally, reason, &decision);
    *mark = decision.mark;
    return reason == REASON_DECIDED;
}

/* Returns how many were decided. The offsets have been checked. */
static inline __attribute__((always_inline)) uint64_t batch_decide_all(
    const struct program *program, const struct batch *batch, struct tally *tally)
{
    uint64_t found[PROGRAM_DECISIONS] = {0}, plain4 = 0, plain6 = 0, general = 0;

    for (uint64_t at = 0; at < batch->count;) {
        uint64_t begin = at;

        at = batch_decide_plain(program, batch, 4, at, found);
        plain4 += at - begin;
        begin = at;
        at = batch_decide_plain(program, batch, 6, at, found);
        plain6 += at - begin;
        for (; at < batch->count && !batch_is_plain(program, batch, at); at++) {
            batch_prefetch(batch, at);
            if (program->lists) {
                batch_prefetch_lists(program, batch, at + BATCH_PLACE_AHEAD, 1);
                batch_prefetch_lists(program, batch, at + BATCH_LISTS_AHEAD, 0);
            }
            general += (uint64_t)batch_decide(program, batch->buffer + batch_offset(batch, at),
                                              batch->buffer + batch_offset(batch, at + 1),
                                              &batch->marks[at], batch->interface, batch->memory,
                                              tally);
        }
    }
    add_some(&tally->reasons[REASON_DECIDED], plain4 + plain6);
    if (plain4)
        add_some(&tally->rules[program->every_rules[0]], plain4);
    if (plain6)
        add_some(&tally->rules[program->every_rules[1]], plain6);
    for (int decision = 0; decision < PROGRAM_DECISIONS; decision++)
        if (found[decision])
            add_some(&tally->decisions[decision], found[decision]);
    return plain4 + plain6 + general;
}

static inline uint64_t batch_classify(const struct program *program, const struct batch *batch,
                                      struct tally *tally)
{
    struct batch narrow = *batch, wide = *batch;

    /* Constants, so that each gets a loop of its own. */
    narrow.wide = 0;
    wide.wide = 1;
    return batch->wide ? batch_decide_all(program, &wide, tally)
                       : batch_decide_all(program, &narrow, tally);
}

#endif
