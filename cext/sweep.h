/* Lists of address ranges, in any order and overlapping -> disjoint ranges, and the sets of lists
 * that hold them.
 *
 * Each range gives two events: its list begins at one address, and ends behind another. Sorted and
 * gone through once, they become boundaries: from this address on, this set. Both families are the
 * same to it: an event is an address in network order and two bytes more, and a boundary is
 * written where the event was.
 */
#ifndef EVENLINK_SWEEP_H
#define EVENLINK_SWEEP_H

#include <inttypes.h>
#include <stdlib.h>

#include "fault.h"
#include "flowhash.h"

enum {
    LISTS_MOST = 4096,
    LISTS_RANGES_MOST = 1 << 26, /* of a family */
    LISTS_SETS_MOST = 65535,
    LISTS_MEMBERS_MOST = 1 << 22, /* of all sets together */
    SWEEP_SMALL = 32,             /* events that are sorted by insertion */
    SWEEP_PLACES = 1 << 17,
};

/* In the machine's own byte order; both ends of a range are in it. */
struct list_input {
    const uint32_t *pairs4; /* first, last */
    uint64_t count4;        /* ranges */
    const uint64_t *quads6; /* the halves of first and last, the high one before the low one */
    uint64_t count6;
};

/* Sets of lists, each kept once. Number 0 is the empty one. */
struct sweep_sets {
    uint32_t words; /* 64-bit words of one set */
    uint32_t count, room;
    uint64_t members;
    uint64_t *bits;
    uint32_t places[SWEEP_PLACES]; /* by hash: number + 1 */
};

struct sweep {
    size_t length;  /* of an address: 4 or 16 bytes */
    size_t size;    /* of an item: 6 or 18 */
    uint64_t count; /* items: events, and afterwards boundaries */
    uint8_t *items;
};

static inline void store_be32(uint8_t *bytes, uint32_t value)
{
    for (int at = 3; at >= 0; at--, value >>= 8)
        bytes[at] = (uint8_t)value;
}

static inline void sweep_copy(const struct sweep *sweep, uint8_t *to, const uint8_t *from)
{
    if (sweep->size == 6)
        memcpy(to, from, 6);
    else
        memcpy(to, from, 18);
}

static inline int sweep_after(const struct sweep *sweep, const uint8_t *left, const uint8_t *right)
{
    uint64_t one, other;

    if (sweep->length == 4)
        return load_be32(left) > load_be32(right);
    one = load_be64(left);
    other = load_be64(right);
    return one > other || (one == other && load_be64(left + 8) > load_be64(right + 8));
}

static void sweep_insertion(const struct sweep *sweep, uint8_t *items, uint64_t count)
{
    uint8_t kept[18];

    for (uint8_t *at = items + sweep->size; at < items + count * sweep->size; at += sweep->size) {
        uint8_t *place = at;

        sweep_copy(sweep, kept, at);
        for (; place > items && sweep_after(sweep, place - sweep->size, kept); place -= sweep->size)
            sweep_copy(sweep, place, place - sweep->size);
        sweep_copy(sweep, place, kept);
    }
}

/* In place, by one byte of the address after the other (American flag sort: McIlroy, Bostic,
 * McIlroy, "Engineering radix sort", 1993). */
static void sweep_sort(const struct sweep *sweep, uint8_t *items, uint64_t count, size_t byte)
{
    uint64_t next[256], ends[256] = {0}, at = 0;
    uint8_t kept[18], moved[18];

    if (count <= SWEEP_SMALL) {
        sweep_insertion(sweep, items, count);
        return;
    }
    for (uint64_t item = 0; item < count; item++)
        ends[items[item * sweep->size + byte]]++;
    for (int value = 0; value < 256; value++) {
        next[value] = at;
        ends[value] = at += ends[value];
    }
    for (int value = 0; value < 256; value++)
        while (next[value] < ends[value]) {
            sweep_copy(sweep, kept, items + next[value] * sweep->size);
            while (kept[byte] != value) {
                uint8_t *place = items + next[kept[byte]]++ * sweep->size;

                sweep_copy(sweep, moved, place);
                sweep_copy(sweep, place, kept);
                sweep_copy(sweep, kept, moved);
            }
            sweep_copy(sweep, items + next[value]++ * sweep->size, kept);
        }
    if (++byte == sweep->length)
        return;
    at = 0;
    for (int value = 0; value < 256; at = ends[value++])
        if (ends[value] > at + 1)
            sweep_sort(sweep, items + at * sweep->size, ends[value] - at, byte);
}

