/* Opens a table of what was learned and asks it, for test_learned_table.py.
 *
 * Given: the seed; how many sets there are, with the empty one; how many entries, and of each its
 * kind, family, protocol, port, set, and the halves of its address. Then how many questions, and of
 * each the same but the set. Says the seed that was taken, the size, and each answer.
 */
#include "numbers.h"

#include "learned.h"

static void read_address(uint8_t *address)
{
    for (int half = 0; half < 2; half++) {
        uint64_t number = given();

        for (int at = 7; at >= 0; at--, number >>= 8)
            address[8 * half + at] = (uint8_t)number;
    }
}

static void ask(const struct learned *learned)
{
    enum learned_kind kind = (enum learned_kind)given();
    uint8_t family = (uint8_t)given(), protocol = (uint8_t)given(), read[16];
    uint16_t port = (uint16_t)given();
    size_t length = family == 4 ? 4 : 16;
    uint8_t *address = malloc(length);

    read_address(read);
    memcpy(address, read, length);
    printf("%u\n", learned_find(learned, kind, family, address, protocol, port));
    free(address);
}

int main(void)
{
    char fault[FAULT_LENGTH];
    uint64_t seed = given(), sets = given(), count = given();
    struct learned_entry *entries = calloc(count, sizeof *entries);

    for (uint64_t at = 0; at < count; at++) {
        entries[at].kind = (uint8_t)given();
        entries[at].family = (uint8_t)given();
        entries[at].protocol = (uint8_t)given();
        entries[at].port = (uint16_t)given();
        entries[at].set = (uint32_t)given();
        read_address(entries[at].address);
    }
    struct learned *learned = learned_open(entries, count, (uint32_t)sets, seed, fault);
    free(entries);
    if (!learned)
        return refused(fault);
    printf("%llu %llu\n", (unsigned long long)learned->seed, (unsigned long long)learned->size);
    for (uint64_t left = given(); left; left--)
        ask(learned);
    learned_close(learned);
    return 0;
}
