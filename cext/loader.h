/* Block -> program: every offset, count and value is checked here, once, so that the hot path
 * need not. A block that is refused is refused with words. */
#ifndef EVENLINK_LOADER_H
#define EVENLINK_LOADER_H

#include "derive.h"

struct loader {
    const uint8_t *block;
    const struct program_header *header;
    char *fault;
};

#define loader_refuse(loader, ...) fault_say((loader)->fault, __VA_ARGS__)

static inline const void *loader_section(const struct loader *loader, enum program_section section)
{
    return loader->block + loader->header->sections[section].offset;
}

static inline uint64_t loader_count(const struct loader *loader, enum program_section section)
{
    return loader->header->sections[section].count;
}

static inline int loader_sections(struct loader *loader)
{
    const struct program_header *header = loader->header;
    const struct {
        const char *name;
        uint64_t item, most;
    } kinds[SECTION_COUNT] = {
        [SECTION_RULES] = {"rules", sizeof(struct rule), PROGRAM_MAX_RULES},
        [SECTION_TABLES] = {"tables", PROGRAM_SLOTS, 2 * PROGRAM_MAX_RULES},
        [SECTION_DRAWINGS] = {"drawings", sizeof(struct drawing), MEMORY_DRAWS},
        [SECTION_LINKS] = {"links", sizeof(struct draw_link), UINT32_MAX - 1},
        [SECTION_VECTORS] = {"vectors", sizeof(uint64_t) * header->words, UINT32_MAX - 1},
        [SECTION_INTERFACES] = {"interfaces", sizeof(struct step), UINT32_MAX - 1},
        [SECTION_PROTOCOLS] = {"protocols", sizeof(uint32_t), 256},
        [SECTION_DSCP] = {"dscp", sizeof(uint32_t), 64},
        [SECTION_SOURCE_PORTS] = {"source ports", sizeof(struct step), 65536},
        [SECTION_DESTINATION_PORTS] = {"destination ports", sizeof(struct step), 65536},
        [SECTION_SOURCES] = {"sources", sizeof(uint32_t), LISTS_MOST},
        [SECTION_DESTINATIONS] = {"destinations", sizeof(uint32_t), LISTS_MOST},
        [SECTION_APPLICATIONS] = {"applications", sizeof(uint32_t), PROGRAM_MAX_MEMBERS},
    };

    for (int at = 0; at < SECTION_COUNT; at++) {
        uint64_t offset = header->sections[at].offset, count = header->sections[at].count;

        if (offset % PROGRAM_ALIGNMENT || offset < sizeof *header || offset > header->size)
            return loader_refuse(loader, "section %s: offset %" PRIu64 " is not in the block",
                                 kinds[at].name, offset);
        if (count > kinds[at].most)
            return loader_refuse(loader, "section %s: %" PRIu64 " entries, legal are 0 to %" PRIu64,
                                 kinds[at].name, count, kinds[at].most);
        if (kinds[at].item && count > (header->size - offset) / kinds[at].item)
            return loader_refuse(loader, "section %s: %" PRIu64 " entries do not fit in the block",
                                 kinds[at].name, count);
    }
    if (header->words != (loader_count(loader, SECTION_RULES) + 63) / 64)
        return loader_refuse(loader, "vectors of %u words for %" PRIu64 " rules", header->words,
                             loader_count(loader, SECTION_RULES));
    return 0;
}

static inline int loader_header(struct loader *loader, uint64_t size)
{
    const struct program_header *header = loader->header;

    if (size < sizeof *header)
        return loader_refuse(loader, "%" PRIu64 " bytes are less than the header's %zu", size,
                             sizeof *header);
    if (header->magic != PROGRAM_MAGIC || header->version != PROGRAM_VERSION)
        return loader_refuse(loader, "magic %08x, version %u: not a program of version %d",
                             header->magic, header->version, PROGRAM_VERSION);
    if (header->size != size)
        return loader_refuse(loader, "the header says %" PRIu64 " bytes, there are %" PRIu64,
                             header->size, size);

    /* One run of at least four bits: Marks in dataplane/config/marks.py says what they mean. */
    uint32_t mask = header->mark_mask;
    if (!mask || header->mark_shift != (uint32_t)__builtin_ctz(mask)
        || (((mask >> header->mark_shift) + (uint64_t)1) & (mask >> header->mark_shift))
        || (mask >> header->mark_shift) < 15)
        return loader_refuse(loader, "mark mask %#x with shift %u is not one run of 4 bits or more",
                             mask, header->mark_shift);
    if (header->words > PROGRAM_MAX_WORDS)
        return loader_refuse(loader, "vectors of %u words, legal are 0 to %d", header->words,
                             PROGRAM_MAX_WORDS);
    if (header->list_count > LISTS_MOST || header->application_count > PROGRAM_MAX_MEMBERS)
        return loader_refuse(loader, "%u lists and %u applications, legal are %d and %d",
                             header->list_count, header->application_count, LISTS_MOST,
                             PROGRAM_MAX_MEMBERS);
    return loader_sections(loader);
}