/* `what`: the list's number, doubled, and 1 where it ends. */
static inline void sweep_event(struct sweep *sweep, uint64_t high, uint64_t low, uint16_t what)
{
    uint8_t *item = sweep->items + sweep->count++ * sweep->size;

    if (sweep->length == 4) {
        store_be32(item, (uint32_t)high);
    } else {
        store_be32(item, (uint32_t)(high >> 32));
        store_be32(item + 4, (uint32_t)high);
        store_be32(item + 8, (uint32_t)(low >> 32));
        store_be32(item + 12, (uint32_t)low);
    }
    memcpy(item + sweep->length, &what, 2);
}

static inline int sweep_list4(struct sweep *sweep, const struct list_input *input, uint32_t list,
                              char *fault)
{
    for (uint64_t at = 0; at < input->count4; at++) {
        uint32_t first = input->pairs4[2 * at], last = input->pairs4[2 * at + 1];

        if (first > last)
            return fault_say(fault, "list %u, IPv4 range %" PRIu64
                             ": its last address %08x is before its first %08x", list, at, last,
                             first);
        sweep_event(sweep, first, 0, (uint16_t)(list << 1));
        if (last != UINT32_MAX)
            sweep_event(sweep, last + 1, 0, (uint16_t)(list << 1 | 1));
    }
    return 0;
}

static inline int sweep_list6(struct sweep *sweep, const struct list_input *input, uint32_t list,
                              char *fault)
{
    for (uint64_t at = 0; at < input->count6; at++) {
        const uint64_t *quad = input->quads6 + 4 * at;
        uint64_t high = quad[2], low = quad[3];

        if (quad[0] > high || (quad[0] == high && quad[1] > low))
            return fault_say(fault, "list %u, IPv6 range %" PRIu64 ": its last address %016" PRIx64
                             "%016" PRIx64 " is before its first", list, at, high, low);
        sweep_event(sweep, quad[0], quad[1], (uint16_t)(list << 1));
        if (high != UINT64_MAX || low != UINT64_MAX)
            sweep_event(sweep, low == UINT64_MAX ? high + 1 : high, low + 1,
                        (uint16_t)(list << 1 | 1));
    }
    return 0;
}

static inline uint64_t *sweep_set(const struct sweep_sets *sets, uint32_t number)
{
    return sets->bits + (uint64_t)number * sets->words;
}

static inline uint64_t sweep_members(const struct sweep_sets *sets, const uint64_t *bits)
{
    uint64_t members = 0;

    for (uint32_t word = 0; word < sets->words; word++)
        members += (uint64_t)__builtin_popcountll(bits[word]);
    return members;
}

/* The number of the set with these bits; negative: refused with words, or without: no memory. */
static inline int32_t sweep_set_number(struct sweep_sets *sets, const uint64_t *bits, char *fault)
{
    size_t size = sets->words * sizeof *bits;
    uint64_t at = XXH3_64bits(bits, size) % SWEEP_PLACES;

    for (; sets->places[at]; at = (at + 1) % SWEEP_PLACES)
        if (!memcmp(sweep_set(sets, sets->places[at] - 1), bits, size))
            return (int32_t)sets->places[at] - 1;
    sets->members += sweep_members(sets, bits);
    if (sets->count > LISTS_SETS_MOST || sets->members > LISTS_MEMBERS_MOST)
        return fault_say(fault, "the lists overlap in too many ways: %u combinations of %" PRIu64
                         " lists in all; legal are %d of %d", sets->count, sets->members,
                         LISTS_SETS_MOST, LISTS_MEMBERS_MOST);
    if (sets->count == sets->room) {
        uint64_t *more = realloc(sets->bits, 2 * sets->room * size);

        if (!more)
            return -1;
        sets->bits = more;
        sets->room *= 2;
    }
    memcpy(sweep_set(sets, sets->count), bits, size);
    sets->places[at] = ++sets->count;
    return (int32_t)sets->count - 1;
}

