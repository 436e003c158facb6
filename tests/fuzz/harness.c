/* Hostile bytes for the parts of cext that read bytes of others, under the sanitizers.
 *
 *   harness ROUNDS SEED BLOCK...      BLOCK: a file with a legal program
 *
 * Each input lies in an allocation of exactly its size, so that one byte too far is a fault; the
 * packets of a batch lie in one. A block that speaks of lists gets lists and learned entries, of few
 * addresses, so that packets meet them.
 */
#include "batch.h"
#include "loader.h"
#include "nfnetlink.h"

static uint64_t state;
static struct memory *memory;
static struct lists *lists;
static struct learned_members learned;

static uint64_t any(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void spoil(uint8_t *bytes, uint64_t size, uint64_t within, uint64_t most)
{
    static const uint8_t edges[] = {0, 1, 3, 4, 5, 7, 8, 0x7f, 0x80, 0xfe, 0xff};

    if (within > size)
        within = size;
    for (uint64_t left = any(most + 1); left && within; left--)
        bytes[any(within)] = any(2) ? (uint8_t)any(256) : edges[any(sizeof edges)];
}

static uint64_t make_packet(uint8_t *packet)
{
    static const uint8_t kinds[] = {0, 6, 17, 43, 44, 51, 60, 132, 135, 59};
    uint64_t size = any(120);

    for (uint64_t at = 0; at < size; at++)
        packet[at] = any(4) ? 0 : (uint8_t)any(256);
    if (size > 10) {
        packet[0] = any(2) ? (uint8_t)(0x60 + any(16)) : (uint8_t)(0x40 + any(16));
        packet[2] = packet[4] = any(8) ? 0 : (uint8_t)any(256);
        packet[3] = packet[5] = (uint8_t)(any(3) ? size : any(256));
        packet[6] = packet[9] = kinds[any(sizeof kinds)];
    }
    for (uint64_t at = 40; at + 1 < size; at += 8) {
        packet[at] = kinds[any(sizeof kinds)];
        packet[at + 1] = (uint8_t)any(3);
    }
    spoil(packet, size, 60, 3);
    return size;
}

/* The rule that decided matches, and none before it does. */
static void fuzz_explanation(const struct program *program, const uint8_t *packet,
                             const uint8_t *end, uint32_t interface,
                             const struct decision *decision)
{
    static uint16_t wrong[PROGRAM_MAX_RULES];
    struct flow flow;

    if (packet_parse(packet, end, &flow) != REASON_DECIDED)
        return;
    flow.interface = interface;
    match_explain(program, &flow, wrong);
    for (uint32_t at = 0; at < program->rule_count && at < decision->rule; at++)
        if (!wrong[at])
            abort();
    if (decision->rule != PROGRAM_NONE && wrong[decision->rule])
        abort();
}

static void fuzz_packet(const struct program *program)
{
    uint8_t made[128];
    uint64_t size = make_packet(made);
    uint8_t *packet = malloc(size ? size : 1);
    struct decision decision;

    memcpy(packet, made, size);
    uint32_t interface = (uint32_t)any(4), rule;
    memory->now_ms += any(2000);
    enum reason reason = program_classify(program, packet, packet + size, 7, interface,
                                          any(8) ? memory : NULL, &decision);
    if (reason >= REASON_COUNT || (reason != REASON_DECIDED && decision.mark != 7))
        abort();
    if (reason == REASON_DECIDED ? decision.rule >= program->rule_count || !decision.decision
                                 : decision.decision)
        abort();
    uint8_t plain = program_decide_plain(program, packet, packet + size, &rule);
    if (plain
        && (reason != REASON_DECIDED || decision.decision != plain || decision.rule != rule))
        abort();
    fuzz_explanation(program, packet, packet + size, interface, &decision);
    free(packet);
}

/* A batch does to each packet what happens to it alone, and counts the same. */
static void fuzz_batch(const struct program *program)
{
    enum { MOST = BATCH_PLACE_AHEAD + 8 };
    uint8_t made[MOST * 128];
    uint32_t offsets[MOST + 1] = {0}, marks[MOST], alone[MOST], count = (uint32_t)any(MOST + 1);
    static struct tally together, apart;

    for (uint32_t at = 0; at < count; at++) {
        offsets[at + 1] = offsets[at] + (uint32_t)make_packet(made + offsets[at]);
        marks[at] = alone[at] = (uint32_t)any(UINT32_MAX);
    }
    uint8_t *packets = malloc(offsets[count] ? offsets[count] : 1);
    struct batch batch = {packets, offsets, 0, count, marks, (uint32_t)any(3), NULL};

    memcpy(packets, made, offsets[count]);
    if (!batch_is_legal(&batch, offsets[count]))
        abort();
    batch_classify(program, &batch, &together);
    for (uint32_t at = 0; at < count; at++) {
        struct decision decision;
        enum reason reason = program_classify(program, packets + offsets[at],
                                              packets + offsets[at + 1], alone[at],
                                              batch.interface, NULL, &decision);
        tally_add(&apart, reason, &decision);
        if (marks[at] != decision.mark)
            abort();
    }
    if (memcmp(&together, &apart, sizeof together))
        abort();
    free(packets);
}

static void fuzz_messages(const struct program *program)
{
    uint8_t made[1024], *at = made;

    for (uint64_t left = 1 + any(3); left; left--) {
        uint8_t packet[128], *begin = at, header[7] = {1, 2, 3, 4, 8, 0, 3};
        uint32_t mark = (uint32_t)any(UINT32_MAX), length;

        at = message_begin(at, 0, any(4) ? QUEUE_MSG_PACKET : (uint16_t)any(8), 0, 1, 7477);
        if (any(8))
            at = message_add(at, QUEUE_ATTR_PACKET_HDR, header, sizeof header);
        if (any(2))
            at = message_add(at, QUEUE_ATTR_MARK, &mark, 4);
        if (any(2))
            at = message_add(at, QUEUE_ATTR_INTERFACE_IN, &mark, (uint16_t)(any(8) ? 4 : 3));
        at = message_add(at, QUEUE_ATTR_PAYLOAD, packet, (uint16_t)make_packet(packet));
        length = (uint32_t)(at - begin);
        memcpy(begin, &length, 4);
        spoil(begin, length, 60, 3);
    }
    uint64_t size = any(3) ? (uint64_t)(at - made) : any((uint64_t)(at - made) + 1);
    uint8_t *bytes = malloc(size ? size : 1);

    memcpy(bytes, made, size);
    const uint8_t *next = bytes, *end = bytes + size;
    while (next < end) {
        const uint8_t *before = next;
        struct queued queued;
        struct decision decision;
        uint32_t sequence;
        int error = 0;
        enum message kind = message_parse(&next, end, 7477, &queued, &error, &sequence);

        if (next <= before || error < 0)
            abort();
        if (kind == MESSAGE_PACKET && queued.packet)
            program_classify(program, queued.packet, queued.end, queued.mark, queued.interface,
                             memory, &decision);
        if (kind == MESSAGE_PACKET || kind == MESSAGE_BAD_PACKET) {
            uint8_t verdict[VERDICT_BYTES];
            message_verdict(verdict, 7477, queued.id, 1, queued.mark);
        }
    }
    free(bytes);
}

static const struct learned_members *members(void)
{
    return learned.table ? &learned : NULL;
}

/* Ranges of the zeros that most addresses are here, and beside them. */
static void make_lists(uint32_t count, char *fault)
{
    enum { RANGES = 6 };
    uint32_t *pairs = calloc(count, RANGES * 8);
    uint64_t *quads = calloc(count, RANGES * 32);
    struct list_input *inputs = calloc(count, sizeof *inputs);

    for (uint32_t at = 0; at < count * RANGES; at++) {
        pairs[2 * at] = (uint32_t)any(3) << 8 * any(4);
        pairs[2 * at + 1] = pairs[2 * at] + (uint32_t)any(1 << 16);
        quads[4 * at] = quads[4 * at + 2] = any(3) << 8 * any(8);
        quads[4 * at + 1] = any(3) << 8 * any(8);
        quads[4 * at + 3] = quads[4 * at + 1] + any(1 << 16);
    }
    for (uint32_t at = 0; at < count; at++)
        inputs[at] = (struct list_input){pairs + at * RANGES * 2, RANGES, quads + at * RANGES * 4,
                                         RANGES};
    lists = lists_open(inputs, count, fault);
    free(pairs);
    free(quads);
    free(inputs);
}

/* Set n holds member n - 1 and any other one. */
static void make_learned(uint32_t count, char *fault)
{
    static struct learned_entry entries[6];
    uint32_t *starts = calloc(count + 2, sizeof *starts), *held = calloc(count, 8);

    for (uint32_t at = 0; at < count; at++) {
        held[2 * at] = at;
        held[2 * at + 1] = (uint32_t)any(count);
        starts[at + 2] = 2 * (at + 1);
    }
    for (uint8_t at = 0; at < 6; at++)
        entries[at] = (struct learned_entry){
            .kind = at % 3,
            .family = at < 3 ? 4 : 6,
            .protocol = at % 3 ? 17 : 0,
            .set = 1 + (uint32_t)any(count),
        };
    learned = (struct learned_members){learned_open(entries, 6, count + 1, any(UINT64_MAX), fault),
                                       count + 1, starts, held};
}

/* With lists and learned entries to match. */
static struct program *opened(const uint8_t *block, uint64_t size, char *fault)
{
    const struct program_header *header = (const struct program_header *)block;

    if (size >= sizeof *header && header->list_count) {
        make_lists(header->list_count, fault);
        make_learned(header->list_count + header->application_count, fault);
        if (!lists || !learned.table)
            return NULL;
    }
    return program_open(block, size, 1, lists, members(), fault);
}

static void close_all(struct program *program)
{
    program_close(program);
    lists_close(lists);
    learned_close((struct learned *)learned.table);
    free((void *)learned.starts);
    free((void *)learned.members);
    lists = NULL;
    learned = (struct learned_members){0};
}

static void fuzz_block(const uint8_t *block, uint64_t size)
{
    char fault[FAULT_LENGTH];
    uint64_t kept = any(8) ? size : any(size + 1);
    uint8_t *spoiled = malloc(kept ? kept : 1);

    memcpy(spoiled, block, kept);
    spoil(spoiled, kept, any(2) ? 256 : kept, 4);
    struct program *program = program_open(spoiled, kept, 1, lists, members(), fault);
    free(spoiled);
    if (!program)
        return;
    for (int round = 0; round < 8; round++)
        fuzz_packet(program);
    fuzz_batch(program);
    program_close(program);
}

int main(int count, char **words)
{
    static uint8_t block[4 << 20];
    char fault[FAULT_LENGTH];

    if (count < 4)
        return 2;
    memory = memory_open(1);
    for (int word = 3; word < count; word++) {
        FILE *file = fopen(words[word], "rb");
        uint64_t size = file ? fread(block, 1, sizeof block, file) : 0;
        state = strtoull(words[2], NULL, 0) * 2654435761u + 88172645463325252u;
        struct program *program = opened(block, size, fault);

        if (!program) {
            fprintf(stderr, "%s: %s\n", words[word], fault);
            return 2;
        }
        fclose(file);
        for (uint64_t left = strtoull(words[1], NULL, 0); left; left--) {
            fuzz_packet(program);
            fuzz_messages(program);
            if (left % 8 == 0)
                fuzz_batch(program);
            if (left % 64 == 0)
                fuzz_block(block, size);
        }
        close_all(program);
    }
    memory_close(memory);
    return 0;
}
