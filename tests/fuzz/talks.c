/* Hostile messages of log groups, and the table of who talks with whom, under the sanitizers.
 *
 *   talks ROUNDS SEED
 *
 * Each message lies in an allocation of exactly its size. After each packet the table is looked
 * through from both of its ends.
 */
#include <stdio.h>

#include "talks.h"

enum { SIZE = 13 };

static uint64_t state, alive;

static uint64_t any(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void free_state(void *freed)
{
    alive--;
    free(freed);
}

static void spoil(uint8_t *bytes, uint64_t size, uint64_t most)
{
    static const uint8_t edges[] = {0, 1, 3, 4, 5, 7, 8, 0x7f, 0x80, 0xfe, 0xff};

    for (uint64_t left = any(most + 1); left && size; left--)
        bytes[any(size)] = any(2) ? (uint8_t)any(256) : edges[any(sizeof edges)];
}

static uint8_t *add(uint8_t *at, uint16_t kind, const void *value, uint16_t length)
{
    uint16_t header[2] = {(uint16_t)(4 + length), kind};

    memcpy(at, header, 4);
    memcpy(at + 4, value, length);
    memset(at + 4 + length, 0, (size_t)NLA_ALIGN(length) - length);
    return at + 4 + NLA_ALIGN(length);
}

/* TCP or UDP between few hosts and ports, so that talks meet again. */
static uint16_t make_packet(uint8_t *packet)
{
    size_t address = any(2) ? 4 : 16, header = address == 4 ? 20 : 40;
    uint16_t size = (uint16_t)(header + any(40));

    memset(packet, 0, size);
    packet[0] = address == 4 ? 0x45 : 0x60;
    packet[address == 4 ? 9 : 6] = any(2) ? 6 : 17;
    packet[header - address - 1] = (uint8_t)any(4);
    packet[header - 1] = (uint8_t)any(4);
    if (size >= header + 4) {
        packet[header + 1] = (uint8_t)any(3);
        packet[header + 3] = (uint8_t)any(3);
    }
    if (size >= header + 14)
        packet[header + 13] = (uint8_t)any(32);
    return size;
}

static uint64_t make_datagram(uint8_t *begin)
{
    static const char *const prefixes[] = {"lan", "wan", "la", "lan original", "wan reply", ""};
    uint8_t *at = begin;

    for (uint64_t left = 1 + any(4); left; left--) {
        uint8_t packet[128], *message = at;
        const char *prefix = prefixes[any(6)];
        struct nlmsghdr header = {.nlmsg_type = any(8) ? COPY_MSG_PACKET : (uint16_t)any(5)};
        uint32_t number = (uint32_t)any(UINT32_MAX);

        at += COPY_MESSAGE_HEADER;
        memset(message, 0, COPY_MESSAGE_HEADER);
        at = add(at, COPY_ATTR_PREFIX, prefix, (uint16_t)(strlen(prefix) + any(2)));
        at = add(at, COPY_ATTR_NUMBER, &number, 4);
        at = add(at, COPY_ATTR_IN, &number, 4);
        at = add(at, COPY_ATTR_PAYLOAD, packet, make_packet(packet));
        header.nlmsg_len = (uint32_t)(at - message);
        memcpy(message, &header, sizeof header);
        if (!any(3))
            spoil(message, header.nlmsg_len, 4);
    }
    uint64_t size = (uint64_t)(at - begin);
    return any(4) ? size : any(size + 1);
}

static void check(const struct talks *talks)
{
    uint32_t seen = 0, chained = 0;
    uint64_t states = 0, before = 0;

    for (uint32_t at = talks->oldest; at != TALKS_NONE; at = talks->all[at].newer) {
        if (talks->all[at].seen_ms < before || ++seen > talks->used)
            abort();
        before = talks->all[at].seen_ms;
        states += talks->all[at].state != NULL;
    }
    for (uint32_t bucket = 0; bucket <= talks->mask; bucket++)
        for (uint32_t at = talks->buckets[bucket]; at != TALKS_NONE; at = talks->all[at].next)
            if (talks->all[at].bucket != bucket || ++chained > talks->used)
                abort();
    if (seen != talks->used || chained != talks->used || states != alive)
        abort();
}

static void take(struct talks *talks, const struct copied *copied, uint64_t now_ms)
{
    struct heading heading;
    int fresh;

    if (!heading_read(copied->packet, copied->end, &heading))
        return;
    struct talk *talk = talks_find(talks, &heading, now_ms, &fresh);
    if (!talk_is_of(talk, &heading) || talks->newest != (uint32_t)(talk - talks->all))
        abort();
    if (fresh) {
        if (talk->state)
            abort();
        talk->state = malloc(1);
        alive++;
    }
    talk_learn_client(talk, &heading, copied);
    if (talk->client > 1 || talk->side > COPY_SIDE_WAN)
        abort();
    talk->packets++;
    if (!any(5))
        talk_end(talks, talk);
    check(talks);
}

int main(int count, char **words)
{
    static uint8_t made[4096];
    struct talks talks;
    uint64_t now_ms = 0, copies = 0;

    if (count < 3)
        return 2;
    state = strtoull(words[2], NULL, 0) * 2654435761u + 88172645463325252u;
    if (!talks_open(&talks, SIZE, state, free_state))
        return 2;
    for (uint64_t left = strtoull(words[1], NULL, 0); left; left--) {
        uint64_t size = make_datagram(made);
        uint8_t *bytes = malloc(size ? size : 1);
        const uint8_t *at = bytes, *end = bytes + size;

        memcpy(bytes, made, size);
        now_ms += any(50) ? 1 : TALKS_IDLE_MS + 1;
        while (at < end) {
            const uint8_t *before = at;
            struct copied copied;

            if (copied_parse(&at, end, &copied)) {
                copies++;
                take(&talks, &copied, now_ms);
            }
            if (at <= before)
                abort();
        }
        free(bytes);
    }
    talks_close(&talks);
    /* Most messages are whole: the rounds must have reached the table. */
    return alive == 0 && copies && talks.all == NULL ? 0 : 1;
}
