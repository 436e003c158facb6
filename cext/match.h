/* Flow -> the first rule that matches it.
 *
 * Every condition gives a bit vector: the rules that it lets through (Lakshman and Stiliadis,
 * "High-speed policy-based packet forwarding using efficient multi-dimensional range matching",
 * SIGCOMM 1998). Their intersection are the rules that match, its lowest bit is the one that
 * decides. 64 rules take one word, and words behind the first one with a bit are not looked at.
 *
 * Lists and what was learned take a search, which is put off until a rule that asks for it could
 * still be the first.
 */
#ifndef EVENLINK_MATCH_H
#define EVENLINK_MATCH_H

#include "program.h"

/* The last step that begins at or before `value`; `count` >= 1 and steps[0].first <= value. */
static inline const struct step *match_step(const struct step *steps, uint32_t count,
                                            uint32_t value)
{
    while (count > 1) {
        uint32_t half = count / 2;

        steps = steps[half].first <= value ? steps + half : steps;
        count -= half;
    }
    return steps;
}

static inline const uint64_t *match_interface(const struct program *program,
                                              const struct flow *flow)
{
    const struct step *step = program->interfaces;

    if (program->interface_count && step->first <= flow->interface) {
        step = match_step(step, program->interface_count, flow->interface);
        if (step->first == flow->interface)
            return program_vector(program, step->vector);
    }
    return program->without[CONDITION_IN];
}

/* `end`: 0 the source port, 1 the destination port. */
static inline const uint64_t *match_port(const struct program *program, const struct flow *flow,
                                         int end)
{
    if (flow->fragment || !protocol_has_ports(flow->protocol))
        return program->without[CONDITION_SOURCE_PORT + end];

    uint16_t port = load_be16(flow->key + 2 * flow_address_length(flow) + 2 * end);
    return program_vector(
        program, match_step(program->ports[end], program->port_counts[end], port)->vector);
}

static inline const uint64_t *match_united(const uint64_t *first, const uint64_t *second,
                                           uint64_t *room, uint32_t words)
{
    for (uint32_t word = 0; word < words; word++)
        room[word] = first[word] | second[word];
    return room;
}

/* `end`: 0 the source, 1 the destination. `room`: PROGRAM_MAX_WORDS words that may be used. */
static inline const uint64_t *match_address(const struct program *program, const struct flow *flow,
                                            int end, uint64_t *room)
{
    const uint8_t *address = flow->key + (end ? flow_address_length(flow) : 0);
    uint64_t words = program->words;
    uint32_t set = 0;

    if (program->lists)
        set = flow->family == 4 ? lists_find4(program->lists, address)
                                : lists_find6(program->lists, address);
    const uint64_t *listed = program->range_sets[end] + set * words;

    if (!program->learned || !program->learned->counts[LEARNED_ADDRESS])
        return listed;
    set = learned_find(program->learned, LEARNED_ADDRESS, flow->family, address, 0, 0);
    if (!set)
        return listed;
    return match_united(listed, program->learned_sets[end] + set * words, room, program->words);
}

static inline const uint64_t *match_application(const struct program *program,
                                                const struct flow *flow, uint64_t *room)
{
    const size_t length = flow_address_length(flow);
    const uint8_t *ports = flow->key + 2 * length;
    const uint64_t *sets = program->learned_sets[2], words = program->words;

    if (!program->learned)
        return program->without[CONDITION_APPLICATION];
    uint32_t server = learned_find(program->learned, LEARNED_SERVER, flow->family,
                                   flow->key + length, flow->protocol, load_be16(ports + 2));
    uint32_t client = learned_find(program->learned, LEARNED_CLIENT, flow->family, flow->key,
                                   flow->protocol, load_be16(ports));

    /* DNS says of a host where it is, and not which port. */
    uint32_t host = learned_find(program->learned, LEARNED_ADDRESS, flow->family,
                                 flow->key + length, 0, 0);
    const uint64_t *found = sets + server * words;

    if (client)
        found = match_united(found, sets + client * words, room, program->words);
    if (host)
        found = match_united(found, sets + host * words, room, program->words);
    return found;
}

/* The vectors that cost no search, in `vectors`; returns how many. Family comes first. */
static inline int match_plainly(const struct program *program, const struct flow *flow,
                                const uint64_t *vectors[CONDITION_COUNT])
{
    int count = 0;

    vectors[count++] = program->live[flow->family != 4];
    if (program->without[CONDITION_IN])
        vectors[count++] = match_interface(program, flow);
    if (program->without[CONDITION_PROTOCOL])
        vectors[count++] = program_vector(program, program->protocols[flow->protocol]);
    if (program->without[CONDITION_SOURCE_PORT])
        vectors[count++] = match_port(program, flow, 0);
    if (program->without[CONDITION_DESTINATION_PORT])
        vectors[count++] = match_port(program, flow, 1);
    if (program->without[CONDITION_DSCP])
        vectors[count++] = program_vector(program, program->dscp[flow->dscp & 63]);
    return count;
}

