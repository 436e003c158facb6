/* Opens lists and looks addresses up in them, for test_ranges.py.
 *
 * Given: how many lists; of each how many IPv4 ranges, the first and last address of each, how many
 * IPv6 ranges, and the four halves of each. Then how many IPv4 addresses, and these; how many IPv6
 * addresses, and the halves of these. Says the size of the lists and how many sets there are, and
 * of each address the lists that hold it.
 */
#include "numbers.h"

#include "ranges.h"

static void read_list(struct list_input *input)
{
    input->count4 = given();
    uint32_t *pairs = malloc(input->count4 * 8);
    for (uint64_t at = 0; at < 2 * input->count4; at++)
        pairs[at] = (uint32_t)given();
    input->pairs4 = pairs;

    input->count6 = given();
    uint64_t *quads = malloc(input->count6 * 32);
    for (uint64_t at = 0; at < 4 * input->count6; at++)
        quads[at] = given();
    input->quads6 = quads;
}

static void look_up(const struct lists *lists, size_t length)
{
    uint8_t *address = malloc(length);

    for (size_t word = 0; word < length; word += length == 4 ? 4 : 8) {
        uint64_t number = given();

        if (length == 4) {
            store_be32(address, (uint32_t)number);
        } else {
            store_be32(address + word, (uint32_t)(number >> 32));
            store_be32(address + word + 4, (uint32_t)number);
        }
    }
    uint32_t count, set = length == 4 ? lists_find4(lists, address) : lists_find6(lists, address);
    const uint16_t *members = lists_set(lists, set, &count);
    for (uint32_t at = 0; at < count; at++)
        printf("%s%u", at ? " " : "", members[at]);
    putchar('\n');
    free(address);
}

int main(void)
{
    char fault[FAULT_LENGTH];
    uint32_t count = (uint32_t)given();
    struct list_input *inputs = calloc(count + 1, sizeof *inputs);

    for (uint32_t list = 0; list < count; list++)
        read_list(&inputs[list]);
    struct lists *lists = lists_open(inputs, count, fault);
    for (uint32_t list = 0; list < count; list++) {
        free((void *)inputs[list].pairs4);
        free((void *)inputs[list].quads6);
    }
    free(inputs);
    if (!lists)
        return refused(fault);
    printf("%llu %u\n", (unsigned long long)lists->size, lists->set_count);
    for (size_t length = 4; length <= 16; length += 12)
        for (uint64_t left = given(); left; left--)
            look_up(lists, length);
    lists_close(lists);
    return 0;
}