static inline void sweep_sets_close(struct sweep_sets *sets)
{
    if (sets) {
        free(sets->bits);
        free(sets);
    }
}

/* NULL: no memory. */
static inline struct sweep_sets *sweep_sets_open(uint32_t lists)
{
    struct sweep_sets *sets = calloc(1, sizeof *sets);
    char fault[FAULT_LENGTH];

    if (!sets)
        return NULL;
    sets->words = lists / 64 + 1;
    sets->room = 16;
    sets->bits = calloc(sets->room + 1, sets->words * sizeof *sets->bits);
    if (!sets->bits || sweep_set_number(sets, sweep_set(sets, sets->room), fault) < 0) {
        sweep_sets_close(sets);
        return NULL;
    }
    return sets;
}

/* Sorted events -> boundaries, each with another set than the one before; the first is at 0. */
static inline int sweep_events(struct sweep *sweep, struct sweep_sets *sets, uint32_t *depths,
                               char *fault)
{
    uint64_t *bits = calloc(sets->words, sizeof *bits), done = 0;
    const uint8_t *at = sweep->items, *end = at + sweep->count * sweep->size;
    int32_t last = 0, set = 0;

    if (!bits)
        return -1;
    while (at < end) {
        const uint8_t *address = at;
        uint16_t what;

        for (; at < end && !memcmp(at, address, sweep->length); at += sweep->size) {
            memcpy(&what, at + sweep->length, 2);
            uint32_t list = what >> 1;
            depths[list] += what & 1 ? -1u : 1u;
            if (depths[list])
                bits[list / 64] |= (uint64_t)1 << list % 64;
            else
                bits[list / 64] &= ~((uint64_t)1 << list % 64);
        }
        set = sweep_set_number(sets, bits, fault);
        if (set < 0)
            break;
        if (set == last)
            continue;
        uint8_t *boundary = sweep->items + done++ * sweep->size;
        what = (uint16_t)set;
        memmove(boundary, address, sweep->length);
        memcpy(boundary + sweep->length, &what, 2);
        last = set;
    }
    sweep->count = done;
    free(bits);
    return set < 0 ? -1 : 0;
}

/* The boundaries of one family: from each address on, that set. Before the first it is 0. The
 * caller frees `sweep->items`, also where it was refused: with words, or without for no memory. */
static inline int sweep_lists(struct sweep *sweep, int family, const struct list_input *inputs,
                              uint32_t count, struct sweep_sets *sets, char *fault)
{
    uint64_t ranges = 0;
    int refused = 0;

    sweep->length = family == 4 ? 4 : 16;
    sweep->size = sweep->length + 2;
    for (uint32_t list = 0; list < count; list++) {
        uint64_t more = family == 4 ? inputs[list].count4 : inputs[list].count6;

        if (more > LISTS_RANGES_MOST - ranges)
            return fault_say(fault, "more than %d ranges of IPv%d in the lists",
                             LISTS_RANGES_MOST, family);
        ranges += more;
    }
    uint32_t *depths = calloc(count + 1, sizeof *depths);
    sweep->items = malloc(2 * ranges * sweep->size + 1);
    if (!depths || !sweep->items)
        refused = -1;
    for (uint32_t list = 0; list < count && !refused; list++)
        refused = family == 4 ? sweep_list4(sweep, &inputs[list], list, fault)
                              : sweep_list6(sweep, &inputs[list], list, fault);
    if (!refused) {
        sweep_sort(sweep, sweep->items, sweep->count, 0);
        refused = sweep_events(sweep, sets, depths, fault);
    }
    free(depths);
    return refused;
}

#endif
