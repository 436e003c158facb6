/* The least that a decision by address pair can cost: hash it, look the slot up, write what is
 * found. Nothing is checked and nothing is counted; all packets must be of one family and hold
 * their addresses where a header without options does. For bench/hotpath.py, by ctypes.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

/* Packet i begins at buffer + offsets[i]. */
static inline void decide(const uint8_t *buffer, const uint32_t *offsets, uint64_t count,
                          uint64_t key, const uint8_t *table, uint32_t *marks, uint32_t pair,
                          uint32_t pair_bytes)
{
    for (uint64_t at = 0; at < count; at++) {
        XXH64_hash_t hash = XXH3_64bits_withSeed(buffer + offsets[at] + pair, pair_bytes, key);

        marks[at] = table[hash >> 48];
    }
}

void floor_ipv4(const uint8_t *buffer, const uint32_t *offsets, uint64_t count, uint64_t key,
                const uint8_t *table, uint32_t *marks)
{
    decide(buffer, offsets, count, key, table, marks, 12, 8);
}

void floor_ipv6(const uint8_t *buffer, const uint32_t *offsets, uint64_t count, uint64_t key,
                const uint8_t *table, uint32_t *marks)
{
    decide(buffer, offsets, count, key, table, marks, 8, 32);
}
