/* Does as it is told with a worker's memory, for test_memory.py.
 *
 * Given: a seed, and then what to do, each a number and what belongs to it, to the end:
 *
 *   1  keep: table (0 recent, 1 sticky), hash, decision, now
 *   2  recall: table, hash, now, time to live                  says the decision
 *   3  next: number, identity, draws, links, their weights     says the links drawn, from 1
 *   4  random: draws, links, their weights                     the same
 *   5  scaled: number, below                                   says number * below / 2^64
 */
#include <inttypes.h>

#include "numbers.h"

#include "memory.h"

static struct draw_link *read_links(uint32_t count)
{
    struct draw_link *links = calloc(count, sizeof *links);

    for (uint32_t at = 0; at < count; at++)
        links[at] = (struct draw_link){.weight = given(), .decision = (uint8_t)(at + 1)};
    return links;
}

static void draw_some(struct memory *memory, int in_turn)
{
    uint32_t number = in_turn ? (uint32_t)given() : 0;
    uint64_t identity = in_turn ? given() : 0, draws = given();
    uint32_t count = (uint32_t)given();
    struct draw_link *links = read_links(count);

    for (; draws; draws--)
        printf("%u%c",
               in_turn ? draw_next(memory, number, identity, links, count)
                       : draw_random(memory, links, count),
               draws == 1 ? '\n' : ' ');
    free(links);
}

int main(void)
{
    struct memory *memory = memory_open(given());
    uint64_t what;

    if (!memory)
        return refused("");
    while (fread(&what, sizeof what, 1, stdin) == 1) {
        if (what == 5) {
            uint64_t number = given();

            printf("%" PRIu64 "\n", draw_scaled(number, given()));
            continue;
        }
        if (what > 2) {
            draw_some(memory, what == 3);
            continue;
        }
        struct memory_table *table = given() ? memory->sticky : memory->recent;
        uint64_t hash = given(), second = given(), third = given();

        if (what == 1)
            memory_keep(table, hash, (uint8_t)second, third);
        else
            printf("%u\n", memory_recall(table, hash, second, third));
    }
    memory_close(memory);
    return 0;
}
