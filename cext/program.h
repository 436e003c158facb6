/* The compiled policy: one flat immutable block, and flow -> decision.
 *
 * The block is made by dataplane/decide/program.py in the machine's own byte order and is trusted
 * no more than a packet: `program_open` checks every offset, count and value, and copies it to
 * memory aligned to a cache line. Sections begin at multiples of 64.
 *
 *   rules     struct rule each, tried in order; the first that matches decides
 *   tables    65,536 bytes each: one byte a slot, the decision
 *   sets      `set_words` 64-bit words each: which lists hold a range; set 0 is empty
 *   v4, v6    the whole address space as disjoint ranges, by their first address, ascending, the
 *             first one 0; beside them the set of each range; and an index by the top 16 bits:
 *             65,537 positions, entry t is the range that holds the address t << 16 (v4)
 *
 * A flow is looked up once a direction, whatever the number of rules and lists. The index matters:
 * bisection over two million boundaries took 142 ns without and 38 ns with it.
 */
#ifndef EVENLINK_PROGRAM_H
#define EVENLINK_PROGRAM_H

#include <stdio.h>
#include <stdlib.h>

#include "flowhash.h"

enum {
    PROGRAM_MAGIC = 0x4c4e5645, /* "EVNL" on a little-endian machine */
    PROGRAM_VERSION = 1,
    PROGRAM_ALIGNMENT = 64,
    PROGRAM_SLOTS = 65536,
    PROGRAM_INDEX = 65537,
    PROGRAM_MAX_RULES = 4096,
    PROGRAM_MAX_SET_WORDS = 64,
    PROGRAM_DECISIONS = 128,
};
#define PROGRAM_NO_TABLE UINT32_MAX

enum program_section {
    SECTION_RULES,
    SECTION_TABLES,
    SECTION_SETS,
    SECTION_V4_STARTS,
    SECTION_V4_SETS,
    SECTION_V4_INDEX,
    SECTION_V6_STARTS,
    SECTION_V6_SETS,
    SECTION_V6_INDEX,
    SECTION_COUNT
};

struct program_header {
    uint32_t magic;
    uint32_t version;
    uint64_t size;
    uint64_t key;
    uint32_t mark_mask;
    uint32_t mark_shift;
    uint32_t set_words;
    uint32_t reserved;
    struct {
        uint64_t offset;
        uint64_t count;
    } sections[SECTION_COUNT];
};

struct rule {
    uint32_t tables[2];   /* IPv4, IPv6: which slot table, or PROGRAM_NO_TABLE */
    uint32_t source;      /* set of lists, any of which must hold the source; 0: no condition */
    uint32_t destination; /* the same for the destination */
    uint8_t fields;
    uint8_t symmetric;
    uint8_t decision; /* fixed; 0: by slot */
    uint8_t reserved[13];
};

struct address6 {
    uint64_t high, low;
};

struct ranges4 {
    const uint32_t *starts, *sets, *index;
    uint64_t count;
};

struct ranges6 {
    const struct address6 *starts;
    const uint32_t *sets, *index;
    uint64_t count;
};

struct program {
    uint64_t key;
    uint32_t mark_mask;
    uint32_t mark_shift;
    uint32_t rule_count;
    uint32_t set_words;
    const struct rule *rules;
    const uint8_t *tables;
    const uint64_t *sets;
    struct ranges4 v4;
    struct ranges6 v6;
    /* IPv4, IPv6: the slots, where the first rule takes every packet and hashes its address pair;
     * else NULL. */
    const uint8_t *pair_tables[2];
    uint64_t serial;
    uint64_t size;
    uint8_t *block;
};

struct decision {
    uint64_t hash; /* 0 where a fixed decision was found */
    uint32_t mark; /* the packet's mark with our bits replaced, or as it was */
    uint32_t rule; /* UINT32_MAX: none */
    uint16_t slot;
    uint8_t decision; /* 0: none */
};

/* One thread adds, others may read. */
struct tally {
    uint64_t reasons[REASON_COUNT];
    uint64_t decisions[PROGRAM_DECISIONS];
    uint64_t rules[PROGRAM_MAX_RULES];
};

static inline void add_some(uint64_t *counter, uint64_t some)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + some, __ATOMIC_RELAXED);
}

static inline void add_one(uint64_t *counter)
{
    add_some(counter, 1);
}

static inline void tally_add(struct tally *tally, enum reason reason,
                             const struct decision *decision)
{
    add_one(&tally->reasons[reason]);
    if (__builtin_expect(reason == REASON_DECIDED, 1)) {
        add_one(&tally->decisions[decision->decision]);
        add_one(&tally->rules[decision->rule]);
    }
}

static inline const uint8_t *program_table(const struct program *program, uint32_t number)
{
    return program->tables + (uint64_t)number * PROGRAM_SLOTS;
}

