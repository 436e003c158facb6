/* What one worker remembers from packet to packet: its last decisions, and whose turn it is.
 *
 * A table has sets of eight entries, and a hash belongs to one of them. Nothing is looked for any
 * longer than that, whatever is sent; where all eight are taken, the oldest goes.
 */
#ifndef EVENLINK_MEMORY_H
#define EVENLINK_MEMORY_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    MEMORY_RECENT = 4096,  /* entries: for bursts */
    MEMORY_STICKY = 65536, /* entries: pairs or sources that stay with their link */
    MEMORY_WAYS = 8,
    MEMORY_DRAWS = 8192, /* each family of each rule may have its own */
    DRAW_LINKS = 128,
};

struct memory_entry {
    uint64_t hash;
    uint64_t kept; /* when, in ms, in the upper 56 bits; below them the decision, 0: free */
};

struct memory_table {
    struct memory_entry *entries;
    uint64_t sets; /* a power of two */
};

struct draw_link {
    uint64_t weight;
    uint8_t decision;
    uint8_t reserved[7];
};

struct draw {
    uint64_t identity;
    int64_t lags[DRAW_LINKS];
};

struct memory {
    struct memory_table *recent, *sticky;
    uint64_t now_ms; /* set by the owner before it asks, from a clock that never goes back */
    uint64_t random;
    struct draw *draws;
    struct memory_table tables[2];
};

static inline uint64_t memory_age(const struct memory_entry *entry, uint64_t now_ms)
{
    return (now_ms - (entry->kept >> 8)) & UINT64_MAX >> 8;
}

static inline struct memory_entry *memory_set(const struct memory_table *table, uint64_t hash)
{
    return table->entries + (hash & (table->sets - 1)) * MEMORY_WAYS;
}

/* The decision that was kept less than `ttl_ms` ago; 0: none. */
static inline uint8_t memory_recall(const struct memory_table *table, uint64_t hash,
                                    uint64_t now_ms, uint64_t ttl_ms)
{
    const struct memory_entry *set = memory_set(table, hash);

    for (int way = 0; way < MEMORY_WAYS; way++)
        if (set[way].hash == hash && (uint8_t)set[way].kept)
            return memory_age(&set[way], now_ms) < ttl_ms ? (uint8_t)set[way].kept : 0;
    return 0;
}

/* Instead of what was kept under the hash, else where nothing is, else instead of the oldest. */
static inline void memory_keep(struct memory_table *table, uint64_t hash, uint8_t decision,
                               uint64_t now_ms)
{
    struct memory_entry *set = memory_set(table, hash), *place = NULL;
    uint64_t oldest = 0;

    for (int way = 0; way < MEMORY_WAYS; way++) {
        uint64_t age = (uint8_t)set[way].kept ? memory_age(&set[way], now_ms) : UINT64_MAX;

        if (set[way].hash == hash && age != UINT64_MAX) {
            place = &set[way];
            break;
        }
        if (!place || age > oldest) {
            place = &set[way];
            oldest = age;
        }
    }
    *place = (struct memory_entry){hash, now_ms << 8 | decision};
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t memory_random(struct memory *memory)
{
    uint64_t mixed = memory->random += 0x9e3779b97f4a7c15;

    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
}

/* number * below / 2^64, rounded down: as even over 0 to below - 1 as `number` is over all. Not
 * every compiler has numbers of 128 bits. */
static inline uint64_t draw_scaled(uint64_t number, uint64_t below)
{
    uint64_t high = number >> 32, low = (uint32_t)number;
    uint64_t below_high = below >> 32, below_low = (uint32_t)below;
    uint64_t one = high * below_low, other = low * below_high;
    uint64_t carried = (low * below_low >> 32) + (uint32_t)one + (uint32_t)other;

    return high * below_high + (one >> 32) + (other >> 32) + (carried >> 32);
}

static inline uint64_t draw_total(const struct draw_link *links, uint32_t count)
{
    uint64_t total = 0;

    for (uint32_t at = 0; at < count; at++)
        total += links[at].weight;
    return total;
}

/* Each link as often as its weight says. 1 <= count, 1 <= all weights together < 2^62. */
static inline uint8_t draw_random(struct memory *memory, const struct draw_link *links,
                                  uint32_t count)
{
    uint64_t total = draw_total(links, count), at = 0;
    uint64_t drawn = draw_scaled(memory_random(memory), total);

    while (at + 1 < count && drawn >= links[at].weight)
        drawn -= links[at++].weight;
    return links[at].decision;
}

/* The next in a turn that is fair at every moment: of any n draws since the first, each link has
 * had its exact share, rounded down or up.
 *
 * Baruah, Cohen, Plaxton, Varvel, "Proportionate progress: a notion of fairness in resource
 * allocation" (Algorithmica 15, 1996), for one processor: a link's k-th turn must lie between the
 * draws (k - 1) / share and k / share; of those whose turn may come, the one goes first that has
 * to come soonest. `lags` are weight * draws - total * turns, each between -total and total.
 *
 * `number` < MEMORY_DRAWS is whose turn it is, and `identity` what its links and weights are: when
 * that changes, the turn begins anew. Weights as in draw_random, 1 <= count <= DRAW_LINKS.
 */
static inline uint8_t draw_next(struct memory *memory, uint32_t number, uint64_t identity,
                                const struct draw_link *links, uint32_t count)
{
    struct draw *draw = &memory->draws[number];
    int64_t total = (int64_t)draw_total(links, count), soonest = INT64_MAX;
    uint32_t next = 0;

    if (draw->identity != identity)
        *draw = (struct draw){.identity = identity};
    for (uint32_t at = 0; at < count; at++) {
        int64_t weight = (int64_t)links[at].weight, lag = draw->lags[at] += weight;

        if (lag <= 0)
            continue;
        int64_t due = (total - lag + weight - 1) / weight;
        if (due < soonest) {
            soonest = due;
            next = at;
        }
    }
    draw->lags[next] -= total;
    return links[next].decision;
}

static inline void memory_close(struct memory *memory)
{
    if (memory) {
        free(memory->tables[0].entries);
        free(memory->tables[1].entries);
        free(memory->draws);
        free(memory);
    }
}

/* Its pages are the kernel's until something is remembered. NULL: no memory. */
static inline struct memory *memory_open(uint64_t seed)
{
    static const uint64_t sizes[2] = {MEMORY_RECENT, MEMORY_STICKY};
    struct memory *memory = calloc(1, sizeof *memory);

    if (!memory)
        return NULL;
    for (int at = 0; at < 2; at++) {
        memory->tables[at].sets = sizes[at] / MEMORY_WAYS;
        memory->tables[at].entries = calloc(sizes[at], sizeof(struct memory_entry));
    }
    memory->draws = calloc(MEMORY_DRAWS, sizeof(struct draw));
    if (!memory->tables[0].entries || !memory->tables[1].entries || !memory->draws) {
        memory_close(memory);
        return NULL;
    }
    memory->recent = &memory->tables[0];
    memory->sticky = &memory->tables[1];
    memory->random = seed;
    return memory;
}

#endif
