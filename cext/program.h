/* The compiled policy: one flat immutable block, and what is derived from it when it is opened.
 *
 * The block is made by dataplane/decide/program.py in the machine's own byte order and is trusted
 * no more than a packet: `program_open` (loader.h) checks every offset, count and value, and copies
 * it to memory aligned to a cache line. Sections begin at multiples of 64.
 *
 *   rules          struct rule each, in order; the first that matches decides
 *   tables         65,536 bytes each: one byte a slot, the decision
 *   drawings       struct drawing each: a run of links, which nth and random draw from
 *   links          struct draw_link each
 *   vectors        `words` 64-bit words each: a set of rules, rule n is bit n % 64 of word n / 64
 *   interfaces     struct step each, by index, ascending: exact matches
 *   protocols      256 vector numbers
 *   dscp           64 vector numbers
 *   source ports   struct step each, by the first port that it holds for, ascending from 0
 *   destination ports
 *   sources        a vector number each list: which rules ask for it as the source
 *   destinations   the same for the destination
 *   applications   the same for each application
 *
 * Every condition has, beside its section, the vector `without` of the rules that do not have it;
 * a condition that no rule has is left out altogether.
 */
#ifndef EVENLINK_PROGRAM_H
#define EVENLINK_PROGRAM_H

#include <stdio.h>
#include <stdlib.h>

#include "flowhash.h"
#include "learned.h"
#include "memory.h"
#include "ranges.h"

enum {
    PROGRAM_MAGIC = 0x4c4e5645, /* "EVNL" on a little-endian machine */
    PROGRAM_VERSION = 2,
    PROGRAM_ALIGNMENT = 64,
    PROGRAM_SLOTS = 65536,
    PROGRAM_MAX_RULES = 4096,
    PROGRAM_MAX_WORDS = PROGRAM_MAX_RULES / 64,
    PROGRAM_MAX_MEMBERS = 65535,
    PROGRAM_DECISIONS = 128,
    PROGRAM_RECENT_MS = 2000,
};
#define PROGRAM_NONE UINT32_MAX
#define PROGRAM_MAX_WEIGHT (UINT64_C(1) << 40)

/* In the order of hotpath.CONDITIONS. */
enum condition {
    CONDITION_FAMILY,
    CONDITION_IN,
    CONDITION_SOURCE,
    CONDITION_DESTINATION,
    CONDITION_PROTOCOL,
    CONDITION_SOURCE_PORT,
    CONDITION_DESTINATION_PORT,
    CONDITION_DSCP,
    CONDITION_APPLICATION,
    CONDITION_COUNT
};

enum program_section {
    SECTION_RULES,
    SECTION_TABLES,
    SECTION_DRAWINGS,
    SECTION_LINKS,
    SECTION_VECTORS,
    SECTION_INTERFACES,
    SECTION_PROTOCOLS,
    SECTION_DSCP,
    SECTION_SOURCE_PORTS,
    SECTION_DESTINATION_PORTS,
    SECTION_SOURCES,
    SECTION_DESTINATIONS,
    SECTION_APPLICATIONS,
    SECTION_COUNT
};

struct program_header {
    uint32_t magic;
    uint32_t version;
    uint64_t size;
    uint64_t key;
    uint32_t mark_mask;
    uint32_t mark_shift;
    uint32_t words;
    uint32_t list_count;
    uint32_t application_count;
    uint32_t without[CONDITION_COUNT]; /* vector numbers; PROGRAM_NONE: no rule has the condition */
    struct {
        uint64_t offset;
        uint64_t count;
    } sections[SECTION_COUNT];
};

enum action_kind { ACTION_NONE, ACTION_FIXED, ACTION_SLOTS, ACTION_NTH, ACTION_RANDOM, ACTION_KINDS };

struct action {
    uint64_t allowed[2]; /* decisions that may be remembered: decision d is bit d % 64 of d / 64 */
    uint32_t number;     /* of the slot table, or of the drawing */
    uint8_t kind;        /* ACTION_NONE: the rule does not match this family */
    uint8_t decision;    /* of ACTION_FIXED */
    uint8_t fields, symmetric;
    uint64_t reserved;
};

static inline int action_allows(const struct action *action, uint8_t decision)
{
    return decision < PROGRAM_DECISIONS && action->allowed[decision / 64] >> decision % 64 & 1;
}

enum sticky { STICKY_NONE, STICKY_PAIR, STICKY_SOURCE, STICKY_KINDS };

struct rule {
    struct action actions[2]; /* IPv4, IPv6 */
    uint64_t group;           /* whose memory it shares: a hash of the group's name */
    uint32_t sticky_ms;
    uint8_t sticky, remember;
    uint8_t reserved[50];
};

/* What nth and random draw from. Rules of one group share it, and with it the turn. */
struct drawing {
    uint64_t identity; /* changes with whom it is for and with its links */
    uint32_t first, count;
    uint32_t turn; /* where the worker's memory keeps it */
    uint32_t reserved;
};

struct step {
    uint32_t first;
    uint32_t vector;
};

/* What was learned: exact matches, each with a set; set n has the members [starts[n], starts[n + 1])
 * of `members`. Set 0 is empty. */
struct learned_members {
    const struct learned *table;
    uint32_t set_count; /* set 0 included */
    const uint32_t *starts, *members;
};

struct program {
    uint64_t key;
    uint32_t mark_mask;
    uint32_t mark_shift;
    uint32_t rule_count;
    uint32_t words;
    const struct rule *rules;
    const uint8_t *tables;
    const struct drawing *drawings;
    const struct draw_link *links;
    const uint64_t *vectors;
    const uint64_t *without[CONDITION_COUNT]; /* NULL: no rule has the condition */
    const struct step *interfaces, *ports[2]; /* ports: source, destination */
    uint32_t interface_count, port_counts[2];
    const uint32_t *protocols, *dscp;

    const struct lists *lists;     /* NULL: there are none */
    const struct learned *learned; /* NULL: there is nothing */
    /* Derived when opened. `live` by family; `settled`: the rules that need no search; by range set
     * and by learned set: source, destination, application. Those of range sets and of learned
     * applications hold the rules without the condition, too. */
    uint64_t *derived;
    const uint64_t *live[2], *settled, *range_sets[2], *learned_sets[3];

    /* IPv4, IPv6: the first rule that is live, where it takes every packet; else PROGRAM_NONE. And
     * its slots, where it hashes nothing but the address pair; else NULL. */
    uint32_t every_rules[2];
    const uint8_t *pair_tables[2];
    uint64_t serial;
    uint64_t size;
    uint8_t *block;
};

struct decision {
    uint64_t hash; /* 0 where no slot was looked up */
    uint32_t mark; /* the packet's mark with our bits replaced, or as it was */
    uint32_t rule; /* PROGRAM_NONE: none */
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

static inline const uint64_t *program_vector(const struct program *program, uint32_t number)
{
    return program->vectors + (uint64_t)number * program->words;
}

static inline uint32_t program_mark(const struct program *program, uint32_t mark, uint8_t decision)
{
    return (mark & ~program->mark_mask) | (uint32_t)decision << program->mark_shift;
}

#endif
