/* Flow -> decision: the first rule that matches, and by its method the link.
 *
 * Where a rule remembers, a decision of the last two seconds for the same connection comes first:
 * until the first packet's verdict is in, conntrack does not know the connection, and its next
 * packets are asked for as well. Then, where it is sticky, what its pair or source got last. Either
 * counts only if the rule still allows it. What is decided is kept in both.
 */
#ifndef EVENLINK_DECIDE_H
#define EVENLINK_DECIDE_H

#include "match.h"

/* What the packets of one connection have in common, for the rules of one group. */
static inline uint64_t decide_connection(const struct flow *flow, const struct rule *rule)
{
    uint64_t seed = rule->group + flow->protocol;

    return flow->family == 4 ? XXH3_64bits_withSeed(flow->key, 12, seed)
                             : XXH3_64bits_withSeed(flow->key, 36, seed);
}

static inline uint64_t decide_peers(const struct flow *flow, const struct rule *rule)
{
    return flow_hash(flow, rule->sticky == STICKY_PAIR ? FIELDS_BOTH_ADDRESSES : FIELDS_SRC_ADDRESS,
                     0, rule->group);
}

/* By the rule's method alone. 0: it draws, and there is no memory to draw with. */
static inline uint8_t decide_by_method(const struct program *program, const struct action *action,
                                       const struct flow *flow, struct memory *memory,
                                       struct decision *decision)
{
    const struct drawing *drawing;

    switch (action->kind) {
    case ACTION_FIXED:
        return action->decision;
    case ACTION_SLOTS:
        decision->hash = flow_hash(flow, (enum fields)action->fields, action->symmetric,
                                   program->key);
        decision->slot = (uint16_t)(decision->hash >> 48);
        return program_table(program, action->number)[decision->slot];
    case ACTION_NTH:
        drawing = &program->drawings[action->number];
        return memory ? draw_next(memory, drawing->turn, drawing->identity,
                                  program->links + drawing->first, drawing->count)
                      : 0;
    case ACTION_RANDOM:
        drawing = &program->drawings[action->number];
        return memory ? draw_random(memory, program->links + drawing->first, drawing->count) : 0;
    default:
        return 0;
    }
}

/* Apart, so that rules that remember nothing cost nothing. */
static __attribute__((noinline)) uint8_t decide_by_memory(const struct program *program,
                                                          const struct rule *rule,
                                                          const struct action *action,
                                                          const struct flow *flow,
                                                          struct memory *memory,
                                                          struct decision *decision)
{
    uint64_t now_ms = memory->now_ms, connection = 0, peers = 0;
    uint8_t found = 0;

    if (rule->remember) {
        connection = decide_connection(flow, rule);
        found = memory_recall(memory->recent, connection, now_ms, PROGRAM_RECENT_MS);
        if (!action_allows(action, found))
            found = 0;
    }
    if (rule->sticky) {
        peers = decide_peers(flow, rule);
        if (!found)
            found = memory_recall(memory->sticky, peers, now_ms, rule->sticky_ms);
        if (!action_allows(action, found))
            found = 0;
    }
    if (!found)
        found = decide_by_method(program, action, flow, memory, decision);
    if (rule->remember)
        memory_keep(memory->recent, connection, found, now_ms);
    if (rule->sticky)
        memory_keep(memory->sticky, peers, found, now_ms);
    return found;
}

/* Fills `decision` and returns REASON_DECIDED, or another reason with the mark left alone. `memory`
 * NULL: nothing is remembered, and nothing drawn. */
static inline enum reason program_decide(const struct program *program, const struct flow *flow,
                                         uint32_t mark, struct memory *memory,
                                         struct decision *decision)
{
    const int family = flow->family != 4;
    uint32_t at = program->every_rules[family];

    if (at == PROGRAM_NONE)
        at = match_first(program, flow);
    *decision = (struct decision){.mark = mark, .rule = at};
    if (at == PROGRAM_NONE)
        return REASON_NO_RULE;

    const struct rule *rule = &program->rules[at];
    const struct action *action = &rule->actions[family];

    if (__builtin_expect(memory && (rule->remember || rule->sticky), 0))
        decision->decision = decide_by_memory(program, rule, action, flow, memory, decision);
    else
        decision->decision = decide_by_method(program, action, flow, memory, decision);
    if (!decision->decision)
        return REASON_DRAWN;
    decision->mark = program_mark(program, mark, decision->decision);
    return REASON_DECIDED;
}

/* What nearly every packet is: plain, under a program with pair tables. Returns its decision; 0: it
 * takes program_classify to say. */
static inline uint8_t program_decide_plain(const struct program *program, const uint8_t *at,
                                           const uint8_t *end, uint32_t *rule)
{
    const uint8_t *pair;

    if (program->pair_tables[0] && (pair = plain_pair_ipv4(at, end))) {
        *rule = program->every_rules[0];
        return program->pair_tables[0][hash_pair(pair, 4, program->key) >> 48];
    }
    if (program->pair_tables[1] && (pair = plain_pair_ipv6(at, end))) {
        *rule = program->every_rules[1];
        return program->pair_tables[1][hash_pair(pair, 16, program->key) >> 48];
    }
    return 0;
}

/* `interface`: the index of the one that the packet came in by, or 0. */
static inline enum reason program_classify(const struct program *program, const uint8_t *at,
                                           const uint8_t *end, uint32_t mark, uint32_t interface,
                                           struct memory *memory, struct decision *decision)
{
    struct flow flow;
    enum reason reason = packet_parse(at, end, &flow);

    if (__builtin_expect(reason != REASON_DECIDED, 0)) {
        *decision = (struct decision){.mark = mark, .rule = PROGRAM_NONE};
        return reason;
    }
    flow.interface = interface;
    return program_decide(program, &flow, mark, memory, decision);
}

#endif
