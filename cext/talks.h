/* Who talks with whom: a bounded table of conversations, the oldest out first.
 *
 * A conversation is a pair of endpoints and a protocol, TCP or UDP; both directions are one. Each
 * carries a state that somebody else makes and frees.
 */
#ifndef EVENLINK_TALKS_H
#define EVENLINK_TALKS_H

#include <stdlib.h>

#include "copies.h"
#include "flowhash.h"

enum {
    TALK_END_BYTES = 18, /* an address, IPv4 in its first four bytes, then a port behind it */
    TALKS_NONE = UINT32_MAX,
    TALKS_IDLE_MS = 60000, /* UDP: the same ports are then another conversation */
};

/* What one packet says beside its payload. */
struct heading {
    uint8_t key[2 * TALK_END_BYTES]; /* the lower end first */
    uint8_t family, protocol;
    uint8_t from; /* which end sent it */
    uint8_t syn, ack;
};

struct talk {
    uint8_t key[2 * TALK_END_BYTES];
    uint8_t family, protocol;
    uint8_t client; /* which end */
    uint8_t sure;   /* the kernel or a SYN has told who the client is */
    uint8_t side;   /* of the router, where the client is */
    uint8_t packets;
    uint32_t bucket, next; /* of its chain */
    uint32_t older, newer; /* of all */
    uint64_t seen_ms;
    uint64_t fingerprint; /* of what was told of it last */
    void *state;          /* NULL: nothing more is to be learned */
};

struct talks {
    struct talk *all;
    uint32_t *buckets;
    uint32_t size, used, mask, oldest, newest;
    uint64_t seed, begun, pushed_out;
    void (*free_state)(void *state);
};

static inline void talk_end(struct talks *talks, struct talk *talk)
{
    if (talk->state)
        talks->free_state(talk->state);
    talk->state = NULL;
}

static inline void talks_close(struct talks *talks)
{
    for (uint32_t at = 0; at < talks->used; at++)
        talk_end(talks, &talks->all[at]);
    free(talks->all);
    free(talks->buckets);
    memset(talks, 0, sizeof *talks);
}

/* Returns whether there was memory. */
static inline int talks_open(struct talks *talks, uint32_t size, uint64_t seed,
                             void (*free_state)(void *state))
{
    uint32_t buckets = 1;

    while (buckets < size)
        buckets *= 2;
    memset(talks, 0, sizeof *talks);
    talks->all = calloc(size, sizeof *talks->all);
    talks->buckets = malloc(buckets * sizeof *talks->buckets);
    talks->size = size;
    talks->mask = buckets - 1;
    talks->oldest = talks->newest = TALKS_NONE;
    talks->seed = seed;
    talks->free_state = free_state;
    if (!talks->all || !talks->buckets) {
        talks_close(talks);
        return 0;
    }
    memset(talks->buckets, 0xff, buckets * sizeof *talks->buckets);
    return 1;
}

static inline void talks_leave_age(struct talks *talks, struct talk *talk)
{
    if (talk->older != TALKS_NONE)
        talks->all[talk->older].newer = talk->newer;
    else
        talks->oldest = talk->newer;
    if (talk->newer != TALKS_NONE)
        talks->all[talk->newer].older = talk->older;
    else
        talks->newest = talk->older;
}

static inline void talks_be_newest(struct talks *talks, struct talk *talk)
{
    uint32_t number = (uint32_t)(talk - talks->all);

    talk->newer = TALKS_NONE;
    talk->older = talks->newest;
    if (talks->newest != TALKS_NONE)
        talks->all[talks->newest].newer = number;
    else
        talks->oldest = number;
    talks->newest = number;
}

/* A place for a talk: one that was never used, or the oldest one's. */
static inline struct talk *talks_place(struct talks *talks)
{
    if (talks->used < talks->size)
        return &talks->all[talks->used++];

    uint32_t number = talks->oldest;
    struct talk *oldest = &talks->all[number];
    uint32_t *link = &talks->buckets[oldest->bucket];

    while (*link != number)
        link = &talks->all[*link].next;
    *link = oldest->next;
    talks_leave_age(talks, oldest);
    talks->pushed_out += oldest->state != NULL;
    talk_end(talks, oldest);
    return oldest;
}

/* TCP's flags, if they are where they are without extension headers. */
static inline void heading_read_flags(const uint8_t *at, const uint8_t *end,
                                      struct heading *heading)
{
    size_t place = heading->family == 4 ? (size_t)(at[0] & 0x0f) * 4 : 40;