static inline uint32_t program_mark(const struct program *program, uint32_t mark, uint8_t decision)
{
    return (mark & ~program->mark_mask) | (uint32_t)decision << program->mark_shift;
}

static inline const uint64_t *ranges4_find(const struct program *program, const uint8_t *address)
{
    const struct ranges4 *ranges = &program->v4;
    uint32_t wanted = load_be32(address);
    uint32_t low = ranges->index[wanted >> 16], high = ranges->index[(wanted >> 16) + 1];

    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (ranges->starts[middle] <= wanted)
            low = middle;
        else
            high = middle - 1;
    }
    return program->sets + (uint64_t)ranges->sets[low] * program->set_words;
}

static inline int address6_not_after(struct address6 first, struct address6 second)
{
    return first.high < second.high || (first.high == second.high && first.low <= second.low);
}

static inline const uint64_t *ranges6_find(const struct program *program, const uint8_t *address)
{
    const struct ranges6 *ranges = &program->v6;
    struct address6 wanted = {load_be64(address), load_be64(address + 8)};
    uint32_t low = ranges->index[wanted.high >> 48], high = ranges->index[(wanted.high >> 48) + 1];

    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (address6_not_after(ranges->starts[middle], wanted))
            low = middle;
        else
            high = middle - 1;
    }
    return program->sets + (uint64_t)ranges->sets[low] * program->set_words;
}

static inline int sets_meet(const struct program *program, const uint64_t *held, uint32_t wanted)
{
    const uint64_t *set = program->sets + (uint64_t)wanted * program->set_words;

    for (uint32_t word = 0; word < program->set_words; word++)
        if (held[word] & set[word])
            return 1;
    return 0;
}

static __attribute__((noinline)) const uint64_t *lists_holding(const struct program *program,
                                                               const struct flow *flow,
                                                               const uint8_t *address)
{
    return flow->family == 4 ? ranges4_find(program, address) : ranges6_find(program, address);
}

/* Which lists hold a flow's addresses: each found when a rule first asks, kept for the others. */
struct membership {
    const uint64_t *source, *destination; /* NULL: not yet looked up */
};

static inline int rule_matches(const struct program *program, const struct rule *rule,
                               const struct flow *flow, struct membership *held)
{
    if (rule->source) {
        if (!held->source)
            held->source = lists_holding(program, flow, flow->key);
        if (!sets_meet(program, held->source, rule->source))
            return 0;
    }
    if (rule->destination) {
        if (!held->destination)
            held->destination = lists_holding(program, flow,
                                              flow->key + flow_address_length(flow));
        if (!sets_meet(program, held->destination, rule->destination))
            return 0;
    }
    return 1;
}

/* Fills `decision` and returns REASON_DECIDED, or another reason with the mark left alone. */
static inline enum reason program_decide(const struct program *program, const struct flow *flow,
                                         uint32_t mark, struct decision *decision)
{
    struct membership held = {0};

    *decision = (struct decision){.mark = mark, .rule = UINT32_MAX};
    for (uint32_t at = 0; at < program->rule_count; at++) {
        const struct rule *rule = &program->rules[at];

        if (!rule_matches(program, rule, flow, &held))
            continue;

        decision->rule = at;
        if (rule->decision) {
            decision->decision = rule->decision;
        } else {
            uint32_t table = rule->tables[flow->family != 4];

            if (table == PROGRAM_NO_TABLE)
                return REASON_NO_LINKS;
            decision->hash = flow_hash(flow, (enum fields)rule->fields, rule->symmetric,
                                       program->key);
            decision->slot = (uint16_t)(decision->hash >> 48);
            decision->decision = program_table(program, table)[decision->slot];
        }
        decision->mark = program_mark(program, mark, decision->decision);
        return REASON_DECIDED;
    }
    return REASON_NO_RULE;
}

/* What nearly every packet is: plain, under a program with pair tables. Returns its decision; 0: it
 * takes program_classify to say. */
static inline uint8_t program_decide_plain(const struct program *program, const uint8_t *at,
                                           const uint8_t *end)
{
    const uint8_t *pair;

    if (program->pair_tables[0] && (pair = plain_pair_ipv4(at, end)))
        return program->pair_tables[0][hash_pair(pair, 4, program->key) >> 48];
    if (program->pair_tables[1] && (pair = plain_pair_ipv6(at, end)))
        return program->pair_tables[1][hash_pair(pair, 16, program->key) >> 48];
    return 0;
}

static inline enum reason program_classify(const struct program *program, const uint8_t *at,
                                           const uint8_t *end, uint32_t mark,
                                           struct decision *decision)
{
    struct flow flow;
    enum reason reason = packet_parse(at, end, &flow);

    if (__builtin_expect(reason != REASON_DECIDED, 0)) {
        *decision = (struct decision){.mark = mark, .rule = UINT32_MAX};
        return reason;
    }
    return program_decide(program, &flow, mark, decision);
}

#endif
