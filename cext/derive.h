/* What a checked program needs beside its block: which rules are live, and which rules each set of
 * lists and of learned members lets through. It is worked out when the program is opened, for the
 * sets belong to objects that outlive programs: a link's death leaves a million prefixes as they
 * are. */
#ifndef EVENLINK_DERIVE_H
#define EVENLINK_DERIVE_H

#include <inttypes.h>

#include "fault.h"
#include "program.h"

#define DERIVE_MAX_WORDS (UINT64_C(1) << 26) /* 512 MiB */

static inline void derive_unite(uint64_t *vector, const uint64_t *more, uint32_t words)
{
    for (uint32_t word = 0; word < words; word++)
        vector[word] |= more[word];
}

/* By set, which rules let it through: those `without` the condition, and those that ask for one of
 * its members. `without` NULL: only the latter. */
static inline void derive_range_sets(const struct program *program, enum condition condition,
                                     const uint32_t *members, uint32_t set_count, uint64_t *vectors)
{
    for (uint32_t set = 0; set < set_count; set++, vectors += program->words) {
        uint32_t count = 0;
        const uint16_t *held = set ? lists_set(program->lists, set, &count) : NULL;

        derive_unite(vectors, program->without[condition], program->words);
        for (uint32_t at = 0; at < count; at++)
            derive_unite(vectors, program_vector(program, members[held[at]]), program->words);
    }
}

/* The same for learned sets; of their members those count that lie in [first, first + count). */
static inline void derive_learned_sets(const struct program *program, const uint64_t *without,
                                       const struct learned_members *learned, uint32_t first,
                                       uint32_t count, const uint32_t *members, uint64_t *vectors)
{
    for (uint32_t set = 0; set < learned->set_count; set++, vectors += program->words) {
        if (without)
            derive_unite(vectors, without, program->words);
        for (uint32_t at = learned->starts[set]; at < learned->starts[set + 1]; at++) {
            uint32_t member = learned->members[at];

            if (member >= first && member - first < count)
                derive_unite(vectors, program_vector(program, members[member - first]),
                             program->words);
        }
    }
}

static inline void derive_rules(struct program *program, uint64_t *live[2], uint64_t *settled)
{
    static const enum condition searched[] = {CONDITION_SOURCE, CONDITION_DESTINATION,
                                              CONDITION_APPLICATION};

    for (uint32_t rule = 0; rule < program->rule_count; rule++) {
        for (int family = 0; family < 2; family++)
            if (program->rules[rule].actions[family].kind != ACTION_NONE)
                live[family][rule / 64] |= UINT64_C(1) << rule % 64;
        settled[rule / 64] |= UINT64_C(1) << rule % 64;
    }
    for (size_t at = 0; at < sizeof searched / sizeof *searched; at++)
        for (uint32_t word = 0; program->without[searched[at]] && word < program->words; word++)
            settled[word] &= program->without[searched[at]][word];
}

/* The short ways for families whose first live rule takes every packet. */
static inline void derive_short_ways(struct program *program)
{
    for (int family = 0; family < 2; family++) {
        uint32_t at = 0;

        program->every_rules[family] = PROGRAM_NONE;
        while (at < program->rule_count && program->rules[at].actions[family].kind == ACTION_NONE)
            at++;
        if (at == program->rule_count)
            continue;
        const struct rule *rule = &program->rules[at];
        const struct action *action = &rule->actions[family];
        int every = 1;
        for (int condition = 0; condition < CONDITION_COUNT; condition++)
            if (program->without[condition]
                && !(program->without[condition][at / 64] >> at % 64 & 1))
                every = 0;
        if (!every)
            continue;
        program->every_rules[family] = at;
        if (action->kind == ACTION_SLOTS && action->fields == FIELDS_BOTH_ADDRESSES
            && !action->symmetric && !rule->sticky && !rule->remember)
            program->pair_tables[family] = program_table(program, action->number);
    }
}

/* `sources`, `destinations`, `applications`: vector numbers by member. Returns 0; -1 with words in
 * `fault`, or without: no memory. */
static inline int program_derive(struct program *program, const uint32_t *const members[3],
                                 uint32_t list_count, uint32_t application_count,
                                 const struct learned_members *learned, char *fault)
{
    static const enum condition conditions[3] = {CONDITION_SOURCE, CONDITION_DESTINATION,
                                                 CONDITION_APPLICATION};
    uint64_t range_sets = program->lists ? program->lists->set_count : 1;
    uint64_t learned_sets = learned ? learned->set_count : 0, vectors = 3;

    for (int at = 0; at < 3; at++)
        if (program->without[conditions[at]])
            vectors += learned_sets + (at < 2 ? range_sets : 0);
    if (program->words && vectors > DERIVE_MAX_WORDS / program->words)
        return fault_say(fault, "%" PRIu64 " sets of lists are too many for %u rules", vectors,
                         program->rule_count);

    uint64_t *next = calloc(vectors * program->words + 1, sizeof *next);
    if (!next)
        return -1;
    program->derived = next;

    uint64_t *live[2] = {next, next + program->words}, *settled = next + 2 * program->words;
    next += 3 * program->words;
    program->live[0] = live[0];
    program->live[1] = live[1];
    program->settled = settled;
    derive_rules(program, live, settled);

    for (int at = 0; at < 3; at++) {
        const uint64_t *without = program->without[conditions[at]];

        if (!without)
            continue;
        if (at < 2) {
            derive_range_sets(program, conditions[at], members[at], (uint32_t)range_sets, next);
            program->range_sets[at] = next;
            next += range_sets * program->words;
        }
        if (!learned)
            continue;
        derive_learned_sets(program, at == 2 ? without : NULL, learned, at == 2 ? list_count : 0,
                            at == 2 ? application_count : list_count, members[at], next);
        program->learned_sets[at] = next;
        next += learned_sets * program->words;
    }
    derive_short_ways(program);
    return 0;
}

#endif
