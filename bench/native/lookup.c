/* What it costs to find the lists that hold an address, and nothing else: cext/ranges.h, for
 * bench/tables.py, by ctypes. Each function says how many of `count` addresses, which lie one behind
 * the other, are in the list.
 */
#include "ranges.h"

enum { PLACE_AHEAD = 16, LISTS_AHEAD = 8 }; /* as cext/batch.h has them */

/* One list of one family; NULL if it is refused. */
struct lists *lookup_open4(const uint32_t *pairs, uint64_t count)
{
    char fault[FAULT_LENGTH];

    return lists_open(&(struct list_input){.pairs4 = pairs, .count4 = count}, 1, fault);
}

struct lists *lookup_open6(const uint64_t *quads, uint64_t count)
{
    char fault[FAULT_LENGTH];

    return lists_open(&(struct list_input){.quads6 = quads, .count6 = count}, 1, fault);
}

void lookup_close(struct lists *lists)
{
    lists_close(lists);
}

/* As a batch does: what is to come is fetched meanwhile. */
uint64_t lookup_ipv4(const struct lists *lists, const uint8_t *addresses, uint64_t count)
{
    uint64_t held = 0;

    for (uint64_t at = 0; at < count; at++) {
        if (at + LISTS_AHEAD < count)
            lists_prefetch4(lists, addresses + 4 * (at + LISTS_AHEAD));
        held += lists_find4(lists, addresses + 4 * at);
    }
    return held;
}

uint64_t lookup_ipv6(const struct lists *lists, const uint8_t *addresses, uint64_t count)
{
    uint64_t held = 0;

    for (uint64_t at = 0; at < count; at++) {
        if (at + PLACE_AHEAD < count)
            lists_prefetch6_place(lists, addresses + 16 * (at + PLACE_AHEAD));
        if (at + LISTS_AHEAD < count)
            lists_prefetch6(lists, addresses + 16 * (at + LISTS_AHEAD));
        held += lists_find6(lists, addresses + 16 * at);
    }
    return held;
}

/* As for one packet alone: each begins when the one before has ended. `none` is 0, which the
 * compiler does not know. */
uint64_t lookup_waiting_ipv4(const struct lists *lists, const uint8_t *addresses, uint64_t count,
                             uint64_t none)
{
    uint64_t held = 0;

    for (uint64_t at = 0; at < count; at++)
        held += lists_find4(lists, addresses + 4 * (at + (held & none)));
    return held;
}

uint64_t lookup_waiting_ipv6(const struct lists *lists, const uint8_t *addresses, uint64_t count,
                             uint64_t none)
{
    uint64_t held = 0;

    for (uint64_t at = 0; at < count; at++)
        held += lists_find6(lists, addresses + 16 * (at + (held & none)));
    return held;
}
