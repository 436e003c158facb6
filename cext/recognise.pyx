# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""What connections carry, told by nDPI from copies of their first packets."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen


cdef extern from "confine.h" nogil:
    int confine_everything "confine"(const char **what)


cdef extern from "recognise.h" nogil:
    enum:
        COPY_SIDE_UNKNOWN
        COPY_SIDE_LAN
        COPY_SIDE_WAN
        RECOGNISER_DATAGRAM
        RECOGNISER_FINDINGS
        RECOGNISER_LONGEST

    struct ndpi_detection_module_struct:
        pass

    struct copied:
        const uint8_t *packet
        const uint8_t *end

    struct endpoint:
        uint8_t *address
        uint16_t port

    struct finding:
        endpoint client, server
        uint16_t *applications
        uint8_t family, protocol, side
        char *host

    struct recogniser_counters:
        uint64_t copies, lost, overflows, unreadable, ignored, findings, repeated

    struct talks:
        uint32_t used
        uint64_t begun, pushed_out

    struct recogniser:
        ndpi_detection_module_struct *ndpi
        talks talks
        recogniser_counters counters
        const uint8_t *at
        const uint8_t *end
        uint32_t found
        finding *findings
        uint8_t *datagram

    char *ndpi_revision()
    char *ndpi_get_proto_name(ndpi_detection_module_struct *ndpi, uint16_t number)
    unsigned int ndpi_get_num_supported_protocols(ndpi_detection_module_struct *ndpi)
    void copied_read_prefix(const uint8_t *text, size_t length, copied *copied)
    recogniser *recogniser_open(uint32_t talks, uint32_t most_packets, uint64_t seed)
    void recogniser_close(recogniser *recogniser)
    void recogniser_feed(recogniser *recogniser, const copied *copied, uint64_t now_ms)
    void recogniser_read(recogniser *recogniser, uint64_t now_ms)
    int recogniser_run(recogniser *recogniser, int fd, int timeout_ms)


SIDES = {COPY_SIDE_UNKNOWN: "", COPY_SIDE_LAN: "lan", COPY_SIDE_WAN: "wan"}
LONGEST_PACKET = RECOGNISER_LONGEST


def version():
    return ndpi_revision().decode("ascii", "replace")


def confine():
    cdef const char *what
    cdef int code = confine_everything(&what)
    words = what.decode()
    if code:
        raise OSError(code, f"{words}: {os.strerror(code)}")
    return words


cdef class Recogniser:
    cdef recogniser *c
    cdef tuple _names

    def __cinit__(self, *, uint32_t talks=4096, uint32_t packets=16):
        if not 1 <= talks <= 1 << 20:
            raise ValueError(f"talks {talks}: legal are 1 to {1 << 20}")
        if not 1 <= packets <= 255:
            raise ValueError(f"packets {packets}: legal are 1 to 255")
        self.c = recogniser_open(talks, packets, int.from_bytes(os.urandom(8), "little"))
        if self.c is NULL:
            raise MemoryError("nDPI cannot be set up")
        self._names = tuple([
            ndpi_get_proto_name(self.c.ndpi, number).decode("ascii", "replace").lower()
            for number in range(ndpi_get_num_supported_protocols(self.c.ndpi))
        ])

    def __dealloc__(self):
        recogniser_close(self.c)

    def applications(self):
        return tuple(sorted(set(self._names[1:])))

    def run(self, int fd, int timeout_ms):
        cdef int code
        while True:
            with nogil:
                code = recogniser_run(self.c, fd, timeout_ms)
            if code == 0:
                return self._found()
            if code != EINTR:
                raise OSError(code, f"reading copies: {os.strerror(code)}")
            PyErr_CheckSignals()

    def feed(self, const uint8_t[::1] packet not None, bytes prefix=b"", uint64_t now_ms=0):
        cdef copied given
        cdef const uint8_t *text = prefix
        if packet.shape[0] == 0:
            return []
        memset(&given, 0, sizeof(given))
        given.packet = &packet[0]
        given.end = &packet[0] + packet.shape[0]
        copied_read_prefix(text, len(prefix), &given)
        self.c.found = 0
        recogniser_feed(self.c, &given, now_ms)
        return self._found()

    def read(self, const uint8_t[::1] datagram not None, uint64_t now_ms=0):
        if datagram.shape[0] > RECOGNISER_DATAGRAM:
            raise ValueError(f"a datagram of {datagram.shape[0]} bytes")
        found = []
        if datagram.shape[0]:
            memcpy(self.c.datagram, &datagram[0], datagram.shape[0])
        self.c.at = self.c.datagram
        self.c.end = self.c.datagram + datagram.shape[0]
        while self.c.at < self.c.end:
            self.c.found = 0
            recogniser_read(self.c, now_ms)
            found += self._found()
        return found

    cdef list _found(self):
        return [self._finding(&self.c.findings[at]) for at in range(self.c.found)]

    cdef tuple _finding(self, const finding *found):
        cdef int size = 4 if found.family == 4 else 16
        names = [self._name(found.applications[at]) for at in range(2) if found.applications[at]]
        return (
            found.protocol,
            PyBytes_FromStringAndSize(<const char *>found.server.address, size),
            found.server.port,
            PyBytes_FromStringAndSize(<const char *>found.client.address, size),
            found.client.port,
            SIDES[found.side],
            tuple(names),
            found.host[:strlen(found.host)].decode("ascii", "replace"),
        )

    cdef str _name(self, uint16_t number):
        return self._names[number] if number < len(self._names) else f"ndpi-{number}"

    def counters(self):
        return {
            "copies": self.c.counters.copies,
            "lost": self.c.counters.lost,
            "overflows": self.c.counters.overflows,
            "unreadable": self.c.counters.unreadable,
            "ignored": self.c.counters.ignored,
            "findings": self.c.counters.findings,
            "repeated": self.c.counters.repeated,
            "talks": self.c.talks.begun,
            "pushed_out": self.c.talks.pushed_out,
        }
