/* Copied packets -> findings: what a connection carries, and who its server is.
 *
 * The packets' bytes go to nDPI, a large library that reads what strangers wrote. So this runs in
 * a process that may do nothing (confine.h), and whatever it says is checked by who listens.
 * Each packet is copied into a buffer with zeros behind it: some of nDPI's dissectors look a few
 * bytes too far.
 */
#ifndef EVENLINK_RECOGNISE_H
#define EVENLINK_RECOGNISE_H

#include <errno.h>
#include <ndpi_api.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include "talks.h"

enum {
    RECOGNISER_DATAGRAM = 131072,
    RECOGNISER_LONGEST = 9216, /* of a packet; what is longer is cut */
    RECOGNISER_ZEROS = 2048,
    RECOGNISER_FINDINGS = 64,
    RECOGNISER_DATAGRAMS = 64, /* a batch reads no more, so that signs of life are given */
    RECOGNISER_HOST = 80,
    RECOGNISER_SAID = 4096,
    RECOGNISER_SAID_AGAIN_MS = 5000,
};

struct endpoint {
    uint8_t address[16]; /* IPv4 in the first four bytes */
    uint16_t port;
};

struct finding {
    struct endpoint client, server;
    uint16_t applications[2]; /* nDPI's numbers, 0 is none: what carries, what is carried */
    uint8_t family, protocol;
    uint8_t side; /* of the router, where the client is */
    char host[RECOGNISER_HOST];
};

struct recogniser_counters {
    uint64_t copies, lost, overflows, unreadable, ignored, findings, repeated;
};

struct said {
    uint64_t fingerprint, at_ms;
};

struct recogniser {
    struct ndpi_detection_module_struct *ndpi;
    struct talks talks;
    uint32_t most_packets;
    uint32_t next_number;
    uint8_t numbered;
    struct recogniser_counters counters;
    const uint8_t *at, *end; /* of the datagram: what is still to be read */
    uint32_t found;
    struct finding findings[RECOGNISER_FINDINGS];
    struct said said[RECOGNISER_SAID];
    uint8_t packet[RECOGNISER_LONGEST + RECOGNISER_ZEROS];
    uint8_t datagram[RECOGNISER_DATAGRAM];
};

static inline void recogniser_free_state(void *state)
{
    ndpi_free_flow(state);
}

static inline void recogniser_close(struct recogniser *recogniser)
{
    if (!recogniser)
        return;
    talks_close(&recogniser->talks);
    if (recogniser->ndpi)
        ndpi_exit_detection_module(recogniser->ndpi);
    free(recogniser);
}

/* NULL: no memory, or a library that is not of these headers. */
static inline struct recogniser *recogniser_open(uint32_t talks, uint32_t most_packets,
                                                 uint64_t seed)
{
    struct recogniser *made = calloc(1, sizeof *made);
    NDPI_PROTOCOL_BITMASK all;

    if (!made)
        return NULL;
    made->most_packets = most_packets;
    if (ndpi_detection_get_sizeof_ndpi_flow_struct() == sizeof(struct ndpi_flow_struct))
        made->ndpi = ndpi_init_detection_module(ndpi_no_prefs);
    if (!made->ndpi || !talks_open(&made->talks, talks, seed, recogniser_free_state)) {
        recogniser_close(made);
        return NULL;
    }
    NDPI_BITMASK_SET_ALL(all);
    ndpi_set_protocol_detection_bitmask2(made->ndpi, &all);
    ndpi_finalize_initialization(made->ndpi);
    return made;
}

/* Is the name that a client asks for one of the server that it asks? With DNS and its kind it is
 * the name in question, and with a proxy it is somebody else's. */
static inline int application_names_server(uint16_t application)
{
    switch (application) {
    case NDPI_PROTOCOL_HTTP:
    case NDPI_PROTOCOL_TLS:
    case NDPI_PROTOCOL_DTLS:
    case NDPI_PROTOCOL_QUIC:
    case NDPI_PROTOCOL_MAIL_SMTPS:
    case NDPI_PROTOCOL_MAIL_POPS:
    case NDPI_PROTOCOL_MAIL_IMAPS:
        return 1;
    default:
        return 0;
    }
}

static inline int application_speaks_of_others(uint16_t application)
{
    switch (application) {
    case NDPI_PROTOCOL_DNS:
    case NDPI_PROTOCOL_MDNS:
    case NDPI_PROTOCOL_LLMNR:
    case NDPI_PROTOCOL_NETBIOS:
    case NDPI_PROTOCOL_HTTP_PROXY:
    case NDPI_PROTOCOL_HTTP_CONNECT:
        return 1;
    default:
        return 0;
    }
}