/* What a verdict may say: a link, main or reject; never "nothing" and never "ask". */
static inline void loader_legal_decisions(const struct program_header *header, uint8_t *legal)
{
    uint64_t values = (uint64_t)(header->mark_mask >> header->mark_shift) + 1;

    if (values > PROGRAM_DECISIONS)
        values = PROGRAM_DECISIONS;
    memset(legal, 0, 256);
    memset(legal + 1, 1, values - 8);
    legal[values - 2] = legal[values - 1] = 1;
}

static inline int loader_action(struct loader *loader, uint64_t rule, const struct action *action,
                                const uint8_t *legal)
{
    uint64_t numbers = action->kind == ACTION_SLOTS ? loader_count(loader, SECTION_TABLES)
                       : action->kind >= ACTION_NTH ? loader_count(loader, SECTION_DRAWINGS)
                                                    : 1;

    if (action->kind >= ACTION_KINDS)
        return loader_refuse(loader, "rule %" PRIu64 ": action %u", rule, action->kind);
    if (action->number >= numbers)
        return loader_refuse(loader, "rule %" PRIu64 ": %s %u of %" PRIu64, rule,
                             action->kind == ACTION_SLOTS ? "slot table" : "drawing",
                             action->number, numbers);
    if (action->fields >= FIELDS_COUNT || action->symmetric > 1)
        return loader_refuse(loader, "rule %" PRIu64 ": fields %u, symmetric %u", rule,
                             action->fields, action->symmetric);
    if (action->kind == ACTION_FIXED ? !legal[action->decision] : action->decision)
        return loader_refuse(loader, "rule %" PRIu64 ": %u is not a decision", rule,
                             action->decision);
    for (int decision = 0; decision < PROGRAM_DECISIONS; decision++)
        if (action_allows(action, (uint8_t)decision) && !legal[decision])
            return loader_refuse(loader, "rule %" PRIu64 ": it allows %d, which is not a decision",
                                 rule, decision);
    if (action->reserved)
        return loader_refuse(loader, "rule %" PRIu64 ": a reserved field is not zero", rule);
    return 0;
}

static inline int loader_rules(struct loader *loader, const uint8_t *legal)
{
    const struct rule *rules = loader_section(loader, SECTION_RULES);

    for (uint64_t at = 0; at < loader_count(loader, SECTION_RULES); at++) {
        const struct rule *rule = &rules[at];

        for (int family = 0; family < 2; family++)
            if (loader_action(loader, at, &rule->actions[family], legal) < 0)
                return -1;
        if (rule->sticky >= STICKY_KINDS || rule->remember > 1 || rule->sticky_ms > INT32_MAX)
            return loader_refuse(loader, "rule %" PRIu64 ": sticky %u for %u ms, remember %u", at,
                                 rule->sticky, rule->sticky_ms, rule->remember);
        for (size_t byte = 0; byte < sizeof rule->reserved; byte++)
            if (rule->reserved[byte])
                return loader_refuse(loader, "rule %" PRIu64 ": a reserved field is not zero", at);
    }
    return 0;
}

static inline int loader_decisions(struct loader *loader, const uint8_t *legal)
{
    const uint8_t *tables = loader_section(loader, SECTION_TABLES);
    const struct drawing *drawings = loader_section(loader, SECTION_DRAWINGS);
    const struct draw_link *links = loader_section(loader, SECTION_LINKS);
    uint64_t link_count = loader_count(loader, SECTION_LINKS);

    for (uint64_t at = 0; at < loader_count(loader, SECTION_TABLES) * PROGRAM_SLOTS; at++)
        if (!legal[tables[at]])
            return loader_refuse(loader, "slot table %" PRIu64 ", slot %" PRIu64
                                 ": %u is not a decision", at / PROGRAM_SLOTS, at % PROGRAM_SLOTS,
                                 tables[at]);
    for (uint64_t at = 0; at < loader_count(loader, SECTION_DRAWINGS); at++)
        if (!drawings[at].count || drawings[at].count > DRAW_LINKS
            || drawings[at].first > link_count
            || drawings[at].count > link_count - drawings[at].first)
            return loader_refuse(loader, "drawing %" PRIu64 ": links %u and %u more of %" PRIu64,
                                 at, drawings[at].first, drawings[at].count, link_count);
        else if (drawings[at].turn >= MEMORY_DRAWS || drawings[at].reserved)
            return loader_refuse(loader, "drawing %" PRIu64 ": turn %u of %d", at,
                                 drawings[at].turn, MEMORY_DRAWS);
    for (uint64_t at = 0; at < link_count; at++)
        if (!legal[links[at].decision] || !links[at].weight
            || links[at].weight > PROGRAM_MAX_WEIGHT)
            return loader_refuse(loader, "link %" PRIu64 ": weight %" PRIu64 " for %u", at,
                                 links[at].weight, links[at].decision);
    return 0;
}

