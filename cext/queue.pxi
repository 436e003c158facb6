"""The queue: bound, served and asked. A part of hotpath.pyx."""


cdef object refused(int code, str what):
    return OSError(code, f"{what}: {os.strerror(code)}")


def kernel_queues():
    """The queues of this thread's network namespace, as the kernel lists them."""
    queues = {}
    try:
        with open("/proc/thread-self/net/netfilter/nfnetlink_queue", encoding="ascii") as table:
            for line in table:
                columns = [int(column) for column in line.split()]
                queues[columns[0]] = {
                    "owner": columns[1],
                    "waiting": columns[2],
                    "dropped": columns[5],
                    "user_dropped": columns[6],
                    "sequence": columns[7],
                }
    except FileNotFoundError:
        pass
    return queues


def bind_queue(uint16_t number, callback, *, uint32_t length, uint32_t copy_bytes,
               int socket_buffer_bytes):
    """Opens and binds the queue, sets its flags: (NetfilterQueue, what the kernel granted)."""
    cdef NetfilterQueue queue
    cdef int code
    try:
        queue = NetfilterQueue()
    except OSError as fault:
        code = errno
        raise refused(code or errno_names.EPERM, "opening an NFQUEUE socket") from fault
    try:
        with warnings.catch_warnings():
            # What the kernel made of the socket buffer is told by what is granted.
            warnings.simplefilter("ignore", RuntimeWarning)
            queue.bind(number, callback, max_len=length, mode=COPY_PACKET,
                       range=copy_bytes, sock_len=socket_buffer_bytes)
    except OSError as fault:
        code = errno
        if number in kernel_queues():
            code = errno_names.EBUSY
        raise refused(code or errno_names.EIO, f"binding queue {number}") from fault
    cdef int fd = queue.get_fd()
    code = queue_connect(fd)
    if code:
        queue.unbind()
        raise refused(code, f"connecting queue {number} to the kernel")
    flags = []
    for name, flag in (("fail-open", QUEUE_FLAG_FAIL_OPEN), ("gso", QUEUE_FLAG_GSO)):
        code = queue_set_flag(fd, number, flag)
        if code == 0:
            flags.append(name)
        elif code not in (errno_names.EOPNOTSUPP, errno_names.EINVAL):
            queue.unbind()
            raise refused(code, f"setting {name} on queue {number}")
    return queue, {
        "length": length,
        "copy_bytes": min(copy_bytes, MOST_COPY_BYTES),
        "socket_buffer_bytes": queue_set_buffer(fd, socket_buffer_bytes),
        "flags": tuple(flags),
    }


def set_queue_length(int fd, uint16_t number, uint32_t length):
    """Tells the kernel how many packets may wait; 0 with fail-open lets all pass."""
    cdef int code = queue_set_length(fd, number, length)
    if code:
        raise refused(code, f"setting the length of queue {number}")


def socket_refused(int fd):
    """How many messages the socket has had no room for."""
    return queue_refused(fd)


def _accept(packet):
    packet.accept()  # only while binding: the worker is not there yet, settle decides


cdef class QueueWorker:
    """One queue, one thread: decides packets in batches without the GIL."""

    cdef NetfilterQueue queue
    cdef queue_worker *c
    cdef readonly unsigned int number
    cdef dict _granted
    cdef list _programs  # (order, Program), the newest last; older ones until they are passed
    cdef uint64_t _highest
    cdef bint _running

    def __cinit__(self, uint16_t number, Program program not None, *, uint32_t length=1024,
                  uint32_t copy_bytes=128, int socket_buffer_bytes=4 << 20, uint32_t spin_us=0,
                  seed=None):
        if not 1 <= length <= 1 << 20:
            raise ValueError(f"length {length}: legal are 1 to {1 << 20} packets")
        if not 64 <= copy_bytes <= 65535:
            raise ValueError(f"copy_bytes {copy_bytes}: legal are 64 to 65535")
        if socket_buffer_bytes < 1:
            raise ValueError(f"socket_buffer_bytes {socket_buffer_bytes}: must be positive")
        cdef uint64_t begin = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        self.number = number
        self._programs = []
        self.queue, self._granted = bind_queue(
            number, _accept, length=length, copy_bytes=copy_bytes,
            socket_buffer_bytes=socket_buffer_bytes,
        )
        self.c = queue_worker_open(self.queue.get_fd(), number, length,
                                   self._granted["copy_bytes"], spin_us, begin)
        if self.c is NULL:
            code = errno
            self.queue.unbind()
            raise refused(code, "setting up the queue worker")
        self.c.fail_open = "fail-open" in self._granted["flags"]
        queue_worker_gate(self.c, False)
        self.swap(program)

    def __dealloc__(self):
        queue_worker_close(self.c)

    def granted(self):
        return dict(self._granted)

    def fileno(self):
        if self.queue is None:
            raise ValueError(f"queue {self.number} is closed")
        return self.queue.get_fd()

    def run(self):
        cdef int code
        if self._running:
            raise RuntimeError(f"queue {self.number} is being served already")
        if self.queue is None:
            raise RuntimeError(f"queue {self.number} is closed")
        self._running = True
        try:
            while True:
                with nogil:
                    code = queue_worker_run(self.c)
                if code == 0:
                    return
                if code != errno_names.EINTR:
                    raise refused(code, f"serving queue {self.number}")
                PyErr_CheckSignals()
        finally:
            self._running = False

    def serving(self):
        return bool(queue_worker_serving(self.c))

    def stop(self):
        queue_worker_stop(self.c)

    def close(self):
        if self._running:
            raise RuntimeError(f"queue {self.number} is being served: stop it first")
        if self.queue is not None:
            self.queue.unbind()
            self.queue = None

    def swap(self, Program program not None):
        self._highest = max(self._highest, program.serial)
        self._programs.append((queue_worker_swap(self.c, program.c), program))
        self._forget()

    def passed(self, uint64_t serial):
        self._forget()
        for order, program in reversed(self._programs):
            if program.serial == serial:
                return bool(queue_worker_passed(self.c, order))
        if serial > self._highest:
            raise ValueError(f"program {serial} was never given to queue {self.number}")
        return True  # one that came after it was passed

    cdef _forget(self):
        """A program may go when one that came after it was passed."""
        while len(self._programs) > 1 and queue_worker_passed(self.c, self._programs[1][0]):
            self._programs.pop(0)

    def counters(self):
        cdef queue_counters *counted = &self.c.counters
        return {
            "packets": counted.packets,
            "batches": counted.batches,
            **counts(&counted.decided),
            "verdict_errors": sum([counted.verdict_errors[at] for at in range(QUEUE_ERRNOS)]),
            "verdict_errors_by_errno": {
                errno_names.errorcode.get(at, "unknown"): counted.verdict_errors[at]
                for at in range(QUEUE_ERRNOS) if counted.verdict_errors[at]
            },
            "enobufs": counted.enobufs,
            "refused": 0 if self.queue is None else queue_refused(self.queue.get_fd()),
            "recv_errors": counted.recv_errors,
            "send_retries": counted.send_retries,
            "unknown_messages": counted.unknown_messages,
        }