/* Does this request of HTTP name a whole URL, as only proxies are asked? */
static inline int asks_proxy(const struct ndpi_flow_struct *state)
{
    const char *url = state->http.url;

    return url && !strncmp(url + strcspn(url, ":/"), "://", 3);
}

/* In lower case; empty if it has a letter that no host's name has. nDPI keeps the last 79 letters
 * of a longer name: of those the first label, which may be a part of one, is left out. */
static inline void host_read(const char *name, char *host)
{
    size_t begin = 0, end = strnlen(name, RECOGNISER_HOST - 1);

    if (end == RECOGNISER_HOST - 1)
        while (begin < end && name[begin] != '.')
            begin++;
    while (begin < end && name[begin] == '.')
        begin++;
    for (size_t at = begin; at < end; at++)
        if (name[at] == ':') /* a port follows */
            end = at;
    while (end > begin && name[end - 1] == '.')
        end--;
    for (size_t at = begin; at < end; at++) {
        char letter = name[at];

        if (letter >= 'A' && letter <= 'Z')
            letter = (char)(letter - 'A' + 'a');
        if (!((letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9')
              || letter == '-' || letter == '.' || letter == '_')) {
            end = begin;
            break;
        }
        host[at - begin] = letter;
    }
    host[end - begin] = 0;
}

static inline void endpoint_read(const struct talk *talk, int which, struct endpoint *endpoint)
{
    const uint8_t *from = talk->key + TALK_END_BYTES * which;
    size_t length = talk->family == 4 ? 4 : 16;

    memcpy(endpoint->address, from, length);
    endpoint->port = load_be16(from + length);
}

/* By the packets' bytes, or by what those of others of the same address have said; never by the
 * port alone, and never by a list of addresses that is as old as the library. */
static inline int talk_is_known(const struct talk *talk, ndpi_protocol found)
{
    const struct ndpi_flow_struct *state = talk->state;

    if (!found.master_protocol && !found.app_protocol)
        return 0;
    return state->confidence == NDPI_CONFIDENCE_DPI
           || state->confidence == NDPI_CONFIDENCE_DPI_CACHE;
}

static inline void finding_make(const struct talk *talk, ndpi_protocol found,
                                struct finding *finding)
{
    const struct ndpi_flow_struct *state = talk->state;
    uint16_t carries = found.master_protocol, carried = found.app_protocol;

    if (!carries) {
        carries = carried;
        carried = 0;
    }
    if (carries == NDPI_PROTOCOL_HTTP && asks_proxy(state))
        carries = NDPI_PROTOCOL_HTTP_PROXY;
    memset(finding, 0, sizeof *finding);
    finding->family = talk->family;
    finding->protocol = talk->protocol;
    finding->side = talk->side;
    endpoint_read(talk, talk->client, &finding->client);
    endpoint_read(talk, !talk->client, &finding->server);
    finding->applications[0] = carries;
    if (carried != carries && !application_speaks_of_others(carries))
        finding->applications[1] = carried;
    if (application_names_server(carries) && !application_speaks_of_others(carried))
        host_read(state->host_server_name, finding->host);
}

static inline uint64_t finding_fingerprint(const struct finding *finding, uint64_t seed)
{
    struct finding same;

    memcpy(&same, finding, sizeof same);
    /* Only peers of BitTorrent are learned by the client's end as well. */
    if (same.applications[0] != NDPI_PROTOCOL_BITTORRENT
        && same.applications[1] != NDPI_PROTOCOL_BITTORRENT)
        memset(&same.client, 0, sizeof same.client);
    return XXH3_64bits_withSeed(&same, sizeof same, seed) | 1;
}

/* Adds what was found, unless it is known of this talk, or was said a moment ago. There must be
 * room for one. */
static inline void recogniser_say(struct recogniser *recogniser, struct talk *talk,
                                  ndpi_protocol found, uint64_t now_ms)
{
    struct finding *finding = &recogniser->findings[recogniser->found];

    finding_make(talk, found, finding);
    uint64_t fingerprint = finding_fingerprint(finding, recogniser->talks.seed);
    if (talk->fingerprint == fingerprint)
        return;
    talk->fingerprint = fingerprint;

    struct said *said = &recogniser->said[(fingerprint >> 1) % RECOGNISER_SAID];
    if (said->fingerprint == fingerprint && now_ms - said->at_ms < RECOGNISER_SAID_AGAIN_MS) {
        recogniser->counters.repeated++;
        return;
    }
    said->fingerprint = fingerprint;
    said->at_ms = now_ms;
    recogniser->found++;
    recogniser->counters.findings++;
}

/* Copies the packet to where zeros follow. Where less was copied than its own header says, the
 * header is made to say what is there. Returns the length. */
static inline size_t recogniser_take_packet(struct recogniser *recogniser,
                                            const struct copied *copied)
{
    uint8_t *packet = recogniser->packet;
    size_t length = (size_t)(copied->end - copied->packet);

    if (length > RECOGNISER_LONGEST)
        length = RECOGNISER_LONGEST;
    memcpy(packet, copied->packet, length);
    memset(packet + length, 0, RECOGNISER_ZEROS);

    size_t header = packet[0] >> 4 == 4 ? 0 : 40;
    uint8_t *said = packet + (header ? 4 : 2);
    if (!load_be16(said) || load_be16(said) > length - header) {
        said[0] = (uint8_t)((length - header) >> 8);
        said[1] = (uint8_t)(length - header);
    }
    return length;
}

/* One packet. There must be room for a finding. */
static inline void recogniser_feed(struct recogniser *recogniser, const struct copied *copied,
                                   uint64_t now_ms)
{
    struct heading heading;
    int fresh;

    recogniser->counters.copies++;
    if (!heading_read(copied->packet, copied->end, &heading)) {
        recogniser->counters.unreadable++;
        return;
    }
    struct talk *talk = talks_find(&recogniser->talks, &heading, now_ms, &fresh);
    if (fresh) {
        talk->state = ndpi_flow_malloc(SIZEOF_FLOW_STRUCT);
        if (talk->state)
            memset(talk->state, 0, SIZEOF_FLOW_STRUCT);
    }
    if (!talk->state) {
        recogniser->counters.ignored++;
        return;
    }
    talk_learn_client(talk, &heading, copied);
    talk->packets++;

    size_t length = recogniser_take_packet(recogniser, copied);
    ndpi_protocol found = ndpi_detection_process_packet(
        recogniser->ndpi, talk->state, recogniser->packet, (unsigned short)length, now_ms);
    int last = talk->packets >= recogniser->most_packets;
    if (last && !talk_is_known(talk, found)) {
        uint8_t guessed;

        found = ndpi_detection_giveup(recogniser->ndpi, talk->state, 0, &guessed);
    }
    int known = talk_is_known(talk, found);
    if (known)
        recogniser_say(recogniser, talk, found, now_ms);
    if (last || (known && !ndpi_extra_dissection_possible(recogniser->ndpi, talk->state)))
        talk_end(&recogniser->talks, talk);
}

/* The kernel numbers copies when it makes them: a gap is copies that found the buffer full. */
static inline void recogniser_count_lost(struct recogniser *recogniser, uint32_t number)
{
    uint32_t gap = number - recogniser->next_number;

    if (recogniser->numbered && gap < UINT32_MAX / 2)
        recogniser->counters.lost += gap;
    recogniser->numbered = 1;
    recogniser->next_number = number + 1;
}

/* Goes on reading the datagram, as long as there is room for findings. */
static inline void recogniser_read(struct recogniser *recogniser, uint64_t now_ms)
{
    while (recogniser->at < recogniser->end && recogniser->found < RECOGNISER_FINDINGS) {
        struct copied copied;

        if (!copied_parse(&recogniser->at, recogniser->end, &copied)) {
            recogniser->counters.unreadable++;
            continue;
        }
        if (copied.numbered)
            recogniser_count_lost(recogniser, copied.number);
        recogniser_feed(recogniser, &copied, now_ms);
    }
}

static inline uint64_t recogniser_clock_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Waits for copies, `timeout_ms` at most, and reads those that are there. 0, or an errno. */
static inline int recogniser_run(struct recogniser *recogniser, int fd, int timeout_ms)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};

    recogniser->found = 0;
    if (recogniser->at == recogniser->end && poll(&waiting, 1, timeout_ms) < 0)
        return errno;
    uint64_t now_ms = recogniser_clock_ms();
    for (int left = RECOGNISER_DATAGRAMS; left; left--) {
        recogniser_read(recogniser, now_ms);
        if (recogniser->found == RECOGNISER_FINDINGS)
            break;
        ssize_t got = recv(fd, recogniser->datagram, RECOGNISER_DATAGRAM, MSG_DONTWAIT);
        if (got < 0 && errno == ENOBUFS) {
            recogniser->counters.overflows++;
            continue;
        }
        if (got < 0)
            return errno == EAGAIN ? 0 : errno;
        recogniser->at = recogniser->datagram;
        recogniser->end = recogniser->datagram + got;
    }
    return 0;
}

#endif
