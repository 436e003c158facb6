/* Block -> program: every offset, count and value is checked here, once, so that the hot path
 * need not. A block that is refused is refused with words. */
#ifndef EVENLINK_LOADER_H
#define EVENLINK_LOADER_H

#include <inttypes.h>
#include <stdarg.h>

#include "program.h"

enum { LOADER_FAULT_LENGTH = 160 };

struct loader {
    const uint8_t *block;
    const struct program_header *header;
    char *fault;
};

static inline __attribute__((format(printf, 2, 3))) int loader_refuse(struct loader *loader,
                                                                      const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(loader->fault, LOADER_FAULT_LENGTH, format, arguments);
    va_end(arguments);
    return -1;
}

static inline int loader_sections(struct loader *loader)
{
    static const struct {
        const char *name;
        uint64_t item;
    } kinds[SECTION_COUNT] = {
        [SECTION_RULES] = {"rules", sizeof(struct rule)},
        [SECTION_TABLES] = {"tables", PROGRAM_SLOTS},
        [SECTION_SETS] = {"sets", sizeof(uint64_t)}, /* times set_words */
        [SECTION_V4_STARTS] = {"v4 starts", sizeof(uint32_t)},
        [SECTION_V4_SETS] = {"v4 sets", sizeof(uint32_t)},
        [SECTION_V4_INDEX] = {"v4 index", sizeof(uint32_t)},
        [SECTION_V6_STARTS] = {"v6 starts", sizeof(struct address6)},
        [SECTION_V6_SETS] = {"v6 sets", sizeof(uint32_t)},
        [SECTION_V6_INDEX] = {"v6 index", sizeof(uint32_t)},
    };
    const struct program_header *header = loader->header;

    for (int at = 0; at < SECTION_COUNT; at++) {
        uint64_t offset = header->sections[at].offset, count = header->sections[at].count;
        uint64_t item = kinds[at].item * (at == SECTION_SETS ? header->set_words : 1);

        if (offset % PROGRAM_ALIGNMENT || offset < sizeof *header || offset > header->size)
            return loader_refuse(loader, "section %s: offset %" PRIu64 " is not in the block",
                                 kinds[at].name, offset);
        if (count > (header->size - offset) / item)
            return loader_refuse(loader, "section %s: %" PRIu64 " entries do not fit in the block",
                                 kinds[at].name, count);
        if (count > UINT32_MAX - 1)
            return loader_refuse(loader, "section %s: more than 2^32 entries", kinds[at].name);
    }
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
    if (header->reserved)
        return loader_refuse(loader, "a reserved field of the header is not zero");

    /* One run of at least four bits: Marks in dataplane/config/marks.py says what they mean. */
    uint32_t mask = header->mark_mask;
    if (!mask || header->mark_shift != (uint32_t)__builtin_ctz(mask)
        || (((mask >> header->mark_shift) + (uint64_t)1) & (mask >> header->mark_shift))
        || (mask >> header->mark_shift) < 15)
        return loader_refuse(loader, "mark mask %#x with shift %u is not one run of 4 bits or more",
                             mask, header->mark_shift);
    if (header->set_words < 1 || header->set_words > PROGRAM_MAX_SET_WORDS)
        return loader_refuse(loader, "sets of %u words, legal are 1 to %d", header->set_words,
                             PROGRAM_MAX_SET_WORDS);
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

static inline int loader_decisions(struct loader *loader, const struct program *program,
                                   uint64_t tables, uint64_t sets)
{
    uint8_t legal[256];

    loader_legal_decisions(loader->header, legal);
    for (uint32_t at = 0; at < program->rule_count; at++) {
        const struct rule *rule = &program->rules[at];

        for (int family = 0; family < 2; family++)
            if (rule->tables[family] != PROGRAM_NO_TABLE && rule->tables[family] >= tables)
                return loader_refuse(loader, "rule %u: slot table %u of %" PRIu64, at,
                                     rule->tables[family], tables);
        if (rule->source >= sets || rule->destination >= sets)
            return loader_refuse(loader, "rule %u: sets %u and %u of %" PRIu64, at, rule->source,
                                 rule->destination, sets);
        if (rule->fields >= FIELDS_COUNT || rule->symmetric > 1)
            return loader_refuse(loader, "rule %u: fields %u, symmetric %u", at, rule->fields,
                                 rule->symmetric);
        if (rule->decision && !legal[rule->decision])
            return loader_refuse(loader, "rule %u: %u is not a decision", at, rule->decision);
        for (size_t byte = 0; byte < sizeof rule->reserved; byte++)
            if (rule->reserved[byte])
                return loader_refuse(loader, "rule %u: a reserved byte is not zero", at);
    }
    for (uint64_t at = 0; at < tables * PROGRAM_SLOTS; at++)
        if (!legal[program->tables[at]])
            return loader_refuse(loader, "slot table %" PRIu64 ", slot %" PRIu64
                                 ": %u is not a decision", at / PROGRAM_SLOTS, at % PROGRAM_SLOTS,
                                 program->tables[at]);
    return 0;
}

/* Both families alike: `start` gives the position's first address as two 64-bit halves, of which
 * IPv4 uses the upper 32 bits of the first. */
static inline struct address6 loader_start(const struct program *program, int family, uint64_t at)
{
    if (family == 6)
        return program->v6.starts[at];
    return (struct address6){(uint64_t)program->v4.starts[at] << 32, 0};
}

static inline int loader_ranges(struct loader *loader, const struct program *program, int family,
                                uint64_t sets)
{
    int first = family == 4 ? SECTION_V4_STARTS : SECTION_V6_STARTS;
    uint64_t count = loader->header->sections[first].count;
    const uint32_t *set = family == 4 ? program->v4.sets : program->v6.sets;
    const uint32_t *index = family == 4 ? program->v4.index : program->v6.index;

    if (count < 1 || loader->header->sections[first + 1].count != count
        || loader->header->sections[first + 2].count != PROGRAM_INDEX)
        return loader_refuse(loader, "v%d ranges: %" PRIu64 " starts, %" PRIu64 " sets, %" PRIu64
                             " index entries do not belong together", family, count,
                             loader->header->sections[first + 1].count,
                             loader->header->sections[first + 2].count);

    struct address6 last = loader_start(program, family, 0);
    if (last.high || last.low)
        return loader_refuse(loader, "v%d ranges: the first one does not start at 0", family);
    for (uint64_t at = 0; at < count; at++) {
        struct address6 start = loader_start(program, family, at);

        if (at && address6_not_after(start, last))
            return loader_refuse(loader, "v%d range %" PRIu64 " does not come after the one before",
                                 family, at);
        if (set[at] >= sets)
            return loader_refuse(loader, "v%d range %" PRIu64 ": set %u of %" PRIu64, family, at,
                                 set[at], sets);
        last = start;
    }
    if (index[PROGRAM_INDEX - 1] != count - 1)
        return loader_refuse(loader, "v%d index: it does not end at the last range", family);
    for (uint64_t top = 0; top < PROGRAM_INDEX - 1; top++) {
        struct address6 wanted = {top << 48, 0};
        uint64_t at = index[top];

        if (at >= count || !address6_not_after(loader_start(program, family, at), wanted)
            || (at + 1 < count
                && address6_not_after(loader_start(program, family, at + 1), wanted)))
            return loader_refuse(loader, "v%d index: entry %" PRIu64 " is wrong", family, top);
    }
    return 0;
}

static inline const void *loader_section(const struct loader *loader, enum program_section section)
{
    return loader->block + loader->header->sections[section].offset;
}

static inline void loader_pair_tables(struct program *program)
{
    const struct rule *first = program->rules;

    if (!program->rule_count || first->source || first->destination || first->decision
        || first->fields != FIELDS_BOTH_ADDRESSES || first->symmetric)
        return;
    for (int family = 0; family < 2; family++)
        if (first->tables[family] != PROGRAM_NO_TABLE)
            program->pair_tables[family] = program_table(program, first->tables[family]);
}

static inline int loader_fill(struct loader *loader, struct program *program)
{
    const struct program_header *header = loader->header;
    uint64_t rules = header->sections[SECTION_RULES].count;
    uint64_t tables = header->sections[SECTION_TABLES].count;
    uint64_t sets = header->sections[SECTION_SETS].count;

    if (rules > PROGRAM_MAX_RULES)
        return loader_refuse(loader, "%" PRIu64 " rules, legal are 0 to %d", rules,
                             PROGRAM_MAX_RULES);
    if (sets < 1)
        return loader_refuse(loader, "section sets: the empty set is missing");
    program->key = header->key;
    program->mark_mask = header->mark_mask;
    program->mark_shift = header->mark_shift;
    program->rule_count = (uint32_t)rules;
    program->set_words = header->set_words;
    program->rules = loader_section(loader, SECTION_RULES);
    program->tables = loader_section(loader, SECTION_TABLES);
    program->sets = loader_section(loader, SECTION_SETS);
    program->v4.starts = loader_section(loader, SECTION_V4_STARTS);
    program->v4.sets = loader_section(loader, SECTION_V4_SETS);
    program->v4.index = loader_section(loader, SECTION_V4_INDEX);
    program->v4.count = header->sections[SECTION_V4_STARTS].count;
    program->v6.starts = loader_section(loader, SECTION_V6_STARTS);
    program->v6.sets = loader_section(loader, SECTION_V6_SETS);
    program->v6.index = loader_section(loader, SECTION_V6_INDEX);
    program->v6.count = header->sections[SECTION_V6_STARTS].count;
    for (uint32_t word = 0; word < program->set_words; word++)
        if (program->sets[word])
            return loader_refuse(loader, "set 0 is not empty");
    if (loader_decisions(loader, program, tables, sets) < 0)
        return -1;
    loader_pair_tables(program);
    if (sets == 1) /* no lists: no rule can ask for the ranges, which may be missing */
        return 0;
    if (loader_ranges(loader, program, 4, sets) < 0)
        return -1;
    return loader_ranges(loader, program, 6, sets);
}

static inline void program_close(struct program *program)
{
    if (program) {
        free(program->block);
        free(program);
    }
}

/* NULL with words in `fault` (LOADER_FAULT_LENGTH bytes), or without words: no memory. */
static inline struct program *program_open(const uint8_t *bytes, uint64_t size, uint64_t serial,
                                           char *fault)
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
    if (loader_header(&loader, size) < 0 || loader_fill(&loader, program) < 0) {
        program_close(program);
        return NULL;
    }
    return program;
}

#endif