/* What was searched for a flow, and found. */
struct searched {
    const uint64_t *source, *destination, *application; /* NULL: not yet */
    uint64_t rooms[3][PROGRAM_MAX_WORDS];
};

/* Takes from `bits`, rules of that word, those whose lists or applications the flow is not in. */
static inline uint64_t match_by_search(const struct program *program, const struct flow *flow,
                                       struct searched *searched, uint32_t word, uint64_t bits)
{
    const uint64_t *const *without = program->without;

    if (without[CONDITION_DESTINATION] && bits & ~without[CONDITION_DESTINATION][word]) {
        if (!searched->destination)
            searched->destination = match_address(program, flow, 1, searched->rooms[1]);
        bits &= searched->destination[word];
    }
    if (without[CONDITION_SOURCE] && bits & ~without[CONDITION_SOURCE][word]) {
        if (!searched->source)
            searched->source = match_address(program, flow, 0, searched->rooms[0]);
        bits &= searched->source[word];
    }
    if (without[CONDITION_APPLICATION] && bits & ~without[CONDITION_APPLICATION][word]) {
        if (!searched->application)
            searched->application = match_application(program, flow, searched->rooms[2]);
        bits &= searched->application[word];
    }
    return bits;
}

/* The number of the rule; PROGRAM_NONE: none matches. */
static inline uint32_t match_first(const struct program *program, const struct flow *flow)
{
    const uint64_t *vectors[CONDITION_COUNT];
    const int count = match_plainly(program, flow, vectors);
    struct searched searched;

    searched.source = searched.destination = searched.application = NULL;
    for (uint32_t word = 0; word < program->words; word++) {
        uint64_t bits = vectors[0][word];

        for (int at = 1; at < count; at++)
            bits &= vectors[at][word];
        if (!bits)
            continue;

        /* Behind a rule that needs no search and matches, nothing matters. */
        uint64_t settled = bits & program->settled[word];
        bits &= settled ^ (settled - 1);
        if (bits & ~program->settled[word])
            bits = match_by_search(program, flow, &searched, word, bits);
        if (bits)
            return word * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return PROGRAM_NONE;
}

/* For each rule, which conditions do not hold: bit n of wrong[rule] is condition n. For people who
 * ask why; nothing here is fast. */
static inline void match_explain(const struct program *program, const struct flow *flow,
                                 uint16_t *wrong)
{
    uint64_t rooms[3][PROGRAM_MAX_WORDS];
    const uint64_t *const *without = program->without;
    const uint64_t *held[CONDITION_COUNT] = {
        [CONDITION_FAMILY] = program->live[flow->family != 4],
        [CONDITION_IN] = without[CONDITION_IN] ? match_interface(program, flow) : NULL,
        [CONDITION_SOURCE] =
            without[CONDITION_SOURCE] ? match_address(program, flow, 0, rooms[0]) : NULL,
        [CONDITION_DESTINATION] =
            without[CONDITION_DESTINATION] ? match_address(program, flow, 1, rooms[1]) : NULL,
        [CONDITION_PROTOCOL] =
            without[CONDITION_PROTOCOL]
                ? program_vector(program, program->protocols[flow->protocol])
                : NULL,
        [CONDITION_SOURCE_PORT] =
            without[CONDITION_SOURCE_PORT] ? match_port(program, flow, 0) : NULL,
        [CONDITION_DESTINATION_PORT] =
            without[CONDITION_DESTINATION_PORT] ? match_port(program, flow, 1) : NULL,
        [CONDITION_DSCP] =
            without[CONDITION_DSCP] ? program_vector(program, program->dscp[flow->dscp & 63])
                                    : NULL,
        [CONDITION_APPLICATION] =
            without[CONDITION_APPLICATION] ? match_application(program, flow, rooms[2]) : NULL,
    };

    for (uint32_t rule = 0; rule < program->rule_count; rule++) {
        wrong[rule] = 0;
        for (int condition = 0; condition < CONDITION_COUNT; condition++)
            if (held[condition] && !(held[condition][rule / 64] >> rule % 64 & 1))
                wrong[rule] |= (uint16_t)(1 << condition);
    }
}

#endif