/* No vector speaks of a rule that does not exist. */
static inline int loader_vectors(struct loader *loader)
{
    const uint64_t *vectors = loader_section(loader, SECTION_VECTORS);
    uint64_t words = loader->header->words, rest = loader_count(loader, SECTION_RULES) % 64;

    for (uint64_t at = 0; rest && at < loader_count(loader, SECTION_VECTORS); at++)
        if (vectors[at * words + words - 1] >> rest)
            return loader_refuse(loader, "vector %" PRIu64 ": it holds rules that do not exist",
                                 at);
    return 0;
}

/* The numbers of vectors in a section: `stride` 1, or 2 for steps, whose first numbers ascend. */
static inline int loader_numbers(struct loader *loader, const char *name,
                                 enum program_section section, int stride)
{
    const uint32_t *numbers = loader_section(loader, section);

    for (uint64_t at = 0; at < loader_count(loader, section); at++) {
        uint32_t vector = numbers[at * stride + stride - 1];

        if (vector >= loader_count(loader, SECTION_VECTORS))
            return loader_refuse(loader, "%s, entry %" PRIu64 ": vector %u of %" PRIu64, name, at,
                                 vector, loader_count(loader, SECTION_VECTORS));
        if (stride == 2 && at && numbers[at * 2] <= numbers[at * 2 - 2])
            return loader_refuse(loader, "%s, entry %" PRIu64 " does not come after the one before",
                                 name, at);
    }
    return 0;
}

/* A condition that no rule has is empty; else it says something of every value. */
static inline int loader_conditions(struct loader *loader, struct program *program)
{
    const struct program_header *header = loader->header;
    const struct {
        const char *name;
        enum program_section section;
        int stride;
        uint64_t count; /* UINT64_MAX: any */
    } kinds[CONDITION_COUNT] = {
        [CONDITION_IN] = {"interfaces", SECTION_INTERFACES, 2, UINT64_MAX},
        [CONDITION_SOURCE] = {"sources", SECTION_SOURCES, 1, header->list_count},
        [CONDITION_DESTINATION] = {"destinations", SECTION_DESTINATIONS, 1, header->list_count},
        [CONDITION_PROTOCOL] = {"protocols", SECTION_PROTOCOLS, 1, 256},
        [CONDITION_SOURCE_PORT] = {"source ports", SECTION_SOURCE_PORTS, 2, UINT64_MAX},
        [CONDITION_DESTINATION_PORT] = {"destination ports", SECTION_DESTINATION_PORTS, 2,
                                        UINT64_MAX},
        [CONDITION_DSCP] = {"dscp", SECTION_DSCP, 1, 64},
        [CONDITION_APPLICATION] = {"applications", SECTION_APPLICATIONS, 1,
                                   header->application_count},
    };

    if (header->without[CONDITION_FAMILY] != PROGRAM_NONE)
        return loader_refuse(loader, "family: rules say themselves where they are live");
    for (int at = CONDITION_FAMILY + 1; at < CONDITION_COUNT; at++) {
        uint64_t count = loader_count(loader, kinds[at].section);
        uint32_t without = header->without[at];

        if (without == PROGRAM_NONE && count)
            return loader_refuse(loader, "%s: %" PRIu64 " entries, and no rule has the condition",
                                 kinds[at].name, count);
        if (without == PROGRAM_NONE)
            continue;
        if (without >= loader_count(loader, SECTION_VECTORS))
            return loader_refuse(loader, "%s: vector %u of %" PRIu64, kinds[at].name, without,
                                 loader_count(loader, SECTION_VECTORS));
        if (kinds[at].count != UINT64_MAX && count != kinds[at].count)
            return loader_refuse(loader, "%s: %" PRIu64 " entries instead of %" PRIu64,
                                 kinds[at].name, count, kinds[at].count);
        if (loader_numbers(loader, kinds[at].name, kinds[at].section, kinds[at].stride) < 0)
            return -1;
        if (at == CONDITION_SOURCE_PORT || at == CONDITION_DESTINATION_PORT) {
            const struct step *first = loader_section(loader, kinds[at].section);

            if (!count || first->first)
                return loader_refuse(loader, "%s: they do not begin at 0", kinds[at].name);
        }
        program->without[at] = program_vector(program, without);
    }
    return 0;
}

