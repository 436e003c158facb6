/* Decides the packets of a file ROUNDS times, for test_instructions.py to count instructions of.
 *
 *   instructions batch|worker ROUNDS BLOCK PACKETS
 *
 * BLOCK: a file with a program. PACKETS: 32-bit numbers in the machine's order: how many packets,
 * and as many offsets and one more; then the bytes. `batch` decides as Classifier.classify_batch
 * does; `worker` reads each packet out of a message of the kernel and writes the verdict, as the
 * queue's worker does between its two system calls. Where the program speaks of lists, each has 100
 * prefixes of 256 addresses.
 */
#include "nfqueue.h"

#include "batch.h"
#include "loader.h"

enum { NUMBER = 7477, ATTR_IFINDEX_INDEV = 5, ATTR_HWADDR = 9, ATTR_SKB_INFO = 14 };

static uint8_t *contents(const char *name, uint64_t *size)
{
    FILE *file = fopen(name, "rb");
    uint8_t *bytes = NULL;

    if (file && fseek(file, 0, SEEK_END) == 0) {
        *size = (uint64_t)ftell(file);
        rewind(file);
        bytes = malloc(*size + 1);
    }
    if (!bytes || fread(bytes, 1, *size, file) != *size) {
        perror(name);
        exit(2);
    }
    fclose(file);
    return bytes;
}

static struct lists *make_lists(const struct program_header *header, char *fault)
{
    enum { PREFIXES = 100 };
    uint32_t count = header->list_count, state = 1;
    uint32_t *pairs = calloc((size_t)count * PREFIXES + 1, 2 * sizeof *pairs);
    struct list_input *inputs = calloc(count + 1, sizeof *inputs);

    for (uint32_t at = 0; at < count * PREFIXES; at++) {
        state = state * 1664525 + 1013904223; /* Numerical Recipes' generator */
        pairs[2 * at] = state & ~255u;
        pairs[2 * at + 1] = state | 255;
    }
    for (uint32_t at = 0; at < count; at++)
        inputs[at] = (struct list_input){.pairs4 = pairs + at * PREFIXES * 2, .count4 = PREFIXES};
    return count ? lists_open(inputs, count, fault) : NULL;
}

static uint64_t run_batch(const struct program *program, const struct batch *batch,
                          uint64_t rounds)
{
    static struct tally tally;

    for (; rounds; rounds--)
        batch_classify(program, batch, &tally);
    return tally.reasons[REASON_DECIDED];
}

/* The attributes that a packet from a network card has with the flags that the worker sets. */
static uint8_t *make_message(uint8_t *begin, uint32_t id, const uint8_t *packet, uint16_t size)
{
    const uint8_t header[7] = {(uint8_t)(id >> 24), (uint8_t)(id >> 16), (uint8_t)(id >> 8),
                               (uint8_t)id, 8, 0, 0};
    const uint8_t mark[4] = {0x7d, 0, 0, 0}, number[4] = {0, 0, 0, 2}, hardware[12] = {0, 6};
    uint8_t *at = message_begin(begin, 0, QUEUE_MSG_PACKET, 0, 0, NUMBER);

    at = message_add(at, QUEUE_ATTR_PACKET_HDR, header, sizeof header);
    at = message_add(at, ATTR_IFINDEX_INDEV, number, sizeof number);
    at = message_add(at, QUEUE_ATTR_MARK, mark, sizeof mark);
    at = message_add(at, ATTR_HWADDR, hardware, sizeof hardware);
    at = message_add(at, ATTR_SKB_INFO, number, sizeof number);
    at = message_add(at, QUEUE_ATTR_PAYLOAD, packet, size);
    uint32_t length = (uint32_t)(at - begin);
    memcpy(begin, &length, sizeof length);
    return at;
}

static uint64_t run_worker(const struct program *program, const struct batch *batch,
                           uint64_t rounds)
{
    struct queue_worker *worker = calloc(1, sizeof *worker);
    uint8_t **messages = calloc(batch->count + 1, sizeof *messages);
    uint64_t size = batch_offset(batch, batch->count) + batch->count * QUEUE_ATTRIBUTE_BYTES;

    messages[0] = malloc(size);
    for (uint64_t at = 0; at < batch->count; at++)
        messages[at + 1] = make_message(
            messages[at], (uint32_t)at, batch->buffer + batch_offset(batch, at),
            (uint16_t)(batch_offset(batch, at + 1) - batch_offset(batch, at)));
    worker->number = NUMBER;
    worker->verdicts = worker->verdicts_at = malloc(VERDICT_BYTES * QUEUE_BATCH);
    for (; rounds; rounds--)
        for (uint64_t at = 0; at < batch->count; at++) {
            if (at % (QUEUE_BATCH / 2) == 0)
                worker->verdicts_at = worker->verdicts; /* instead of sending them */
            if (queue_worker_datagram(worker, program, messages[at], messages[at + 1]))
                exit(2);
        }
    return worker->counters.decided.reasons[REASON_DECIDED];
}

int main(int count, char **words)
{
    char fault[FAULT_LENGTH];
    uint64_t size;

    if (count != 5)
        return 2;
    uint8_t *block = contents(words[3], &size);
    const struct lists *lists = make_lists((const struct program_header *)block, fault);
    struct program *program = program_open(block, size, 1, lists, NULL, fault);
    if (!program) {
        fprintf(stderr, "%s: %s\n", words[3], fault);
        return 2;
    }
    uint32_t *numbers = (uint32_t *)contents(words[4], &size);
    struct batch batch = {
        .buffer = (const uint8_t *)(numbers + 2 + numbers[0]),
        .offsets = numbers + 1,
        .count = numbers[0],
        .marks = calloc(numbers[0], sizeof(uint32_t)),
    };
    uint64_t rounds = strtoull(words[2], NULL, 0);
    uint64_t decided = strcmp(words[1], "worker") ? run_batch(program, &batch, rounds)
                                                  : run_worker(program, &batch, rounds);
    printf("%llu\n", (unsigned long long)decided);
    return 0;
}
