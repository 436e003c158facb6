"""What the headers declare, as hotpath.pyx uses it."""

cdef extern from "ranges.h" nogil:
    enum:
        FAULT_LENGTH
        LISTS_MOST

    struct list_input:
        const uint32_t *pairs4
        uint64_t count4
        const uint64_t *quads6
        uint64_t count6

    struct lists:
        uint32_t list_count
        uint64_t size

    lists *lists_open(const list_input *inputs, uint32_t count, char *fault)
    void lists_close(lists *lists)

cdef extern from "learned.h" nogil:
    struct learned_entry:
        pass

    struct learned:
        uint64_t size

    learned *learned_open(const learned_entry *entries, uint64_t count, uint32_t set_count,
                          uint64_t seed, char *fault)
    void learned_close(learned *learned)

cdef extern from "memory.h" nogil:
    struct memory:
        uint64_t now_ms

    memory *memory_open(uint64_t seed)
    void memory_close(memory *memory)

cdef extern from "nfqueue.h" nogil:
    enum:
        REASON_COUNT
        REASON_DECIDED
        FIELDS_COUNT
        PROGRAM_DECISIONS
        PROGRAM_MAX_RULES
        QUEUE_ERRNOS
        QUEUE_FLAG_FAIL_OPEN
        QUEUE_FLAG_GSO

    enum reason:
        pass
    const char *reason_names[]

    struct flow:
        uint8_t key[36]
        uint8_t family
        uint8_t protocol
        uint8_t fragment
        uint8_t dscp
        uint32_t interface

    struct learned_members:
        const learned *table
        uint32_t set_count
        const uint32_t *starts
        const uint32_t *members

    struct program:
        uint32_t rule_count
        uint64_t serial
        uint64_t size

    struct decision:
        uint64_t hash
        uint32_t mark
        uint32_t rule
        uint16_t slot
        uint8_t decision

    struct tally:
        uint64_t *reasons
        uint64_t *decisions
        uint64_t *rules

    struct queue_counters:
        uint64_t packets, batches, unknown_messages, enobufs, recv_errors, send_retries
        uint64_t *verdict_errors
        tally decided

    struct queue_worker:
        uint8_t fail_open
        uint64_t order
        queue_counters counters

    int protocol_has_ports(uint8_t protocol)
    reason packet_parse(const uint8_t *at, const uint8_t *end, flow *found)
    reason program_decide(const program *program, const flow *flow, uint32_t mark, memory *memory,
                          decision *decision)
    reason program_classify(const program *program, const uint8_t *at, const uint8_t *end,
                            uint32_t mark, uint32_t interface, memory *memory, decision *decision)
    void match_explain(const program *program, const flow *flow, uint16_t *wrong)
    void tally_add(tally *tally, reason why, const decision *decision)
    queue_worker *queue_worker_open(int fd, uint16_t number, uint32_t length, uint32_t copy_bytes,
                                    uint32_t spin_us, uint64_t seed)
    void queue_worker_close(queue_worker *worker)
    int queue_worker_run(queue_worker *worker)
    void queue_worker_stop(queue_worker *worker)
    uint64_t queue_worker_swap(queue_worker *worker, program *program)
    bint queue_worker_serving(queue_worker *worker)
    bint queue_worker_passed(queue_worker *worker, uint64_t order)
    int queue_worker_gate(queue_worker *worker, bint open)
    int queue_connect(int fd)
    int queue_set_flag(int fd, uint16_t number, uint32_t flag)
    int queue_set_length(int fd, uint16_t number, uint32_t length)
    int queue_set_buffer(int fd, int bytes)
    uint64_t queue_refused(int fd)

cdef extern from "batch.h" nogil:
    struct batch:
        const uint8_t *buffer
        const void *offsets
        bint wide
        uint64_t count
        uint32_t *marks
        uint32_t interface
        memory *memory

    bint batch_is_legal(const batch *packets, uint64_t size)
    uint64_t batch_classify(const program *program, const batch *packets, tally *tally)

cdef extern from "loader.h" nogil:
    program *program_open(const uint8_t *bytes, uint64_t size, uint64_t serial,
                          const lists *lists, const learned_members *learned, char *fault)
    void program_close(program *program)