    if (heading->protocol != 6 || (heading->family == 6 && at[6] != 6))
        return;
    if ((size_t)(end - at) < place + 14)
        return;
    heading->syn = at[place + 13] >> 1 & 1;
    heading->ack = at[place + 13] >> 4 & 1;
}

/* Returns whether the packet is a whole one of TCP or UDP. */
static inline int heading_read(const uint8_t *at, const uint8_t *end, struct heading *heading)
{
    struct flow flow;
    uint8_t ends[2][TALK_END_BYTES];

    if (packet_parse(at, end, &flow) != REASON_DECIDED || flow.fragment)
        return 0;
    if (flow.protocol != 6 && flow.protocol != 17)
        return 0;
    size_t length = flow_address_length(&flow);
    for (int which = 0; which < 2; which++) {
        memcpy(ends[which], flow.key + (size_t)which * length, length);
        memcpy(ends[which] + length, flow.key + 2 * length + 2 * (size_t)which, 2);
    }
    memset(heading, 0, sizeof *heading);
    heading->from = memcmp(ends[0], ends[1], length + 2) > 0;
    memcpy(heading->key, ends[heading->from], length + 2);
    memcpy(heading->key + TALK_END_BYTES, ends[!heading->from], length + 2);
    heading->family = flow.family;
    heading->protocol = flow.protocol;
    heading_read_flags(at, end, heading);
    return 1;
}

static inline int talk_is_of(const struct talk *talk, const struct heading *heading)
{
    return talk->family == heading->family && talk->protocol == heading->protocol
           && !memcmp(talk->key, heading->key, sizeof talk->key);
}

/* Is this packet the first of another conversation between the same two? */
static inline int talk_begins_again(const struct talk *talk, const struct heading *heading,
                                    uint64_t now_ms)
{
    if (heading->protocol == 6)
        return heading->syn && !heading->ack && talk->packets > 1;
    return now_ms - talk->seen_ms > TALKS_IDLE_MS;
}

/* The talk that the packet belongs to, now the newest. *fresh: it begins with this packet, and has
 * no state yet. */
static inline struct talk *talks_find(struct talks *talks, const struct heading *heading,
                                      uint64_t now_ms, int *fresh)
{
    uint64_t hash = XXH3_64bits_withSeed(heading->key, sizeof heading->key, talks->seed);
    uint32_t bucket = (uint32_t)hash & talks->mask, number = talks->buckets[bucket];
    struct talk *talk;

    while (number != TALKS_NONE && !talk_is_of(&talks->all[number], heading))
        number = talks->all[number].next;
    if (number != TALKS_NONE) {
        talk = &talks->all[number];
        talks_leave_age(talks, talk);
        *fresh = talk_begins_again(talk, heading, now_ms);
        if (*fresh)
            talk_end(talks, talk);
    } else {
        talk = talks_place(talks);
        memcpy(talk->key, heading->key, sizeof talk->key);
        talk->family = heading->family;
        talk->protocol = heading->protocol;
        talk->bucket = bucket;
        talk->next = talks->buckets[bucket];
        talks->buckets[bucket] = (uint32_t)(talk - talks->all);
        *fresh = 1;
    }
    if (*fresh) {
        talk->client = heading->from;
        talk->sure = talk->side = talk->packets = 0;
        talk->fingerprint = 0;
        talks->begun++;
    }
    talks_be_newest(talks, talk);
    talk->seen_ms = now_ms;
    return talk;
}

/* Who the client is, best knowledge first: the kernel's word, a SYN, who was seen first. */
static inline void talk_learn_client(struct talk *talk, const struct heading *heading,
                                     const struct copied *copied)
{
    uint8_t before = talk->client;

    if (!talk->sure && copied->direction != COPY_DIRECTION_UNKNOWN) {
        int original = copied->direction == COPY_DIRECTION_ORIGINAL;

        talk->client = original ? heading->from : !heading->from;
        talk->sure = 1;
    } else if (!talk->sure && heading->syn) {
        talk->client = heading->ack ? !heading->from : heading->from;
        talk->sure = 1;
    }
    if (copied->side == COPY_SIDE_UNKNOWN || (talk->side && talk->client == before))
        return;
    if (talk->client == heading->from)
        talk->side = copied->side;
    else
        talk->side = copied->side == COPY_SIDE_LAN ? COPY_SIDE_WAN : COPY_SIDE_LAN;
}

#endif