/* Do the lists and what was learned belong to this block? */
static inline int loader_members(struct loader *loader, const struct lists *lists,
                                 const struct learned_members *learned)
{
    const struct program_header *header = loader->header;
    uint32_t count = header->list_count + header->application_count;

    if ((lists ? lists->list_count : 0) != header->list_count)
        return loader_refuse(loader, "it speaks of %u lists, %u were given", header->list_count,
                             lists ? lists->list_count : 0);
    for (uint32_t at = 0; learned && at < learned->starts[learned->set_count]; at++)
        if (learned->members[at] >= count)
            return loader_refuse(loader, "it has %u members, something was learned of member %u",
                                 count, learned->members[at]);
    return 0;
}

static inline int loader_fill(struct loader *loader, struct program *program,
                              const struct lists *lists, const struct learned_members *learned)
{
    const struct program_header *header = loader->header;
    uint8_t legal[256];

    loader_legal_decisions(header, legal);
    if (loader_rules(loader, legal) < 0 || loader_decisions(loader, legal) < 0
        || loader_vectors(loader) < 0)
        return -1;
    program->key = header->key;
    program->mark_mask = header->mark_mask;
    program->mark_shift = header->mark_shift;
    program->words = header->words;
    program->rule_count = (uint32_t)loader_count(loader, SECTION_RULES);
    program->rules = loader_section(loader, SECTION_RULES);
    program->tables = loader_section(loader, SECTION_TABLES);
    program->drawings = loader_section(loader, SECTION_DRAWINGS);
    program->links = loader_section(loader, SECTION_LINKS);
    program->vectors = loader_section(loader, SECTION_VECTORS);
    program->interfaces = loader_section(loader, SECTION_INTERFACES);
    program->interface_count = (uint32_t)loader_count(loader, SECTION_INTERFACES);
    program->protocols = loader_section(loader, SECTION_PROTOCOLS);
    program->dscp = loader_section(loader, SECTION_DSCP);
    for (int end = 0; end < 2; end++) {
        enum program_section section = end ? SECTION_DESTINATION_PORTS : SECTION_SOURCE_PORTS;

        program->ports[end] = loader_section(loader, section);
        program->port_counts[end] = (uint32_t)loader_count(loader, section);
    }
    if (loader_conditions(loader, program) < 0 || loader_members(loader, lists, learned) < 0)
        return -1;
    program->lists = lists;
    program->learned = learned ? learned->table : NULL;

    const uint32_t *const members[3] = {loader_section(loader, SECTION_SOURCES),
                                        loader_section(loader, SECTION_DESTINATIONS),
                                        loader_section(loader, SECTION_APPLICATIONS)};
    return program_derive(program, members, header->list_count, header->application_count, learned,
                          loader->fault);
}

static inline void program_close(struct program *program)
{
    if (program) {
        free(program->derived);
        free(program->block);
        free(program);
    }
}

/* NULL with words in `fault` (FAULT_LENGTH bytes), or without words: no memory. `lists` and what is
 * in `learned` (either may be NULL) must outlive the program; only `table` of `learned` is kept. */
static inline struct program *program_open(const uint8_t *bytes, uint64_t size, uint64_t serial,
                                           const struct lists *lists,
                                           const struct learned_members *learned, char *fault)
{
    struct program *program = calloc(1, sizeof *program);
    uint64_t room = (size / PROGRAM_ALIGNMENT + 1) * PROGRAM_ALIGNMENT;
    struct loader loader = {.fault = fault};

    *fault = 0;
    if (program)
        program->block = aligned_alloc(PROGRAM_ALIGNMENT, room);
    if (!program || !program->block) {
        program_close(program);
        return NULL;
    }
    memcpy(program->block, bytes, size);
    program->serial = serial;
    program->size = size;
    loader.block = program->block;
    loader.header = (const struct program_header *)program->block;
    if (loader_header(&loader, size) < 0 || loader_fill(&loader, program, lists, learned) < 0) {
        program_close(program);
        return NULL;
    }
    return program;
}

#endif
