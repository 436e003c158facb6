/* Hostile bytes for the parts of cext that read bytes of others, under the sanitizers.
 *
 *   harness ROUNDS SEED BLOCK...      BLOCK: a file with a legal program
 *
 * Each input lies in an allocation of exactly its size, so that one byte too far is a fault; the
 * packets of a batch lie in one.
 */
#include "batch.h"
#include "loader.h"
#include "nfnetlink.h"

static uint64_t state;

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

static void fuzz_packet(const struct program *program)
{
    uint8_t made[128];
    uint64_t size = make_packet(made);
    uint8_t *packet = malloc(size ? size : 1);
    struct decision decision;

    memcpy(packet, made, size);
    enum reason reason = program_classify(program, packet, packet + size, 7, &decision);
    if (reason >= REASON_COUNT || (reason != REASON_DECIDED && decision.mark != 7))
        abort();
    uint8_t plain = program_decide_plain(program, packet, packet + size);
    if (plain && (reason != REASON_DECIDED || decision.decision != plain || decision.rule))
        abort();
    free(packet);
}

/* A batch does to each packet what happens to it alone, and counts the same. */
static void fuzz_batch(const struct program *program)
{
    enum { MOST = 12 };
    uint8_t made[MOST * 128];
    uint32_t offsets[MOST + 1] = {0}, marks[MOST], alone[MOST], count = (uint32_t)any(MOST + 1);
    static struct tally together, apart;

    for (uint32_t at = 0; at < count; at++) {
        offsets[at + 1] = offsets[at] + (uint32_t)make_packet(made + offsets[at]);
        marks[at] = alone[at] = (uint32_t)any(UINT32_MAX);
    }
    uint8_t *packets = malloc(offsets[count] ? offsets[count] : 1);
    struct batch batch = {packets, offsets, 0, count, marks};

    memcpy(packets, made, offsets[count]);
    if (!batch_is_legal(&batch, offsets[count]))
        abort();
    batch_classify(program, &batch, &together);
    for (uint32_t at = 0; at < count; at++) {
        struct decision decision;
        enum reason reason = program_classify(program, packets + offsets[at],
                                              packets + offsets[at + 1], alone[at], &decision);
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
            program_classify(program, queued.packet, queued.end, queued.mark, &decision);
        if (kind == MESSAGE_PACKET || kind == MESSAGE_BAD_PACKET) {
            uint8_t verdict[VERDICT_BYTES];
            message_verdict(verdict, 7477, queued.id, 1, queued.mark);
        }
    }
    free(bytes);
}

static void fuzz_block(const uint8_t *block, uint64_t size)
{
    char fault[LOADER_FAULT_LENGTH];
    uint64_t kept = any(8) ? size : any(size + 1);
    uint8_t *spoiled = malloc(kept ? kept : 1);

    memcpy(spoiled, block, kept);
    spoil(spoiled, kept, any(2) ? 256 : kept, 4);
    struct program *program = program_open(spoiled, kept, 1, fault);
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
    char fault[LOADER_FAULT_LENGTH];

    if (count < 4)
        return 2;
    for (int word = 3; word < count; word++) {
        FILE *file = fopen(words[word], "rb");
        uint64_t size = file ? fread(block, 1, sizeof block, file) : 0;
        struct program *program = program_open(block, size, 1, fault);

        if (!program) {
            fprintf(stderr, "%s: %s\n", words[word], fault);
            return 2;
        }
        fclose(file);
        state = strtoull(words[2], NULL, 0) * 2654435761u + 88172645463325252u;
        for (uint64_t left = strtoull(words[1], NULL, 0); left; left--) {
            fuzz_packet(program);
            fuzz_messages(program);
            if (left % 8 == 0)
                fuzz_batch(program);
            if (left % 64 == 0)
                fuzz_block(block, size);
        }
        program_close(program);
    }
    return 0;
}
