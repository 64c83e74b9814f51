# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The core: process start, connection handoff, the balancer thread, counters in shared memory, and frames.

Five parts in this order, each with its theory of operation above it. Of the Python layer, the core knows one exception.
`cdef` functions are `noexcept nogil` and return 0 or -errno; only the outermost `def` turns that into OSError.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strerror

from _linux cimport *

import collections
import os

from pycluster import errors


cdef object system_error(str call, int error):
    return OSError(error, f"{call}: {strerror(error).decode()}")


cdef uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef uint64_t load(const uint64_t *cell) noexcept nogil:
    return __atomic_load_n(cell, __ATOMIC_ACQUIRE)


cdef void store(uint64_t *cell, uint64_t value) noexcept nogil:
    __atomic_store_n(cell, value, __ATOMIC_RELEASE)


cdef void add(uint64_t *cell, uint64_t value) noexcept nogil:
    __atomic_fetch_add(cell, value, __ATOMIC_RELEASE)


# ---- The shared region -------------------------------------------------------------------------------------------
#
# One memfd, mapped by the primary before its first fork and inherited by every worker; a spawned worker maps it anew.
# It is sealed, so that no process can shrink it under another one's feet. Nothing in it is a lock and nothing in it is
# a pointer: a process that dies, or that writes rubbish, can spoil numbers, never block or crash another one. Whoever
# reads a number that another process writes checks it before it acts on it (see `pending`).
#
#   offset              what                                                   written by
#   0                   Header                                                 primary
#   4096                max_counters x Name                                    whoever names a counter first
#   header.slots        (2 + max_workers) x slot_size: a Slot, then the slot's max_counters counters
#                       slot 0: what dead workers have counted                 primary
#                       slot 1: the primary's own                              primary
#                       others: one living worker each, reused after it        see Slot
#
# Totals stay right while a dead worker's numbers move to slot 0: `folding` is odd for so long (a seqlock), and
# readers try again, for FOLD_NS at most: whoever folds may be killed half-way, and anybody can write there.

cdef enum:
    REGION_MAGIC = 0x7073756C63797001
    REGION_VERSION = 1        # raised with each change of the structs below; tests/test_versions.py sees to it
    HEADER_SIZE = 4096
    NAME_SIZE = 64            # 63 bytes, as api.md section 8 promises, and a NUL
    CHANNELS_PER_WORKER = 64  # listeners that one worker can have open at a time: eight cache lines of its slot
    RETIRED_SLOT = 0
    PRIMARY_SLOT = 1
    FIRST_WORKER_SLOT = 2
    FOLD_NS = 50000000        # a fold takes about a microsecond, and a time slice more when it is interrupted

cdef struct Header:
    uint64_t magic
    uint32_t version
    uint32_t max_workers
    uint32_t max_counters
    uint32_t slot_size
    uint64_t slots            # offset of the first slot
    uint64_t size
    uint64_t pad[3]
    uint64_t folding          # offset 64
    uint64_t slots_used       # no slot at or above this has ever been given out

cdef struct Name:
    uint64_t hash             # 0: free. Set once, by compare-and-swap, and then for ever
    uint64_t length           # 0: not yet written
    char text[NAME_SIZE]

cdef struct Slot:
    # line 0, written by the primary
    uint64_t id               # the worker's, 0: free (slot 1: the primary)
    uint64_t pid
    uint64_t state
    uint64_t started_at_ns    # of the wall clock
    uint64_t number           # `Worker.slot`: which of the cluster's places it has, not which of these slots
    uint64_t pad0[3]
    # line 1, written by the balancer: connections put into the worker's channels and not taken back
    uint64_t dispatched
    uint64_t pad1[7]
    # line 2, written by the worker
    uint64_t received         # connections taken out of its channels
    uint64_t direct           # connections accepted from a socket that it shares with others (SCHED_NONE)
    uint64_t active           # accepted connections still open, as of the last look
    uint64_t messages_in
    uint64_t messages_out
    uint64_t ticks            # of its event loops, see heartbeat.py
    uint64_t thread           # the one that has accepted or ticked last, as Python and faulthandler name it
    uint64_t pad2
    # lines 3 to 10, written by the worker: what it has received from each of its channels, probes included
    uint64_t consumed[CHANNELS_PER_WORKER]
    # line 11, written by the worker, and line 12, by the primary: rung after each write to the control channel (part 5)
    uint64_t bell_of_worker
    uint64_t pad3[7]
    uint64_t bell_of_primary
    uint64_t pad4[7]

cdef Header *region = NULL
# The geometry, out of the reach of whoever writes to the region.
cdef uint64_t slots_offset = 0
cdef uint64_t slot_size = 0
cdef uint32_t max_workers = 0
cdef uint32_t max_counters = 0
cdef int region_fd = -1
cdef Slot *own_slot = NULL        # this process's
cdef uint64_t *own_counters = NULL


cdef Slot *slot_at(uint64_t index) noexcept nogil:
    return <Slot *>(<char *>region + slots_offset + index * slot_size)


cdef uint64_t *counters_of(Slot *slot) noexcept nogil:
    return <uint64_t *>(<char *>slot + sizeof(Slot))


cdef Name *name_at(uint64_t index) noexcept nogil:
    return <Name *>(<char *>region + HEADER_SIZE) + index


cdef void settle_in(uint64_t index) noexcept nogil:
    global own_slot, own_counters
    own_slot = slot_at(index)
    own_counters = counters_of(own_slot)


cdef uint64_t names_end(uint32_t counters) noexcept nogil:
    return (HEADER_SIZE + counters * <uint64_t>sizeof(Name) + 63) & ~<uint64_t>63


cdef uint64_t size_of_slot(uint32_t counters) noexcept nogil:
    return (sizeof(Slot) + 8 * <uint64_t>counters + 63) & ~<uint64_t>63


cdef uint64_t region_size(uint32_t workers, uint32_t counters) noexcept nogil:
    return names_end(counters) + (FIRST_WORKER_SLOT + <uint64_t>workers) * size_of_slot(counters)


cdef void lay_out(uint32_t workers, uint32_t counters) noexcept nogil:
    global slots_offset, slot_size, max_workers, max_counters
    max_workers = workers
    max_counters = counters
    slots_offset = names_end(counters)
    slot_size = size_of_slot(counters)


def create_region(uint32_t workers, uint32_t counters):
    """Create and map the shared region for so many workers and counters. Primary only, once.

    Its memory costs only what is written to.

    Raises:
      OSError: the system has no memory or no descriptor left.
    """
    global region, region_fd
    if region != NULL:
        raise RuntimeError("the shared region exists")
    cdef uint64_t size = region_size(workers, counters)
    cdef int fd = memfd_create(b"pycluster", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    if fd < 0:
        raise system_error("memfd_create", errno)
    cdef int error
    cdef void *mapped
    if ftruncate(fd, size) < 0 or fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0:
        error = errno
        close(fd)
        raise system_error("sizing the shared region", error)
    mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if mapped == MAP_FAILED:
        error = errno
        close(fd)
        raise system_error("mmap", error)
    region_fd = fd
    region = <Header *>mapped
    lay_out(workers, counters)
    region.max_workers = workers
    region.max_counters = counters
    region.slot_size = <uint32_t>slot_size
    region.slots = slots_offset
    region.size = size
    region.slots_used = FIRST_WORKER_SLOT
    region.version = REGION_VERSION
    store(&region.magic, REGION_MAGIC)
    settle_in(PRIMARY_SLOT)
    own_slot.pid = os.getpid()
    own_slot.started_at_ns = started_now()


def attach_region(int fd, uint32_t version, uint32_t workers, uint32_t counters):
    """Map the region behind the inherited descriptor `fd`, and close that. A spawned worker's first step.

    The primary says what it is: what stands in the region itself, any worker may have spoilt. A region that this
    process has made before is unmapped; each Counter of that has to `rejoin`.

    Raises:
      OSError: it cannot be mapped.
      RuntimeError: it is of another version of the library.
    """
    global region
    cdef uint64_t size = region_size(workers, counters)
    cdef off_t found = lseek(fd, 0, SEEK_END)
    cdef void *mapped = MAP_FAILED
    cdef int error
    if version == REGION_VERSION and found == <off_t>size:
        mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    error = errno
    close(fd)
    if version != REGION_VERSION or (found >= 0 and found != <off_t>size):
        raise RuntimeError("the primary runs another version of pycluster; start the cluster anew")
    if mapped == MAP_FAILED:
        raise system_error("mapping the shared region", error)
    if region != NULL:
        munmap(region, region_size(max_workers, max_counters))
        close_region_descriptor()
    region = <Header *>mapped
    lay_out(workers, counters)


def adopt_region(int fd, uint32_t version, uint32_t workers, uint32_t counters):
    """Map the region behind `fd`, and own that, in a primary that has re-executed itself: its first step.

    Raises:
      OSError, RuntimeError: as attach_region does.
    """
    global region_fd
    attach_region(os.dup(fd), version, workers, counters)
    region_fd = fd
    settle_in(PRIMARY_SLOT)


def region_to_inherit():
    """The region's descriptor (borrowed) and its version, for a spawned worker to inherit."""
    return region_fd, REGION_VERSION


def close_region_descriptor():
    """Close the region's descriptor in a forked worker, which keeps the mapping."""
    global region_fd
    if region_fd >= 0:
        close(region_fd)
        region_fd = -1


cdef uint64_t started_now():
    import time
    return time.time_ns()


# ---- Part 1: processes -------------------------------------------------------------------------------------------
#
# `fork` is called by the thread that dispatches in the primary. Every signal is blocked around it: a signal that hits
# the child before it has reset the primary's handlers would run them there. The child unblocks with
# `restore_signals` once it has. The balancer's mutex is held meanwhile by an at-fork hook (see `lock_balancer`), which
# covers the user's own os.fork() too.
#
# `fork_sibling` is called by the template of the start method "forkserver" (template.py): its child is a child of its
# own parent, the primary. fork(3) cannot do that, and the other way to it does not do: a grandchild comes to a primary
# that is a subreaper, but so do the orphans of all that the user's program starts, for nobody to wait for. So it is a
# bare clone(2), and what the C library does in its fork(3) is done here or not needed, provided that the process has no
# other thread (template.py sees to it), as its locks are free then:
#   - The C library keeps the thread's id, for pthread_kill and mutexes that know their owner. A stale one is the
#     template's: child.py's pthread_kill, which ends the main thread's script, would find nobody. The kernel writes the
#     new one (CLONE_CHILD_SETTID) where it was told to clear it when the thread ends, which is where glibc has it.
#     musl has it elsewhere; that is noticed, and refused.
#   - The kernel forgets the list of robust mutexes: it is told again, for whoever shares some with other processes.
#   - What libraries have put into pthread_atfork is not run. OpenBLAS, with numpy, stops its threads before any fork;
#     so the template forks once in the ordinary way when it has imported all, and they stay stopped. (Else the first
#     product of matrices in a worker waits for ever.) OpenSSL, whose random numbers must not be repeated, looks at its
#     process's id.
# The template may be killed at any moment, and the primary is to know its child all the same: the kernel writes the
# child's id into memory that both share, after there is a child and before it runs (CLONE_PARENT_SETTID). clone and not
# clone3, which could give a pidfd besides: Docker's default profile of system calls refuses clone3.
#
# The lifeline is the one thing in a worker that must work even when Python does not: a thread that needs no GIL waits
# until the primary's end of the control channel closes, gives Python a grace to leave by itself, and ends the process.
# A worker that has disconnected closes the channel itself, and may take its time to end. From then on the thread waits
# for the primary's own end, by a pidfd that costs a descriptor only now; the channel would tell nothing any more.

cdef enum:
    THREAD_STACK_SIZE = 262144  # both threads keep a few kB on it; glibc puts its thread-local storage there too
    NO_PIDFD_MS = 200           # how often a worker without a descriptor for a pidfd looks who its parent is

cdef sigset_t mask_before_fork
cdef int lifeline_fd = -1
cdef uint64_t lifeline_grace_ns = 0
cdef uint64_t lifeline_on_channel = 0
cdef pid_t lifeline_parent = 0


cdef int start_thread(pthread_t *thread, void *(*body)(void *) noexcept nogil) noexcept nogil:
    """Start a thread that no signal is delivered to: Python's handlers belong to its own threads."""
    cdef pthread_attr_t attributes
    cdef sigset_t everything, before
    cdef int error
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, THREAD_STACK_SIZE)
    sigfillset(&everything)
    pthread_sigmask(SIG_SETMASK, &everything, &before)
    error = pthread_create(thread, &attributes, body, NULL)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    pthread_attr_destroy(&attributes)
    return -error


def fork():
    """Fork this process, with Python's own hooks run. The child starts with every signal blocked.

    Returns:
      `(pid, pidfd)` in the parent, which owns the pidfd; `(0, -1)` in the child.

    Raises:
      OSError: no child is left behind.
    """
    global mask_before_fork
    cdef sigset_t everything, before
    cdef int error, pidfd, status
    cdef pid_t pid
    sigfillset(&everything)
    pthread_sigmask(SIG_SETMASK, &everything, &before)
    PyOS_BeforeFork()
    mask_before_fork = before  # now, as a hook may have forked, too
    pid = c_fork()
    if pid == 0:
        PyOS_AfterFork_Child()
        return 0, -1
    error = errno
    PyOS_AfterFork_Parent()
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    if pid < 0:
        raise system_error("fork", error)
    # The child cannot be reaped before we wait for it, so its pid cannot be another process's by now.
    pidfd = <int>syscall(SYS_pidfd_open, pid, 0)
    if pidfd < 0:
        error = errno
        kill(pid, SIGKILL)
        with nogil:
            while waitpid(pid, &status, 0) < 0 and errno == EINTR:
                pass
        raise system_error("pidfd_open", error)
    return pid, pidfd


cdef pid_t *kept_thread_id() noexcept nogil:
    """Where the C library keeps the id of this thread; NULL if that cannot be found out."""
    cdef pid_t *kept = NULL
    if prctl(PR_GET_TID_ADDRESS, <unsigned long>&kept) < 0 or kept == NULL or kept[0] != <pid_t>syscall(SYS_gettid):
        return NULL
    return kept


def fork_sibling(int note):
    """Fork this process, which has no other thread, as a child of its own parent. Else as `fork`.

    Args:
      note: a file in memory (borrowed), whose first four bytes become the child's id before the child runs.

    Returns:
      The child's id in this process, which cannot wait for it; 0 in the child.

    Raises:
      OSError: no child is left behind. EOPNOTSUPP: this C library or kernel does not tell where the thread's id is.
    """
    global mask_before_fork
    cdef sigset_t everything
    cdef int error
    cdef pid_t pid
    cdef pid_t *noted
    cdef pid_t *thread_id = kept_thread_id()
    cdef void *robust_mutexes = NULL
    cdef size_t size = 0
    if thread_id == NULL:
        raise OSError(
            EOPNOTSUPP, "this C library or kernel does not tell what a clone needs to know; set start_method='spawn'"
        )
    noted = <pid_t *>mmap(NULL, sizeof(pid_t), PROT_READ | PROT_WRITE, MAP_SHARED, note, 0)
    if noted == MAP_FAILED:
        raise system_error("mmap", errno)
    noted[0] = 0  # now there is a page, and the kernel's write cannot fail, whatever signal has come by then
    syscall(SYS_get_robust_list, 0, &robust_mutexes, &size)
    sigfillset(&everything)
    pthread_sigmask(SIG_SETMASK, &everything, &mask_before_fork)
    PyOS_BeforeFork()
    # Where the child's thread id goes is the fourth argument on x86, and the fifth on ARM; the other one is not used.
    pid = <pid_t>syscall(
        SYS_clone,
        CLONE_PARENT | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD,
        NULL,
        noted,
        thread_id,
        thread_id,
    )
    if pid == 0:
        if robust_mutexes != NULL:
            syscall(SYS_set_robust_list, robust_mutexes, size)
        munmap(noted, sizeof(pid_t))
        PyOS_AfterFork_Child()
        return 0
    error = errno
    munmap(noted, sizeof(pid_t))
    PyOS_AfterFork_Parent()
    pthread_sigmask(SIG_SETMASK, &mask_before_fork, NULL)
    if pid < 0:
        raise system_error("clone", error)
    return pid


def restore_signals():
    """Unblock the signals in a child of `fork` or `fork_sibling`, once its handlers are its own."""
    pthread_sigmask(SIG_SETMASK, &mask_before_fork, NULL)


def limit_rights(uid_t user, gid_t group, object groups):
    """Let this thread, for the rest of its life, have to files the rights of that user, and of these groups.

    By the ids for files alone, which let nobody signal or trace the thread who could not before. With the user root is
    left, so are its capabilities over files. The C library would change the groups of all threads.

    Args:
      groups: the supplementary ones; None to keep this thread's.

    Raises:
      PermissionError: this process may not take them; the thread may have some of them by now.
    """
    cdef gid_t kept[1]
    cdef int dumpable = prctl(PR_GET_DUMPABLE, 0)
    if groups is not None:
        if len(groups) > 1:
            raise ValueError(f"a worker has one supplementary group at most, not {groups!r}")
        if groups:
            kept[0] = groups[0]
        if syscall(SYS_setgroups, <long>len(groups), kept) < 0:
            raise system_error("setgroups", errno)
    setfsgid(group)
    setfsuid(user)
    # The kernel takes the process for one that has changed its user, which must not write a core file: it has not.
    if dumpable == 1:
        prctl(PR_SET_DUMPABLE, 1)
    # They report no error. What is no id changes nothing, and tells what is.
    if <uid_t>setfsuid(<uid_t>-1) != user or <gid_t>setfsgid(<gid_t>-1) != group:
        raise system_error("setfsuid", EPERM)


def arm_lifeline(int fd, double grace_s):
    """Watch the control channel `fd` (borrowed): `grace_s` seconds after its peer has closed, exit with status 0.

    In a child of the primary's, which is its parent as long as that lives.
    """
    global lifeline_fd, lifeline_grace_ns, lifeline_parent
    cdef pthread_t thread
    lifeline_fd = fd
    lifeline_grace_ns = <uint64_t>(grace_s * 1e9)
    lifeline_parent = getppid()
    store(&lifeline_on_channel, 1)
    cdef int error = start_thread(&thread, watch_lifeline)
    if error < 0:
        raise system_error("pthread_create", -error)
    pthread_detach(thread)


def expect_orderly_close():
    """Let the channel close: from then on the lifeline hangs on the primary itself."""
    store(&lifeline_on_channel, 0)


cdef void wait_for_parent() noexcept nogil:
    """Return when the process that was the parent is gone."""
    cdef pollfd watched
    watched.events = POLLIN
    while True:
        watched.fd = <int>syscall(SYS_pidfd_open, lifeline_parent, 0)
        # After the call: as long as it is the parent, its number is nobody else's.
        if getppid() != lifeline_parent:
            return  # and this process is about to end
        poll(&watched, 1, -1 if watched.fd >= 0 else NO_PIDFD_MS)
        if watched.fd >= 0:
            close(watched.fd)


cdef void *watch_lifeline(void *nothing) noexcept nogil:
    cdef pollfd watched
    cdef timespec grace
    watched.fd = lifeline_fd
    watched.events = POLLRDHUP
    while poll(&watched, 1, -1) < 0 and errno == EINTR:
        pass
    if not load(&lifeline_on_channel):
        wait_for_parent()
    grace.tv_sec = <long>(lifeline_grace_ns // 1000000000)
    grace.tv_nsec = <long>(lifeline_grace_ns % 1000000000)
    nanosleep(&grace, NULL)
    _exit(0)


def create_timer():
    """A timer's descriptor, close-on-exec, readable once its time has come. The caller's.

    Raises:
      OSError: no descriptor is left.
    """
    cdef int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
    if fd < 0:
        raise system_error("timerfd_create", errno)
    return fd


def set_timer(int fd, double seconds):
    """Let the timer's descriptor become readable once, in so many seconds from now; at once for 0 or less."""
    cdef itimerspec when
    cdef int64_t wait_ns = max(<int64_t>1, <int64_t>(seconds * 1e9))
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = <long>(wait_ns // 1000000000)
    when.it_value.tv_nsec = <long>(wait_ns % 1000000000)
    if timerfd_settime(fd, 0, &when, NULL) < 0:
        raise system_error("timerfd_settime", errno)


# ---- Part 2: handoff ---------------------------------------------------------------------------------------------
#
# Per worker and listener one AF_UNIX/SOCK_SEQPACKET pair. One message is one connection: its descriptor as SCM_RIGHTS
# and the peer's sockaddr as payload, which saves the worker a getpeername. A message of one byte is a probe: it
# carries nothing, and the worker shows by consuming it that it accepts again (see the balancer).
#
# A message whose descriptor does not fit into the receiver's table arrives truncated (MSG_CTRUNC), and the connection
# is lost. So the receiver looks before it receives: the kernel gives out the lowest free number, so there is room as
# long as the highest numbers are not in use. One poll tells that, and whether there is something to receive.
#
# What it has seen holds as long as the receiver keeps the GIL. So it receives without waiting, and who waits sleeps in
# poll, and looks for room anew. To sleep in recvmsg would save two system calls of four to who waits, and lose the
# connection that comes when other threads have opened files meanwhile. What is left is a file that is opened without
# the GIL, as os.open does it, in the microsecond between the look and the recvmsg, and gets the very last number.
#
# A worker also remembers which of the connections that it accepted are still open, whatever holds them. There is no
# hook on close: `sweep` asks each remembered descriptor for its peer, and one that is closed, or that is another
# connection by now, no longer has that peer. A Unix peer has no name; there the socket's cookie serves (at the cost of
# a system call when it is accepted). All of this runs under the GIL.

cdef enum:
    PROBE_SIZE = 1
    RECEIVE_BATCH = 16        # connections per recvmmsg: 16 messages keep the stack frame at 2.5 kB
    CLOSED_PAUSE_MS = 10      # between two looks at a channel that has ended and is not silenced yet
    LONGEST_SLEEP_MS = 1000   # of who waits for a connection, until another look at whether the channel is still theirs
    IDENTITY_SIZE = 28        # sizeof(struct sockaddr_in6), the longest address that is compared

cdef union Control:
    uint64_t align
    char bytes[24]            # CMSG_SPACE(sizeof(int))

cdef struct Connection:
    int fd
    socklen_t length
    sockaddr_storage peer

cdef struct Opened:
    uint32_t length           # of identity; 0: nothing is remembered of this descriptor
    uint8_t identity[IDENTITY_SIZE]

cdef Opened *opened = NULL    # indexed by descriptor
cdef size_t opened_size = 0
cdef uint64_t opened_count = 0
cdef int first_open_wake = -1  # an eventfd (borrowed): something is open again
cdef char probe_payload[1]


cdef int send_connection(int channel, Connection *connection) noexcept nogil:
    """Send a connection, or a probe when its descriptor is negative."""
    cdef msghdr message
    cdef iovec payload
    cdef Control control
    cdef cmsghdr *rights
    memset(&message, 0, sizeof(message))
    message.msg_iov = &payload
    message.msg_iovlen = 1
    if connection.fd < 0:
        payload.iov_base = probe_payload
        payload.iov_len = PROBE_SIZE
    else:
        payload.iov_base = &connection.peer
        payload.iov_len = connection.length
        message.msg_control = &control
        message.msg_controllen = sizeof(control)
        rights = CMSG_FIRSTHDR(&message)
        rights.cmsg_level = SOL_SOCKET
        rights.cmsg_type = SCM_RIGHTS
        rights.cmsg_len = CMSG_LEN(sizeof(int))
        memcpy(CMSG_DATA(rights), &connection.fd, sizeof(int))
    while sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
        if errno != EINTR:
            return -errno
    return 0


cdef void prepare_receive(msghdr *message, iovec *payload, Control *control, Connection *connection) noexcept nogil:
    memset(message, 0, sizeof(msghdr))
    payload.iov_base = &connection.peer
    payload.iov_len = sizeof(connection.peer)
    message.msg_iov = payload
    message.msg_iovlen = 1
    message.msg_control = control
    message.msg_controllen = sizeof(Control)


cdef void read_received(msghdr *message, size_t length, Connection *connection) noexcept nogil:
    """Set fd to the descriptor, or to -1 where the message brought none (a probe, or a truncated message)."""
    cdef cmsghdr *rights = CMSG_FIRSTHDR(message)
    connection.fd = -1
    connection.length = <socklen_t>length
    if rights != NULL and rights.cmsg_level == SOL_SOCKET and rights.cmsg_type == SCM_RIGHTS:
        memcpy(&connection.fd, CMSG_DATA(rights), sizeof(int))


cdef ssize_t receive_connection(int channel, Connection *connection) noexcept nogil:
    """Receive one message, without waiting.

    Returns its length, 0 at the end of the stream, or -errno (EINTR is the caller's).
    """
    cdef msghdr message
    cdef iovec payload
    cdef Control control
    cdef ssize_t length
    prepare_receive(&message, &payload, &control, connection)
    length = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
    if length < 0:
        return -errno
    read_received(&message, length, connection)
    return length


cdef int64_t cached_limit = 0


cdef int descriptor_limit() noexcept nogil:
    """One more than the highest descriptor. Asked for once and at every sweep: hardly any program changes it."""
    global cached_limit
    cdef rlimit current
    if cached_limit == 0:
        getrlimit(RLIMIT_NOFILE, &current)
        cached_limit = <int64_t>min(current.rlim_cur, <uint64_t>0x7FFFFFFF)
    return <int>cached_limit


cdef int find_descriptor() noexcept nogil:
    """Whether one more descriptor is to be had: 0 or -errno."""
    cdef int spare = fcntl(0, F_DUPFD_CLOEXEC, 0)
    if spare < 0 and errno == EBADF:  # descriptor 0 is closed, so its number at least is free
        return 0
    if spare < 0:
        return -errno
    close(spare)
    return 0


cdef object peer_address(Connection *connection):
    """The peer as the socket module would give it."""
    cdef char text[64]
    cdef sockaddr_in *four
    cdef sockaddr_in6 *six
    if connection.peer.ss_family == AF_INET:
        four = <sockaddr_in *>&connection.peer
        inet_ntop(AF_INET, &four.sin_addr, text, sizeof(text))
        return text.decode("ascii"), ntohs(four.sin_port)
    if connection.peer.ss_family == AF_INET6:
        six = <sockaddr_in6 *>&connection.peer
        inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof(text))
        return text.decode("ascii"), ntohs(six.sin6_port), ntohl(six.sin6_flowinfo), six.sin6_scope_id
    return unix_address(connection)


cdef object unix_address(Connection *connection):
    """A path, an abstract name as bytes, or "" for the common peer without a name; see unix(7)."""
    cdef size_t size = connection.length - sizeof(connection.peer.ss_family)
    cdef bytes name = (<char *>&connection.peer + sizeof(connection.peer.ss_family))[:size]
    return name if name.startswith(b"\0") else os.fsdecode(name.split(b"\0", 1)[0])


cdef int identify(int fd, uint8_t *identity) noexcept nogil:
    """Write what tells this connection from another one into `identity`; returns its length, 0 if fd has none."""
    cdef sockaddr_storage peer
    cdef socklen_t length = sizeof(peer)
    cdef uint64_t cookie = 0
    if getpeername(fd, <sockaddr *>&peer, &length) < 0:
        return 0
    if peer.ss_family == AF_INET or peer.ss_family == AF_INET6:
        memcpy(identity, &peer, length)
        return <int>length
    length = sizeof(cookie)
    if getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) < 0:
        return 0
    memcpy(identity, &cookie, sizeof(cookie))
    return sizeof(cookie)


def connected_port(int fd):
    """The local port of a connected TCP socket; 0 for any other descriptor."""
    cdef sockaddr_storage address
    cdef socklen_t length = sizeof(address)
    if getpeername(fd, <sockaddr *>&address, &length) < 0:
        return 0
    length = sizeof(address)
    if getsockname(fd, <sockaddr *>&address, &length) < 0:
        return 0
    if address.ss_family == AF_INET:
        return ntohs((<sockaddr_in *>&address).sin_port)
    if address.ss_family == AF_INET6:
        return ntohs((<sockaddr_in6 *>&address).sin6_port)
    return 0


cdef int remember(int fd, Connection *connection) except -1:
    """Remember an accepted connection as open. Whatever was remembered of the same number is closed by now."""
    global opened, opened_size, opened_count
    cdef uint64_t one = 1
    cdef size_t size
    cdef Opened *grown
    cdef Opened *entry
    if <size_t>fd >= opened_size:
        size = max(<size_t>1024, opened_size)
        while size <= <size_t>fd:
            size *= 2
        grown = <Opened *>realloc(opened, size * sizeof(Opened))
        if grown == NULL:
            raise MemoryError
        memset(grown + opened_size, 0, (size - opened_size) * sizeof(Opened))
        opened = grown
        opened_size = size
    entry = opened + fd
    if entry.length == 0:
        opened_count += 1
        if opened_count == 1 and first_open_wake >= 0:
            write(first_open_wake, &one, sizeof(one))
    if connection != NULL and connection.peer.ss_family != AF_UNIX and connection.length <= IDENTITY_SIZE:
        memcpy(entry.identity, &connection.peer, connection.length)
        entry.length = connection.length
    else:
        entry.length = identify(fd, entry.identity)
        if entry.length == 0:
            opened_count -= 1
    store(&own_slot.active, opened_count)
    return 0


def wake_on_first_open(int fd):
    """Write to the eventfd `fd` when a connection is accepted and none was open: whoever sweeps may sleep till then."""
    global first_open_wake
    first_open_wake = fd


def accept_direct(int fd):
    """Accept from a non-blocking socket that is shared with other workers (SCHED_NONE). Worker only.

    The connection is remembered before the GIL is released: whoever drains sees it.

    Returns:
      `(fd, address)`, as socket.socket._accept does.

    Raises:
      BlockingIOError, OSError: of accept4(2).
    """
    cdef Connection connection
    while True:
        connection.length = sizeof(connection.peer)
        connection.fd = accept4(fd, <sockaddr *>&connection.peer, &connection.length, SOCK_CLOEXEC)
        if connection.fd >= 0:
            break
        if errno != EINTR:
            raise OSError(errno, strerror(errno).decode())
        PyErr_CheckSignals()
    add(&own_slot.direct, 1)
    own_slot.thread = <uint64_t>PyThread_get_thread_ident()
    remember(connection.fd, &connection)
    return connection.fd, peer_address(&connection)


def undelivered():
    """How many connections have been handed to this worker, not taken back, and not been received. Worker only."""
    return max(<int64_t>0, <int64_t>(load(&own_slot.dispatched) - load(&own_slot.received)))


def sweep():
    """Forget the accepted connections that are closed. Worker only.

    Returns:
      How many are still open, whatever holds them. One system call for each that was open at the last look.
    """
    global cached_limit, opened_count
    cached_limit = 0
    cdef size_t fd
    cdef uint64_t left = opened_count
    cdef uint64_t still_open = 0
    cdef uint8_t identity[128]
    cdef Opened *entry
    for fd in range(opened_size):
        if left == 0:
            break
        entry = opened + fd
        if entry.length == 0:
            continue
        left -= 1
        if identify(<int>fd, identity) == <int>entry.length and memcmp(identity, entry.identity, entry.length) == 0:
            still_open += 1
        else:
            entry.length = 0
    opened_count = still_open
    store(&own_slot.active, still_open)
    return still_open


cdef class Receiver:
    """The worker's end of one handoff channel. It borrows the descriptor; `fileno` may change by dup2."""

    cdef int fd
    cdef uint64_t *consumed

    def __init__(self, int fd, uint32_t cell):
        """`cell` is the number that the primary's HandoffChannel has."""
        if cell >= CHANNELS_PER_WORKER:
            raise ValueError(f"cell {cell} is not below {CHANNELS_PER_WORKER}")
        self.fd = fd
        self.consumed = &own_slot.consumed[cell]

    def close(self):
        """Let go of the descriptor, which is about to be closed: its number may be another file's from then on."""
        self.fd = -1

    cdef int room_for(self, int wanted, bint *ready) except -1:
        """How many descriptors can be received, `wanted` or 1; and whether there is anything to receive, the end too.

        Numbers are given out from below, so those at the very top are in use only if there was a want of others.

        Raises:
          OSError: EMFILE, as of accept, before a connection is lost for want of a descriptor.
        """
        cdef pollfd looks[RECEIVE_BATCH + 1]
        cdef int limit = descriptor_limit()
        cdef int error, i
        cdef int free_ones = 0
        for i in range(wanted):
            looks[i].fd = limit - 1 - i
            looks[i].events = looks[i].revents = 0
        looks[wanted].fd = self.fd
        looks[wanted].events = POLLIN
        looks[wanted].revents = 0
        # It fails when a signal waits, or with more to look at than the limit allows: who receives will see.
        ready[0] = poll(looks, wanted + 1, 0) < 0 or looks[wanted].revents != 0
        for i in range(wanted):
            free_ones += looks[i].revents == POLLNVAL
        if free_ones == wanted:
            return wanted
        error = find_descriptor()
        if error < 0:
            raise OSError(-error, strerror(-error).decode())
        return 1

    cdef int wait(self, uint64_t deadline) except -1:
        """Sleep until there may be something to receive, a signal has been handled, or some time has gone by.

        All threads that wait here wake up, and one of them is the first. When the channel ends, poll looks the number
        up anew. It may be another file's by then, after dup2, or a close and the next listener's start: poll sleeps on,
        and nothing wakes it any more. So a sleep is bounded, and who waits looks at `self.fd` again.

        Raises:
          TimeoutError: `deadline` is over (0: none).
        """
        cdef pollfd watched
        cdef uint64_t now = now_ns()
        cdef uint64_t wait_ms = LONGEST_SLEEP_MS
        cdef int ready
        if deadline:
            wait_ms = min(wait_ms, (max(deadline, now) - now + 999999) // 1000000)
        watched.fd = self.fd
        watched.events = POLLIN
        with nogil:
            ready = poll(&watched, 1, <int>wait_ms)
        if ready == 0 and deadline and now_ns() >= deadline:
            raise TimeoutError("timed out")
        if ready < 0:
            if errno != EINTR:
                raise system_error("poll", errno)
            PyErr_CheckSignals()
        return 0

    cdef object take(self, Connection *connection):
        add(&own_slot.received, 1)
        own_slot.thread = <uint64_t>PyThread_get_thread_ident()
        remember(connection.fd, connection)
        return connection.fd, peer_address(connection)

    def accept(self, timeout):
        """Take the next connection out of the channel.

        Args:
          timeout: None to wait, 0 not to wait, else how many seconds to wait at most (as socket.gettimeout gives it).

        Returns:
          `(fd, address)`, as socket.socket._accept does. The descriptor is blocking, close-on-exec, and the caller's.

        Raises:
          BlockingIOError, TimeoutError, OSError: as accept(2) would; a connection stays in the channel then.
        """
        cdef Connection connection
        cdef ssize_t length
        cdef bint ready
        cdef bint waits = timeout is None or timeout
        cdef uint64_t deadline = now_ns() + <uint64_t>(<double>timeout * 1e9) if timeout else 0
        while True:
            if self.fd < 0:
                raise OSError(EBADF, strerror(EBADF).decode())  # closed by another thread, as of a plain socket
            self.room_for(1, &ready)
            length = receive_connection(self.fd, &connection) if ready else -EAGAIN
            if length > PROBE_SIZE:
                add(self.consumed, 1)
                if connection.fd >= 0:
                    return self.take(&connection)
                add(&own_slot.received, 1)
                continue  # truncated: the table has filled up all the same, and the connection is gone
            if length == PROBE_SIZE:
                add(self.consumed, 1)
            elif length == 0:
                # The primary has closed the channel, or is gone: this descriptor is about to be silenced. Till then be
                # as quiet as if nothing came.
                if not waits:
                    raise BlockingIOError(EAGAIN, strerror(EAGAIN).decode())
                with nogil:
                    poll(NULL, 0, CLOSED_PAUSE_MS)
                PyErr_CheckSignals()
                if timeout and now_ns() >= deadline:
                    raise TimeoutError("timed out")
            elif length == -EINTR:
                PyErr_CheckSignals()
            elif length == -EAGAIN and waits:
                self.wait(deadline)
            else:
                raise OSError(<int>-length, strerror(<int>-length).decode())

    def accept_many(self):
        """Take all the connections that one system call brings, without waiting.

        Returns:
          A list of `(fd, address)`, empty when none waits; whether more may wait is not said.
        """
        cdef mmsghdr messages[RECEIVE_BATCH]
        cdef iovec payloads[RECEIVE_BATCH]
        cdef Control controls[RECEIVE_BATCH]
        cdef Connection connections[RECEIVE_BATCH]
        cdef int count, i
        cdef bint ready
        cdef int batch = self.room_for(RECEIVE_BATCH, &ready)
        if not ready:
            return []
        for i in range(batch):
            prepare_receive(&messages[i].msg_hdr, &payloads[i], &controls[i], &connections[i])
        count = recvmmsg(self.fd, messages, batch, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL)
        if count < 0:
            if errno == EAGAIN or errno == EINTR:
                return []
            raise OSError(errno, strerror(errno).decode())
        taken = []
        for i in range(count):
            if messages[i].msg_len == 0:
                break  # end of the stream
            add(self.consumed, 1)
            read_received(&messages[i].msg_hdr, messages[i].msg_len, &connections[i])
            if connections[i].fd >= 0:
                taken.append(self.take(&connections[i]))
            elif connections[i].length > PROBE_SIZE:
                add(&own_slot.received, 1)
        return taken


# ---- Part 3: the balancer ----------------------------------------------------------------------------------------
#
# One thread in the primary, without the GIL, with one epoll over the listening sockets and an eventfd. Python code
# changes the tables under `balancer.mutex`, taken with the GIL released, and writes to the eventfd. The thread holds
# the mutex while it works on one wake-up, never while it sleeps, so nothing that it holds in transit is missed by an
# at-fork hook. Per connection it makes accept4, sendmsg and close, and allocates nothing.
#
# A channel is on one of its listener's rings:
#   ready    the head gets the next connection and moves to the tail: round robin, O(1)
#   waiting  full: `max_pending` sent and not yet consumed
#   blocked  its worker takes nothing; what lies in it is for the others, the oldest first
#   probed   the same, emptied: a probe lies in it, which its worker takes when it accepts again
#   broken   its worker has shut it down; it stays out for good
#   orphans  its worker is gone or is leaving; what lies in it is placed before anything new is accepted
#
#   from      what happens                                               to
#   ready     it is full when its turn comes                             waiting
#   waiting   fewer are pending                                          ready
#   any       nothing is consumed for a time, see below; buffer full     blocked
#   blocked   all has been taken back                                    probed
#   blocked, probed   the worker consumes something                      ready
#   any       the worker has shut its end down (EPIPE)                   broken
#
# pending = sent - consumed: `sent` is the balancer's own, `consumed` the worker writes in shared memory, so a worker
# that accepts costs the primary nothing, not even a wake-up. In exchange the thread ticks while anything is pending in
# a ready channel: after a millisecond, and twice as long each time that nothing has changed, up to TICK_MAX_MS. A tick
# looks at the channels on the ring `unsettled`: those with something pending, or that no event brings back. So it costs
# what is under way, not what there is: 256 workers that wait for connections cost it nothing.
#
# Blocked: something is pending and nothing has been consumed, for `asleep_ns` by a worker none of whose threads runs or
# waits for a processor, as the kernel says, or for `busy_ns` by any other. A channel that is readable makes its
# acceptor runnable at once, so who sleeps beside one waits for something else; who is runnable is only waiting for a
# time slice, and to move its connections would make the shares uneven for nothing.
#
# What does not help is made rarer, or it would cost the more the more workers there are, most of all on a crowded
# machine. A look into /proc takes 8 us for a worker whose first thread runs, and 30 us for two threads that sleep: a
# tick has LOOKS_MAX looks in vain, half as many after a tick that found nobody asleep, down to one. And where all
# workers sleep, since all their clients are slow, what is taken back from one is soon stuck with the next: that doubles
# `patience_ns`, which is used instead of `asleep_ns`, up to `busy_ns`; what is taken back and consumed brings it down
# again. Measured with bench/load at nice 19 (64 clients, 32 blocking workers, 2 crowded cores): the primary takes 20 us
# per connection instead of 87, and the p99 of tests/soak/blocked.py stays (1.03 times one queue's, 0.99 before).
#
# Measured with tests/soak/blocked.py (4 blocking workers, 5 % of requests sleep 50 ms, 16 clients) on 2 cores: the p99
# is that of one shared listening socket, at 1, 2 and 5 ms (1.02, 0.98, 1.11 times it); 2 ms spares more looks at
# short waits for a client. With 20 ms for workers that run, 8 asyncio workers on 2 crowded cores had shares that differ
# by 3.5 %; with 50 ms by 0.7 %, with 100 ms by 0.7 %, and by 0.4 % without taking back.
#
# What lies in a blocked channel goes to the ready ones, in turn, before anything new. The primary holds a duplicate of
# the receiving end, and receives from it. As long as there is such a connection, a ready channel holds no more than
# SCARCE_LIMIT: whoever is free takes the next, as from one queue for all. When all are blocked, their channels take
# what comes up to max_pending, since a listening socket's backlog may be as short as 5 (socketserver's), and the first
# worker that accepts again gets it. If no channel has room, nothing is accepted: the listening socket is disarmed, and
# the kernel's backlog holds what comes.
#
# Where a tick would come too late, the kernel tells what is consumed: a received message gives its buffer back, which
# makes the sending end writable once more, an edge for epoll. Blocked and probed channels are watched for that, and
# waiting ones with a limit below WATCH_LIMIT; no worker makes a system call for it, and no tick is needed.
#
# When the system is out of descriptors or memory, the listener rests for BACK_OFF_NS.
#
# Wake-ups are moderated, as network cards do it: where the channel whose turn it is has PLENTY in it already, the
# listening socket is disarmed until the next tick, a millisecond later, and what comes meanwhile is accepted in one go.
# Measured with 2 and 8 blocking workers and 64 clients on 2 cores: the primary takes 8 us per connection instead of 24
# and 17, and the workers serve 1.2 and 1.1 times as many.
#
# Nothing relies on O_NONBLOCK: the listening socket was sent by its first worker, which may have kept a duplicate, and
# can change the flag of both. Where the epoll has not just told of a connection, poll does before accept4.
#
# The thread runs under SCHED_BATCH: when it wakes it does not preempt a worker. On a busy machine it so gets its time
# when a slice ends, and finds several connections, which cost little more than one; on an idle core it runs at once.
# Measured with bench/balance.py's asyncio echo on 2 cores, in one run of 9 interleaved rounds against plain processes
# on one listening socket: 1.00 with 2 workers and 1.21 with 8, and 0.90 and 1.10 without it. A sleep of 100 us after
# each wake-up under load instead brought nothing, and on top of it nothing more.

cdef enum:
    BATCH = 64                # connections accepted per listener and wake-up, so that one port cannot starve another
    TICK_MAX_MS = 64
    TICK_NS = 1000000
    ASLEEP_NS = 2000000
    BUSY_NS = 50000000
    PATIENCE_STEPS = 8        # a connection taken back in vain weighs as much as some six that were of use
    SCARCE_LIMIT = 2
    PLENTY = 8                # they keep a blocking Python worker busy for half a tick, if nobody else wants its core
    WATCH_LIMIT = 16          # so many in a queue outlast a tick
    LOOKS_MAX = 32            # in vain, into /proc, per tick
    BACK_OFF_NS = 20000000
    HANDSHAKE_MS = 2          # for those who have begun to connect when a listener closes: enough for a local network
    HANDSHAKE_TRIES = 8
    VAIN_MAX = 8              # who shares the socket with us takes a connection now and then that we were told of
    TCP_FLAGS_AT = 13
    TCP_SYN_FLAG = 2

cdef enum:
    READY = 0
    WAITING = 1
    BLOCKED = 2
    PROBED = 3
    BROKEN = 4
    ORPHANED = 5
    PLACES = 6

cdef enum:
    CHANNEL_TAG = 1           # in the lowest bit of an event's pointer: it is a Channel, and no ListenerState

cdef struct Link:
    Link *next
    Link *previous

cdef struct Channel:
    Link link                 # first, so that a Link is a Channel
    Link unsettled            # second, see channel_of
    ListenerState *listener
    int send_fd
    int receive_fd
    Slot *slot
    pid_t pid                 # of the worker's process; 0: not known
    uint32_t cell
    int place                 # the ring that it is on
    bint watched              # the epoll tells of what is consumed
    bint broken
    bint relieves             # it got what was taken back from another one, and has not made progress since
    uint64_t sent             # on the scale of slot.consumed[cell]
    uint64_t seen             # consumed, at the last look
    uint64_t since_ns         # when it last made progress, or got something to make progress with
    uint64_t runs_ns          # how long after that its worker was still running, at the last look

cdef struct ListenerState:
    Link rings[PLACES]
    ListenerState *next
    int fd
    bint armed
    bint closed
    uint64_t rests_until_ns
    uint64_t served           # the wake-up in which it was served last
    int vain                  # wake-ups for nothing, since the last connection
    Connection held           # taken, but nobody had room: it goes first. fd is -1 when there is none

cdef struct Balancer:
    pthread_mutex_t mutex
    pthread_t thread
    bint running
    bint stopping
    bint watching             # something is unsettled or resting: tick
    int epoll
    int wake
    uint64_t now_ns
    uint64_t ticked_ns
    int tick_ms
    uint64_t max_pending
    uint64_t asleep_ns
    uint64_t busy_ns
    uint64_t patience_ns      # with workers that sleep: asleep_ns, or more while taking back helps nobody
    int looks                 # in vain, left in this tick
    int looks_granted         # at its beginning
    Link unsettled            # channels that the ticks look after
    ListenerState *listeners
    Link detached             # channels that outlive their listener: their workers still take what lies in them
    # Freed by the thread, which may have events of them in hand.
    ListenerState *closed
    Link gone
    # figures
    uint64_t wakeups
    uint64_t accept_failures
    uint64_t taken_back
    uint64_t lost

cdef Balancer balancer
memset(&balancer, 0, sizeof(balancer))
balancer.epoll = -1
balancer.wake = -1
balancer.asleep_ns = ASLEEP_NS
balancer.busy_ns = BUSY_NS
balancer.patience_ns = ASLEEP_NS
balancer.looks_granted = LOOKS_MAX
pthread_mutex_init(&balancer.mutex, NULL)
ring_init(&balancer.unsettled)
ring_init(&balancer.detached)
ring_init(&balancer.gone)


cdef void ring_init(Link *ring) noexcept nogil:
    ring.next = ring.previous = ring


cdef void ring_append(Link *ring, Link *link) noexcept nogil:
    link.previous = ring.previous
    link.next = ring
    ring.previous.next = link
    ring.previous = link


cdef void ring_remove(Link *link) noexcept nogil:
    link.previous.next = link.next
    link.next.previous = link.previous
    link.next = link.previous = link


cdef Channel *channel_of(Link *unsettled) noexcept nogil:
    return <Channel *>(unsettled - 1)


cdef bint has(ListenerState *listener, int place) noexcept nogil:
    return listener.rings[place].next != &listener.rings[place]


cdef Channel *first(ListenerState *listener, int place) noexcept nogil:
    return <Channel *>listener.rings[place].next


cdef uint64_t pending(Channel *channel) noexcept nogil:
    """What the worker has not consumed. The worker may have written anything: no answer here can harm more than it."""
    cdef uint64_t consumed = load(&channel.slot.consumed[channel.cell])
    return channel.sent - consumed if channel.sent - consumed <= channel.sent else 0


cdef void arm(ListenerState *listener, bint armed) noexcept nogil:
    cdef epoll_event event
    if listener.armed != armed and not listener.closed:
        # Edge-triggered, or a socket that somebody shuts down would wake us for ever: that is told, asked for or not.
        event.events = EPOLLIN if armed else <uint32_t>EPOLLET
        event.data.u64 = <uint64_t>listener
        epoll_ctl(balancer.epoll, EPOLL_CTL_MOD, listener.fd, &event)
        listener.armed = armed


cdef void rest(ListenerState *listener) noexcept nogil:
    balancer.accept_failures += 1
    balancer.watching = True
    listener.rests_until_ns = balancer.now_ns + BACK_OFF_NS
    arm(listener, False)


cdef void watch(Channel *channel, bint wanted) noexcept nogil:
    """Have the epoll tell of what is consumed from now on; it tells of something once at first."""
    cdef epoll_event event
    if channel.watched != wanted:
        event.events = EPOLLOUT | EPOLLET
        event.data.u64 = <uint64_t>channel | CHANNEL_TAG
        # Without a watch (ENOMEM, ENOSPC) the ticks look after it.
        channel.watched = epoll_ctl(balancer.epoll, EPOLL_CTL_ADD if wanted else EPOLL_CTL_DEL, channel.send_fd,
                                    &event) == 0 and wanted


cdef void unsettle(Channel *channel) noexcept nogil:
    if channel.unsettled.next == &channel.unsettled:
        ring_append(&balancer.unsettled, &channel.unsettled)
        balancer.watching = True


cdef void settle(Channel *channel) noexcept nogil:
    ring_remove(&channel.unsettled)


cdef void begin_waiting(Channel *channel) noexcept nogil:
    """From now on count how long its worker makes no progress."""
    channel.since_ns = balancer.now_ns
    channel.runs_ns = 0


cdef void free_channel(Channel *channel) noexcept nogil:
    watch(channel, False)
    settle(channel)
    channel.listener = NULL
    ring_remove(&channel.link)
    close(channel.send_fd)
    close(channel.receive_fd)
    ring_append(&balancer.gone, &channel.link)


cdef uint64_t limit_of(ListenerState *listener) noexcept nogil:
    """How many may wait in a ready channel."""
    return min(balancer.max_pending, <uint64_t>SCARCE_LIMIT) if has(listener, BLOCKED) else balancer.max_pending


cdef void move(Channel *channel, int place) noexcept nogil:
    """Put a channel at the end of a ring of its listener."""
    cdef ListenerState *listener = channel.listener
    channel.place = place
    ring_remove(&channel.link)
    ring_append(&listener.rings[place], &channel.link)
    watch(channel, place == BLOCKED or place == PROBED or (place == WAITING and limit_of(listener) < WATCH_LIMIT))
    if place < BROKEN:
        unsettle(channel)
    else:
        settle(channel)


cdef Channel *next_channel(ListenerState *listener) noexcept nogil:
    """The channel whose turn it is, or NULL when none has room."""
    cdef Channel *channel
    cdef uint64_t limit = limit_of(listener)
    while has(listener, READY):
        channel = first(listener, READY)
        if pending(channel) < limit:
            return channel
        move(channel, WAITING)
    if has(listener, WAITING):
        # The limit may have risen, or no tick come yet.
        channel = first(listener, WAITING)
        if pending(channel) < limit:
            move(channel, READY)
            return channel
    return NULL


cdef Channel *next_storage(ListenerState *listener) noexcept nogil:
    """A blocked channel with room, when all are blocked, or NULL."""
    cdef int place = PROBED if has(listener, PROBED) else BLOCKED
    if has(listener, WAITING) or not has(listener, place):
        return NULL
    cdef Channel *channel = first(listener, place)
    return channel if not channel.broken and pending(channel) < balancer.max_pending else NULL


cdef int take_back(Channel *channel, Connection *connection) noexcept nogil:
    """Receive what the worker has not: the oldest connection. Returns 0 or -errno, -EAGAIN when nothing is left."""
    cdef int error
    cdef ssize_t length
    while True:
        error = find_descriptor()
        if error < 0:
            return error
        length = receive_connection(channel.receive_fd, connection)
        if length == -EINTR:
            continue
        if length <= 0:
            return -EAGAIN if length == 0 else <int>length
        channel.sent -= 1
        if length == PROBE_SIZE:
            continue
        if channel.slot != NULL:
            add(&channel.slot.dispatched, <uint64_t>-1)
        if connection.fd >= 0:
            balancer.taken_back += 1
            return 0
        balancer.lost += 1


cdef bint is_empty(Channel *channel) noexcept nogil:
    """Whether nothing lies in the channel, whatever its worker says."""
    cdef char byte
    return recv(channel.receive_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and errno == EAGAIN


cdef void break_off(Channel *channel) noexcept nogil:
    """Its worker has shut its end down: it gets nothing more. What lies in it is for the others."""
    channel.broken = True
    move(channel, BLOCKED)


cdef void leave_probe(Channel *channel) noexcept nogil:
    """Put a blocked channel that has been emptied where its worker brings it back from."""
    cdef Connection probe
    cdef int error
    if channel.broken:
        move(channel, BROKEN)
        return
    if pending(channel) >= min(balancer.max_pending, <uint64_t>RECEIVE_BATCH + 1):
        # Nothing lies in it, and no more than a batch can be received and not counted yet: somebody has written there.
        # Or it was full, and what is received is about to be counted: look_after puts that right.
        channel.sent = load(&channel.slot.consumed[channel.cell])
    probe.fd = -1
    error = send_connection(channel.send_fd, &probe)
    if error == 0:
        channel.sent += 1
        move(channel, PROBED)
    elif error == -EPIPE:
        channel.broken = True
        move(channel, BROKEN)
    else:
        begin_waiting(channel)
        move(channel, WAITING)  # no memory: it seems to be ready again with the next tick


cdef int next_connection(ListenerState *listener, Connection *connection, bint relieve, bint told) noexcept nogil:
    """What waits the longest: held, orphaned, in blocked channels, or new. Returns 0 or -errno, -EAGAIN for nothing.

    `told`: the epoll has told of a new one, and nothing has been accepted since.
    """
    cdef Channel *channel
    cdef pollfd watched
    cdef int error
    if listener.held.fd >= 0:
        connection[0] = listener.held
        listener.held.fd = -1
        return 0
    while has(listener, ORPHANED):
        error = take_back(first(listener, ORPHANED), connection)
        if error != -EAGAIN:
            return error
        free_channel(first(listener, ORPHANED))
    while relieve and has(listener, BLOCKED):
        channel = first(listener, BLOCKED)
        error = take_back(channel, connection)
        if error == 0:
            move(channel, BLOCKED)  # the next time, the oldest of the next one
        if error != -EAGAIN:
            return error
        leave_probe(channel)
    if listener.closed:
        return -EAGAIN
    if not told:
        # An accept4 that fails has made a socket and a file by then, and costs several times as much as this look. And
        # where a worker has let the socket block, it would wait, with the mutex held.
        watched.fd = listener.fd
        watched.events = POLLIN
        if poll(&watched, 1, 0) == 0:
            return -EAGAIN
    while True:
        connection.length = sizeof(connection.peer)
        # Blocking, as accept(2) gives it: a server that wants it otherwise says so, with or without us.
        connection.fd = accept4(listener.fd, <sockaddr *>&connection.peer, &connection.length, SOCK_CLOEXEC)
        if connection.fd >= 0:
            return 0
        if errno != EINTR and errno != ECONNABORTED and errno != EPROTO:
            return -errno


cdef int deliver(Channel *channel, Connection *connection) noexcept nogil:
    """Put a connection into a channel, which is to be moved then, and close ours.

    Returns 0, or -errno with the connection still ours.
    """
    cdef int error
    # Before it can be received, so that a worker never has received more than it was given.
    add(&channel.slot.dispatched, 1)
    error = send_connection(channel.send_fd, connection)
    if error < 0:
        add(&channel.slot.dispatched, <uint64_t>-1)
        return error
    close(connection.fd)
    if pending(channel) == 0:
        begin_waiting(channel)
    channel.sent += 1
    balancer.tick_ms = 1
    return 0


cdef void serve(ListenerState *listener, bint told) noexcept nogil:
    """Hand over what waits on this listener until nothing does, nobody has room, or the batch is done.

    `told`: the epoll has told of a new connection, with this wake-up.
    """
    cdef Connection connection
    cdef Channel *channel
    cdef bint ready
    cdef uint64_t taken_back
    cdef int error
    cdef int i
    told = told and listener.served != balancer.wakeups  # else an event of a channel has had it accepted, perhaps
    listener.served = balancer.wakeups
    for i in range(BATCH):
        channel = next_channel(listener)
        ready = channel != NULL
        if not ready:
            channel = next_storage(listener)
            if channel == NULL:
                arm(listener, False)
                return
        taken_back = balancer.taken_back
        error = next_connection(listener, &connection, ready, told and i == 0)
        if error == -EAGAIN:
            if told and i == 0:
                if listener.vain == VAIN_MAX:
                    rest(listener)  # a Unix socket that somebody has shut down is always ready, and never fails
                    return
                listener.vain += 1
            if ready and pending(channel) >= PLENTY:
                arm(listener, False)
                balancer.tick_ms = 1
                balancer.watching = True
            return
        if error < 0:
            rest(listener)
            return
        listener.vain = 0
        error = deliver(channel, &connection)
        if error == 0:
            channel.relieves |= balancer.taken_back != taken_back
            move(channel, READY if ready else BLOCKED)
            continue
        listener.held = connection
        if error == -ENOBUFS or error == -ENOMEM or error == -ETOOMANYREFS:
            rest(listener)  # too little memory, or too many descriptors in flight: either passes
            return
        if error == -EAGAIN:
            move(channel, BLOCKED)  # its buffer is full, whatever its worker says that it has consumed
        else:
            break_off(channel)
    balancer.watching = True  # there may be more, that no event tells of


cdef bint thread_sleeps(int directory, const char *name) noexcept nogil:
    cdef char text[128]       # a number, a name of 15 bytes at most, and the state; see proc_pid_stat(5)
    cdef char path[264]       # a name of 255 bytes at most, as far as the compiler knows
    cdef ssize_t length
    cdef int fd
    snprintf(path, sizeof(path), b"%s/stat", name)
    fd = openat(directory, path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return errno == ENOENT  # it has ended meanwhile
    length = read(fd, text, sizeof(text))
    close(fd)
    while length > 0 and text[length - 1] != c")":
        length -= 1
    return length > 0 and length + 1 < <ssize_t>sizeof(text) and text[length + 1] != c"R"


cdef bint sleeps(pid_t pid) noexcept nogil:
    """Whether no thread of a process runs or waits for a processor; False when there is no telling."""
    cdef uint64_t entries[128]
    cdef char path[32]
    cdef linux_dirent64 *entry
    cdef long length, at
    cdef bint result = True
    # Its first thread alone: most often it is the one that accepts, and the directory is the dear part.
    snprintf(path, sizeof(path), b"/proc/%d", <int>pid)
    if not thread_sleeps(AT_FDCWD, path):
        return False
    snprintf(path, sizeof(path), b"/proc/%d/task", <int>pid)
    cdef int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if directory < 0:
        return False
    while result:
        length = syscall(SYS_getdents64, directory, entries, sizeof(entries))
        if length <= 0:
            result = length == 0
            break
        at = 0
        while at < length and result:
            entry = <linux_dirent64 *>(<char *>entries + at)
            result = entry.d_name[0] == c"." or thread_sleeps(directory, entry.d_name)
            at += entry.d_reclen
    close(directory)
    return result


cdef bint is_blocked(Channel *channel) noexcept nogil:
    """Whether a worker is not going to take what is pending soon."""
    cdef uint64_t age_ns = balancer.now_ns - channel.since_ns
    if age_ns >= balancer.busy_ns:
        return True
    # A look is dear. Who runs, or waits for a processor, is looked at again when twice the time has gone by.
    if age_ns < max(balancer.patience_ns, 2 * channel.runs_ns) or channel.pid == 0 or balancer.looks == 0:
        return False
    if sleeps(channel.pid):
        balancer.looks = balancer.looks_granted = LOOKS_MAX
        if channel.relieves:
            channel.relieves = False
            balancer.patience_ns = min(2 * balancer.patience_ns, balancer.busy_ns)
        return True
    balancer.looks -= 1
    channel.runs_ns = age_ns
    settle(channel)
    unsettle(channel)  # at the end of the ring: the next look is for another one
    return False


cdef bint look_after(Channel *channel) noexcept nogil:
    """See what has been consumed, and put the channel where it belongs. Returns whether it wants a tick."""
    cdef uint64_t consumed = load(&channel.slot.consumed[channel.cell])
    cdef uint64_t left = pending(channel)
    cdef bint moves = consumed != channel.seen
    if channel.broken:
        return False
    if moves:
        channel.seen = consumed
        if <int64_t>(consumed - channel.sent) > 0:
            # What had been received when we looked (see leave_probe), and was not counted yet.
            channel.sent = consumed
        begin_waiting(channel)
        if channel.relieves:
            channel.relieves = False
            balancer.patience_ns -= (balancer.patience_ns - balancer.asleep_ns) // PATIENCE_STEPS
        balancer.tick_ms = 1
        if channel.place == BLOCKED or channel.place == PROBED:
            move(channel, WAITING)
    if channel.place == WAITING and left < limit_of(channel.listener):
        move(channel, READY)
    if channel.place == BLOCKED or channel.place == PROBED:
        return not channel.watched
    if left > 0 and not moves and is_blocked(channel):
        if is_empty(channel):
            leave_probe(channel)
        else:
            move(channel, BLOCKED)
        return not channel.watched
    return left > 0


cdef void look_after_unsettled() noexcept nogil:
    cdef Link *link = balancer.unsettled.next
    cdef Link *following
    while link != &balancer.unsettled:
        following = link.next
        if not look_after(channel_of(link)):
            settle(channel_of(link))
        link = following


cdef void attend(ListenerState *listener) noexcept nogil:
    """Go on accepting where there is room, and place what waits here."""
    if balancer.now_ns < listener.rests_until_ns or listener.closed:
        return
    if next_channel(listener) == NULL and next_storage(listener) == NULL:
        return
    arm(listener, True)
    if listener.held.fd >= 0 or has(listener, ORPHANED) or has(listener, BLOCKED):
        serve(listener, False)


cdef void tick() noexcept nogil:
    """Look at what is unsettled, and at every listener: what has been consumed, who is blocked, who may go on."""
    cdef ListenerState *listener = balancer.listeners
    cdef bint resting = False
    balancer.ticked_ns = balancer.now_ns
    balancer.watching = False
    balancer.looks = balancer.looks_granted
    balancer.tick_ms = min(2 * balancer.tick_ms, TICK_MAX_MS)
    look_after_unsettled()
    if balancer.looks < balancer.looks_granted:
        balancer.looks_granted = max(balancer.looks_granted // 2, 1)
    else:
        balancer.looks_granted = min(2 * balancer.looks_granted, <int>LOOKS_MAX)
    while listener != NULL:
        resting |= balancer.now_ns < listener.rests_until_ns
        attend(listener)
        listener = listener.next
    balancer.watching |= resting or balancer.unsettled.next != &balancer.unsettled


cdef void notice(Channel *channel, uint32_t events) noexcept nogil:
    """The epoll tells of a channel that is watched."""
    if channel.listener == NULL or channel.broken or not channel.watched:
        return
    if events & (EPOLLERR | EPOLLHUP):
        break_off(channel)
    else:
        if look_after(channel):  # which sets balancer.watching itself, where a channel becomes unsettled
            unsettle(channel)
        # The numbers may have been written over: what has left the channel is consumed in any case.
        if channel.place == PROBED and is_empty(channel):
            move(channel, READY)  # the probe has been received, and is perhaps not counted yet
        elif channel.place == BLOCKED and is_empty(channel):
            leave_probe(channel)
    attend(channel.listener)


cdef void free_closed() noexcept nogil:
    cdef ListenerState *listener
    cdef Link *link
    while balancer.closed != NULL:
        listener = balancer.closed
        balancer.closed = listener.next
        free(listener)
    while balancer.gone.next != &balancer.gone:
        link = balancer.gone.next
        ring_remove(link)
        free(<Channel *>link)


cdef void *balance(void *nothing) noexcept nogil:
    """The balancer thread."""
    cdef epoll_event events[BATCH]
    cdef ListenerState *listener
    cdef uint64_t signals
    cdef int count, i
    cdef int timeout_ms = -1
    cdef bint changed
    prctl(PR_SET_NAME, <unsigned long><const char *>b"pycluster-bal", 0, 0, 0)
    cdef sched_param priority
    priority.sched_priority = 0
    sched_setscheduler(0, SCHED_BATCH, &priority)
    while True:
        count = epoll_wait(balancer.epoll, events, BATCH, timeout_ms)
        pthread_mutex_lock(&balancer.mutex)
        if balancer.stopping:
            pthread_mutex_unlock(&balancer.mutex)
            return NULL
        balancer.now_ns = now_ns()
        balancer.wakeups += 1
        changed = False
        for i in range(count):
            listener = <ListenerState *>events[i].data.u64
            if listener == NULL:
                changed = True
                read(balancer.wake, &signals, sizeof(signals))
            elif <uint64_t>listener & CHANNEL_TAG:
                notice(<Channel *>(<uint64_t>listener & ~<uint64_t>CHANNEL_TAG), events[i].events)
            elif listener.armed and not listener.closed:
                serve(listener, True)
        if changed or (balancer.watching
                       and balancer.now_ns - balancer.ticked_ns >= <uint64_t>balancer.tick_ms * TICK_NS):
            tick()
        free_closed()
        timeout_ms = balancer.tick_ms if balancer.watching else -1
        pthread_mutex_unlock(&balancer.mutex)


cdef void lock() noexcept nogil:
    pthread_mutex_lock(&balancer.mutex)


cdef void unlock() noexcept nogil:
    pthread_mutex_unlock(&balancer.mutex)


cdef void wake_balancer() noexcept nogil:
    cdef uint64_t one = 1
    write(balancer.wake, &one, sizeof(one))  # an eventfd takes it, or is readable already


def start_balancer(uint64_t max_pending):
    """Start the balancer thread. Primary only. `max_pending` is per worker and listener, from now on.

    Raises:
      OSError: nothing has been started.
    """
    cdef epoll_event event
    cdef int error
    with nogil:
        lock()
        balancer.max_pending = max_pending
        unlock()
    if balancer.running:
        return
    balancer.epoll = epoll_create1(EPOLL_CLOEXEC)
    balancer.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    event.events = EPOLLIN
    event.data.u64 = 0
    if balancer.epoll < 0 or balancer.wake < 0 or epoll_ctl(balancer.epoll, EPOLL_CTL_ADD, balancer.wake, &event) < 0:
        error = -errno
    else:
        balancer.stopping = False
        balancer.watching = False
        balancer.tick_ms = 1
        error = start_thread(&balancer.thread, balance)
    if error < 0:
        close_balancer_descriptors()
        raise system_error("starting the balancer", -error)
    balancer.running = True


cdef void close_balancer_descriptors() noexcept nogil:
    if balancer.epoll >= 0:
        close(balancer.epoll)
    if balancer.wake >= 0:
        close(balancer.wake)
    balancer.epoll = balancer.wake = -1


def stop_balancer():
    """End the balancer thread and wait for it. Every Listener has been closed before."""
    if not balancer.running:
        return
    with nogil:
        lock()
        balancer.stopping = True
        unlock()
        wake_balancer()
        pthread_join(balancer.thread, NULL)
        free_closed()
        close_balancer_descriptors()
    balancer.running = False


def lock_balancer():
    """Before a fork: no child may start with a copy of the mutex locked, or with a connection in transit."""
    with nogil:
        lock()


def unlock_balancer():
    """After a fork, in the parent."""
    unlock()


def abandon_balancer():
    """After a fork, in the child: close the copies of the balancer's descriptors, and let the mutex be free.

    Its thread was not copied. Idempotent: a child's child has nothing to close, but a mutex that is locked.
    """
    cdef ListenerState *listener = balancer.listeners
    cdef int place
    while listener != NULL:
        for place in range(PLACES):
            abandon_ring(&listener.rings[place])
        if listener.held.fd >= 0:
            close(listener.held.fd)
        listener = listener.next
    abandon_ring(&balancer.detached)
    ring_init(&balancer.detached)
    close_balancer_descriptors()
    ring_init(&balancer.unsettled)
    balancer.listeners = balancer.closed = NULL
    balancer.running = False
    pthread_mutex_init(&balancer.mutex, NULL)


cdef void abandon_ring(Link *ring) noexcept nogil:
    cdef Link *link = ring.next
    while link != ring:
        close((<Channel *>link).send_fd)
        close((<Channel *>link).receive_fd)
        link = link.next


def set_patience(double asleep_s, double busy_s):
    """How long nothing may be consumed before a worker counts as blocked; for measurements. inf: it never does."""
    cdef double longest_s = 1e9
    with nogil:
        lock()
        balancer.asleep_ns = balancer.patience_ns = <uint64_t>(min(asleep_s, longest_s) * 1e9)
        balancer.busy_ns = <uint64_t>(min(busy_s, longest_s) * 1e9)
        unlock()


def balancer_figures():
    """What the balancer has done: wake-ups, failures to accept, connections taken back and lost. And its patience."""
    with nogil:
        lock()
    figures = {
        "wakeups": balancer.wakeups,
        "accept_failures": balancer.accept_failures,
        "taken_back": balancer.taken_back,
        "lost": balancer.lost,
        "patience_ns": balancer.patience_ns,
    }
    unlock()
    return figures


cdef class Listener:
    """A listening descriptor (borrowed) whose connections the balancer hands to the listener's channels."""

    cdef ListenerState *state

    def __init__(self, int fd):
        """`fd` listens already, and is non-blocking. The balancer has been started.

        Raises:
          OSError: nothing has been changed.
        """
        cdef epoll_event event
        cdef int error = 0
        cdef int place
        cdef ListenerState *state = <ListenerState *>calloc(1, sizeof(ListenerState))
        if state == NULL:
            raise MemoryError
        for place in range(PLACES):
            ring_init(&state.rings[place])
        state.fd = fd
        state.held.fd = -1
        event.events = EPOLLET  # see arm()
        event.data.u64 = <uint64_t>state
        with nogil:
            lock()
            if epoll_ctl(balancer.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
                error = errno
            else:
                state.next = balancer.listeners
                balancer.listeners = state
            unlock()
        if error:
            free(state)
            raise system_error("epoll_ctl", error)
        self.state = state

    def add_channel(self, uint32_t slot):
        """Open a channel to the worker that has `slot`; from now on it gets its share of the connections.

        Raises:
          OSError: EMFILE when the worker has CHANNELS_PER_WORKER listeners open, or the process no descriptor left.
        """
        return HandoffChannel(self, slot)

    def export(self):
        """What the next image of this process needs to `adopt`, beside the channels. Under `lock_balancer`.

        Returns:
          `(held, orphans)`: a connection in transit, `(fd, peer)`, or None; and of each channel whose worker is gone
          `(send_fd, receive_fd, slot, sent)`, the slot being -1 when it is not counted. All descriptors are borrowed.
        """
        cdef ListenerState *state = self.state
        cdef Link *link = state.rings[ORPHANED].next
        cdef Channel *channel
        held = None
        orphans = []
        if state.held.fd >= 0:
            held = state.held.fd, (<char *>&state.held.peer)[:state.held.length]
        while link != &state.rings[ORPHANED]:
            channel = <Channel *>link
            slot = -1
            if channel.slot != NULL:
                slot = (<char *>channel.slot - <char *>slot_at(0)) // <int64_t>slot_size
            orphans.append((channel.send_fd, channel.receive_fd, slot, channel.sent))
            link = link.next
        return held, orphans

    def adopt(self, held, orphans):
        """Own what the last image of this process has exported of a listener. Before its channels are added."""
        cdef ListenerState *state = self.state
        cdef Channel *channel
        cdef const char *peer
        lock_balancer()
        try:
            if held is not None:
                state.held.length = min(<size_t>len(held[1]), sizeof(state.held.peer))
                peer = held[1]
                memcpy(&state.held.peer, peer, state.held.length)
                state.held.fd = held[0]
            for send_fd, receive_fd, slot, sent in orphans:
                channel = <Channel *>calloc(1, sizeof(Channel))
                if channel == NULL:
                    raise MemoryError
                channel.listener = state
                channel.send_fd = send_fd
                channel.receive_fd = receive_fd
                channel.slot = slot_at(slot) if slot >= 0 else NULL
                channel.sent = sent
                channel.place = ORPHANED
                ring_init(&channel.unsettled)
                ring_append(&state.rings[ORPHANED], &channel.link)
        finally:
            unlock_balancer()

    def close(self, bint for_good=False):
        """Stop accepting; what the kernel has accepted by now still goes to the channels, whether full or not.

        The channels stay usable by their workers. `for_good`: no other process has the socket, and the caller closes
        the descriptor after this; nobody is connected any more.
        """
        cdef ListenerState *state = self.state
        cdef ListenerState **place = &balancer.listeners
        cdef pollfd watched
        cdef int tries = 0
        cdef int ring
        if state == NULL:
            return
        self.state = NULL
        with nogil:
            lock()
            balancer.now_ns = now_ns()
            if for_good:
                turn_away(state.fd)
            empty_backlog(state)
            watched.fd = state.fd
            watched.events = POLLIN
            while for_good and tries < HANDSHAKE_TRIES and poll(&watched, 1, HANDSHAKE_MS) > 0:
                empty_backlog(state)
                tries += 1
            epoll_ctl(balancer.epoll, EPOLL_CTL_DEL, state.fd, NULL)
            while has(state, ORPHANED):
                disown(first(state, ORPHANED))
                free_channel(first(state, ORPHANED))
            if state.held.fd >= 0:
                close(state.held.fd)
            for ring in range(PLACES):
                detach_all(&state.rings[ring])
            while place[0] != state:
                place = &place[0].next
            place[0] = state.next
            state.closed = True
            state.next = balancer.closed
            balancer.closed = state
            unlock()
            wake_balancer()


cdef void turn_away(int fd) noexcept nogil:
    """Let nobody begin to connect any more, without a word; who has begun may get through.

    Whoever connects between the last accept and the close would be reset after a connect that succeeded. This way it
    is not connected, tries again after a second, and is refused, or served by whoever listens then.
    """
    cdef sock_filter steps[4]
    cdef sock_fprog program
    memset(steps, 0, sizeof(steps))
    steps[0].code = BPF_LD | BPF_B | BPF_ABS
    steps[0].k = TCP_FLAGS_AT
    steps[1].code = BPF_JMP | BPF_JSET | BPF_K
    steps[1].k = TCP_SYN_FLAG
    steps[1].jf = 1                # else over the next step
    steps[2].code = steps[3].code = BPF_RET | BPF_K
    steps[3].k = 0xFFFFFFFF        # the whole packet; step 2 lets nothing through
    program.len = 4
    program.filter = steps
    setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program))  # a Unix socket has no packets to filter


cdef void empty_backlog(ListenerState *listener) noexcept nogil:
    """Hand over all that waits, in turn, full or not, as long as the channels' sockets take it.

    Nothing is taken back after this, so what lies in blocked channels goes to workers that work, as long as there are
    some, and nothing new goes to the blocked ones.
    """
    cdef Connection connection
    cdef Link *ring = &listener.rings[READY]
    cdef Link *link
    merge(listener, WAITING)
    while has(listener, READY) or merge_blocked(listener):
        if next_connection(listener, &connection, True, False) != 0:
            return
        link = ring.next
        while link != ring and deliver(<Channel *>link, &connection) < 0:
            link = link.next
        if link != ring:
            move(<Channel *>link, READY)
        elif merge_blocked(listener):
            listener.held = connection
        else:
            close(connection.fd)
            balancer.lost += 1
            return


cdef void merge(ListenerState *listener, int place) noexcept nogil:
    """Take these channels for ready ones."""
    while has(listener, place):
        move(first(listener, place), READY)


cdef bint merge_blocked(ListenerState *listener) noexcept nogil:
    """Take blocked channels for ready ones, too. Returns whether there were any."""
    cdef bint found = has(listener, BLOCKED) or has(listener, PROBED)
    merge(listener, BLOCKED)
    merge(listener, PROBED)
    return found


cdef void detach_all(Link *ring) noexcept nogil:
    cdef Link *link
    while ring.next != ring:
        link = ring.next
        watch(<Channel *>link, False)
        settle(<Channel *>link)
        (<Channel *>link).listener = NULL
        ring_remove(link)
        ring_append(&balancer.detached, link)


cdef class HandoffChannel:
    """The primary's side of one channel: where the balancer sends, and its duplicate of where the worker receives."""

    cdef Channel *state
    cdef readonly int receiver
    cdef readonly uint32_t cell
    cdef uint32_t slot

    def __init__(self, Listener listener, uint32_t slot, adopted=None):
        """Open a channel, or own the one that the last image of this process has exported."""
        cdef int fds[2]
        cdef Channel *state
        cdef int cell = adopted[2] if adopted is not None else free_cell(slot)
        if cell < 0:
            raise system_error(f"a worker can have {CHANNELS_PER_WORKER} listeners open", EMFILE)
        state = <Channel *>calloc(1, sizeof(Channel))
        if state == NULL:
            raise MemoryError
        if adopted is not None:
            fds[0] = adopted[0]
            fds[1] = adopted[1]
        elif socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0:
            free(state)
            raise system_error("socketpair", errno)
        cells_in_use[slot] |= <uint64_t>1 << cell
        state.send_fd = fds[0]
        state.receive_fd = self.receiver = fds[1]
        state.slot = slot_at(slot)
        state.pid = slot_pids[slot]
        state.cell = self.cell = cell
        state.seen = load(&state.slot.consumed[cell])
        state.sent = adopted[3] if adopted is not None else state.seen
        self.slot = slot
        self.state = state
        with nogil:
            lock()
            state.listener = listener.state
            state.since_ns = now_ns()
            ring_init(&state.link)
            ring_init(&state.unsettled)
            move(state, READY)
            unlock()
            wake_balancer()

    def export(self):
        """What the next image of this process needs to adopt it. Under `lock_balancer`.

        Returns:
          `(send_fd, receive_fd, cell, sent)`, or None when the channel is closed. The descriptors are borrowed.
        """
        if self.state == NULL:
            return None
        return self.state.send_fd, self.state.receive_fd, self.cell, self.state.sent

    @property
    def waits(self):
        """Whether connections wait for its worker: it has not taken them, or they were taken back from it."""
        cdef Channel *state = self.state
        cdef bint waits
        if state == NULL:
            return False
        with nogil:
            lock()
            waits = state.place == BLOCKED or state.place == PROBED or pending(state) > 0
            unlock()
        return waits

    def close(self):
        """Close the channel; what its worker has not taken goes to another one while the listener is open."""
        cdef Channel *state = self.state
        if state == NULL:
            return
        with nogil:
            lock()
            if state.listener == NULL:
                disown(state)  # nobody else can take what lies in it
                free_channel(state)
            elif is_empty(state):
                free_channel(state)
            else:
                move(state, ORPHANED)
                balancer.watching = True
            if not balancer.running:
                free_closed()
            unlock()
            if balancer.running:
                wake_balancer()
        self.state = NULL
        cells_in_use[self.slot] &= ~(<uint64_t>1 << self.cell)


# The primary's own notes, out of the reach of whoever writes to the region: a bit per cell of each slot, the worker's
# process, and which slots are given out.
cdef uint64_t *cells_in_use = NULL
cdef pid_t *slot_pids = NULL
cdef uint8_t *slot_in_use = NULL


cdef int free_cell(uint32_t slot) noexcept nogil:
    cdef int cell
    for cell in range(CHANNELS_PER_WORKER):
        if not cells_in_use[slot] >> cell & 1:
            return cell
    return -1


# ---- Part 4: slots and counters ----------------------------------------------------------------------------------
#
# A counter is a number in every slot, at the same index; each process adds to its own slot, so an add is one atomic
# instruction on a cache line that no other process writes. A total is the sum over the slots, taken by the reader.
# The index of a name is found or claimed by compare-and-swap on the name's hash, in the order of the table, by any
# process: no lock, so nobody can die holding one. Two names of the same 64-bit hash would be told apart by their text.
#
# Slots are given out and taken back by the primary's dispatching thread. The number of a dead worker is the sum's
# alone: it moves to slot 0 (see the region's theory of operation for how readers keep their totals right meanwhile).


def acquire_slot(uint64_t worker_id, uint64_t number=0):
    """Give a slot to a new worker, of that `number` (`Worker.slot`). Primary only. Returns its index.

    Raises:
      RuntimeError: all are in use; the caller has counted its workers before.
    """
    cdef uint32_t index
    cdef Slot *slot
    need_notes()
    for index in range(FIRST_WORKER_SLOT, FIRST_WORKER_SLOT + max_workers):
        slot = slot_at(index)
        if not slot_in_use[index]:
            slot_in_use[index] = True
            slot_pids[index] = 0
            slot.pid = 0
            slot.state = 0
            slot.number = number
            slot.started_at_ns = started_now()
            store(&slot.id, worker_id)
            if index >= region.slots_used:
                store(&region.slots_used, index + 1)
            return index
    raise RuntimeError("no slot is free")


def adopt_slot(uint32_t index):
    """Have a worker's slot in use that the last image of this process has given to it. Primary only."""
    need_notes()
    slot_in_use[index] = True


cdef int need_notes() except -1:
    global cells_in_use, slot_pids, slot_in_use
    if slot_in_use == NULL:
        cells_in_use = <uint64_t *>calloc(FIRST_WORKER_SLOT + max_workers, sizeof(uint64_t))
        slot_pids = <pid_t *>calloc(FIRST_WORKER_SLOT + max_workers, sizeof(pid_t))
        slot_in_use = <uint8_t *>calloc(FIRST_WORKER_SLOT + max_workers, 1)
        if cells_in_use == NULL or slot_pids == NULL or slot_in_use == NULL:
            raise MemoryError
    return 0


def describe_slot(uint32_t index, pid_t pid, uint64_t state):
    """Note a worker's pid, for channels that are opened later, and its state, for everybody's stats. Primary only."""
    cdef Slot *slot = slot_at(index)
    slot_pids[index] = pid
    slot.pid = pid
    slot.state = state


def release_slot(uint32_t index):
    """Move a dead worker's numbers to the totals and free its slot. Its channels have been closed. Primary only."""
    cdef Slot *slot = slot_at(index)
    slot_in_use[index] = False
    with nogil:
        lock()
        disown_orphans(slot)
        unlock()
        fold(slot, slot_at(RETIRED_SLOT))


cdef void disown(Channel *channel) noexcept nogil:
    """What lies in the channel is no longer counted as dispatched to its worker."""
    cdef char byte
    cdef uint64_t connections
    if channel.slot != NULL:
        connections = pending(channel)
        # A probe was put into an empty channel, so it comes first.
        if connections > 0 and recv(channel.receive_fd, &byte, 1, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT) == PROBE_SIZE:
            connections -= 1
        add(&channel.slot.dispatched, -connections)
        channel.slot = NULL


cdef void disown_orphans(Slot *slot) noexcept nogil:
    """The connections that still wait for another worker are no longer counted as dispatched to this one."""
    cdef ListenerState *listener = balancer.listeners
    cdef Channel *channel
    cdef Link *link
    while listener != NULL:
        link = listener.rings[ORPHANED].next
        while link != &listener.rings[ORPHANED]:
            channel = <Channel *>link
            if channel.slot == slot:
                disown(channel)
            link = link.next
        listener = listener.next


cdef void fold(Slot *slot, Slot *retired) noexcept nogil:
    cdef uint64_t *source = counters_of(slot)
    cdef uint64_t *target = counters_of(retired)
    cdef uint32_t i
    store(&region.folding, region.folding + 1)
    __atomic_thread_fence(__ATOMIC_SEQ_CST)
    retired.dispatched += slot.dispatched
    retired.received += slot.received
    retired.direct += slot.direct
    retired.messages_in += slot.messages_in
    retired.messages_out += slot.messages_out
    for i in range(max_counters):
        target[i] += source[i]
    memset(slot, 0, slot_size)
    __atomic_thread_fence(__ATOMIC_SEQ_CST)
    store(&region.folding, region.folding + 1)


def enter_slot(uint32_t index):
    """Count in this slot from now on: a worker's first step."""
    settle_in(index)


def count_tick():
    """Count a tick of an event loop of this worker's, which runs in this thread."""
    add(&own_slot.ticks, 1)
    own_slot.thread = <uint64_t>PyThread_get_thread_ident()


def read_progress(uint32_t index):
    """What the worker in a slot shows of its progress: `(accepted, ticks, active, thread)`. Primary only."""
    cdef Slot *slot = slot_at(index)
    return load(&slot.received) + load(&slot.direct), load(&slot.ticks), load(&slot.active), load(&slot.thread)


def count_message_in():
    """Count a message of the user's that this process has received."""
    add(&own_slot.messages_in, 1)


def count_message_out():
    """Count a message of the user's that this process has sent."""
    add(&own_slot.messages_out, 1)


def read_slots():
    """All slots in use, read at one moment as far as folding goes: slot 0 (the dead), slot 1 (the primary), workers.

    Returns:
      A list of `(id, pid, state, dispatched, received, direct, active, messages_in, messages_out, started_at_ns,
      number)`.
    """
    cdef uint64_t before = 0
    cdef uint64_t index
    cdef uint64_t end_ns = now_ns() + FOLD_NS
    cdef Slot *slot
    while True:
        before = load(&region.folding)
        slots = []
        for index in range(load_slots_used()):
            slot = slot_at(index)
            if slot.id or index < FIRST_WORKER_SLOT:
                slots.append((load(&slot.id), load(&slot.pid), load(&slot.state), load(&slot.dispatched),
                              load(&slot.received), load(&slot.direct), load(&slot.active), load(&slot.messages_in),
                              load(&slot.messages_out), load(&slot.started_at_ns), load(&slot.number)))
        if (not before & 1 and load(&region.folding) == before) or now_ns() >= end_ns:
            return slots


cdef uint64_t load_slots_used() noexcept nogil:
    """How many slots to look at. Every process can write the header, so the number is checked."""
    cdef uint64_t used = load(&region.slots_used)
    cdef uint64_t limit = FIRST_WORKER_SLOT + max_workers
    return used if used <= limit else limit


cdef uint64_t hash_of(bytes text):
    """FNV-1a, never 0."""
    cdef uint64_t value = <uint64_t>0xCBF29CE484222325
    cdef uint8_t byte
    for byte in text:
        value = (value ^ byte) * <uint64_t>0x100000001B3
    return value or 1


cdef class Counter:
    """A number that all processes of the cluster add to, in shared memory.

    Made by `cluster.counter(name)`. Safe in any process and thread.
    """

    cdef readonly str name
    cdef uint32_t index

    def __init__(self, str name):
        """
        Raises:
          ValueError: the name is empty or longer than 63 bytes in UTF-8.
          LookupError: the table of names is full.
        """
        self.name = name
        self.rejoin()

    def rejoin(self):
        """Find its place in the region that is mapped now.

        Raises: as `Counter` does.
        """
        cdef bytes text = self.name.encode()
        cdef uint64_t wanted, found
        cdef Name *entry
        cdef uint32_t index
        if not 0 < len(text) < NAME_SIZE:
            raise ValueError(f"a counter's name has 1 to {NAME_SIZE - 1} bytes, not {len(text)}: {self.name!r}")
        wanted = hash_of(text)
        for index in range(max_counters):
            entry = name_at(index)
            found = 0
            if __atomic_compare_exchange_n(&entry.hash, &found, wanted, False, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE):
                found = wanted
            if found != wanted:
                continue
            # Whoever claimed the entry may not have written the name yet, or have died: the same bytes, once more.
            if load(&entry.length) == 0:
                memcpy(entry.text, <const char *>text, len(text))
                store(&entry.length, len(text))
            if load(&entry.length) == <uint64_t>len(text) and memcmp(entry.text, <const char *>text, len(text)) == 0:
                self.index = index
                return
        raise LookupError(self.name)

    def add(self, int64_t n=1):
        """Add n to this process's share: one atomic instruction, no lock, no system call."""
        __atomic_fetch_add(own_counters + self.index, <uint64_t>n, __ATOMIC_RELAXED)

    @property
    def value(self):
        """The total over all processes, dead ones included."""
        cdef uint64_t before, slot
        cdef uint64_t end_ns = 0
        cdef uint64_t total
        while True:
            before = load(&region.folding)
            total = 0
            for slot in range(load_slots_used()):
                total += load(counters_of(slot_at(slot)) + self.index)
            if not before & 1 and load(&region.folding) == before:
                return <int64_t>total
            if end_ns == 0:
                end_ns = now_ns() + FOLD_NS
            elif now_ns() >= end_ns:
                return <int64_t>total

    @property
    def by_worker(self):
        """The share of each living worker by its id; the primary's own stands under 0 where it has counted."""
        cdef uint64_t index
        cdef int64_t share
        cdef Slot *slot
        shares = {}
        for index in range(PRIMARY_SLOT, load_slots_used()):
            slot = slot_at(index)
            share = <int64_t>load(counters_of(slot) + self.index)
            if slot.id or (index == PRIMARY_SLOT and share):
                shares[slot.id] = share
        return shares

    def __repr__(self):
        return f"<Counter {self.name!r}: {self.value}>"


# ---- Part 5: the control channel's frames ------------------------------------------------------------------------
#
# A frame is a header of 8 bytes, little-endian, and a payload:
#
#   0  uint32  length of the payload      4  uint8  kind      5  uint8  number of descriptors, 0 or 1      6  uint16  0
#
# A descriptor comes as SCM_RIGHTS with the first byte of its frame. This part cuts and joins frames and makes the
# system calls; what is in them, and what happens when one comes or fails, is the Python layer's.
#
# The GIL is the lock: all of a `Wire` is done under it, no system call here waits, and nothing in the middle of a
# change runs other people's code (objects that the collector tracks are only made, and references only dropped, when
# the wire is in order). Letting go of the GIL around a call of a microsecond would be worse than keeping it: in a
# worker whose main thread computes, getting it back takes up to a switch interval (5 ms).
#
# When is a frame written? At once, by the thread that sends it, as long as the socket has room: then it never waits for
# a handler that computes or for another thread, and a single message in flight takes the shortest way. Once the socket
# is full, frames wait in the ring, and many of them go with one system call: when epoll tells the owner that there is
# room again, or when the sender has added RETRY_SIZE bytes, which makes a thread that sends in a loop independent of
# the owner's thread getting the GIL. So frames are batched exactly while the peer is the slower one, which is when
# batching pays, and no frame waits for anything but room.

cdef enum:
    FRAME_HEADER_SIZE = 8
    CONTROL_FRAME = 0
    MESSAGE_FRAME = 1
    CONTROL_LIMIT_SIZE = 65536   # the library's own frames are a few hundred bytes
    GATHER_SIZE = 32768          # small frames are copied together: one buffer costs the kernel less than many parts
    RETRY_SIZE = 32768
    # Bytes written in one go, so that a peer that reads as fast as we write keeps nobody else waiting.
    WRITE_LIMIT = 1048576
    # Unix sockets copy: larger reads save no time. Of this, only what messages fill is ever touched.
    READ_BUFFER_SIZE = 262144
    # CMSG_SPACE(253 * sizeof(int)), rounded up: no more descriptors come at a time (SCM_MAX_FD in the kernel).
    RIGHTS_SIZE = 1040

cdef struct Outgoing:
    PyObject *payload            # bytes
    PyObject *callback           # NULL for none
    size_t done                  # bytes of header and payload that are written
    int fd                       # -1 for none, or once it is on its way
    uint8_t header[FRAME_HEADER_SIZE]

cdef union Rights:
    uint64_t align
    char bytes[RIGHTS_SIZE]

cdef char gathered[GATHER_SIZE]
cdef uint64_t no_bell = 0

# To be woken costs a process up to 50 us on an idle virtual machine (its processor was halted), ten times what handling
# a message takes. So whoever has waited for the last event for less than SPIN_NS looks for the next one for so long
# before it sleeps: that is while some 10 000 events come in a second, when falling asleep and waking up would take most
# of a processor, too. Every look lets others have the processor first. When they take it, it is not idle, so that
# spinning gains nothing; and a spinner queues behind them, where a sleeper that is woken is let in front. So then there
# is no spinning for a while: a short one after an interruption, twice as long each time that the next one follows soon,
# so that lasting work of others costs next to nothing, and what passes does not cost half a second of round trips.
cdef enum:
    SPIN_NS = 100000
    SLOW_YIELD_NS = 2000         # sched_yield alone takes 300 ns, there and back to another process twice this
    SLOW_YIELDS = 8              # one after the other: not an interrupt, now and then
    HOG_NS = 50000               # and once is enough of this
    CROWD_MIN_NS = 1000000       # how long not to spin at first,
    CROWD_MAX_NS = 500000000     # and at most: with 50 ms, a third of the round trips were lost to lasting work
    CROWD_SPACING = 8            # the next one follows soon: within so many times the last one's length
    EVENTS_PER_WAIT = 64
    # The next message mostly comes where the last one did, and its sender rings a bell in shared memory once it is
    # written. A spinner listens there, and then reads right away: that costs less than to ask the epoll, which tells of
    # everything else. A bell is a hint: whatever rings there, a read decides. So long a spinner listens,
    BELL_LOOKS = 200             # between two questions to the epoll (about 0.2 us),
    HOT_STREAK = 8               # and so many messages in a row it takes without one
    FETCHED = -2                 # unlike anything that epoll_wait returns


cdef class Wire


cdef class Poll:
    """Waits for an epoll (borrowed), in one thread.

    That thread is the one that receives from the wires of this epoll, and closes them.
    """

    cdef readonly int epoll
    cdef Wire hot                # where the last message came from
    cdef int streak              # messages from there, without a look at the epoll
    cdef bint busy               # the last event came soon
    cdef int slow_yields
    cdef uint64_t crowd_ns
    cdef uint64_t crowded_until_ns

    def __init__(self, int epoll):
        self.epoll = epoll
        self.crowd_ns = CROWD_MIN_NS

    def wait(self, timeout):
        """What is ready, as `(fd, events)`; waited for up to `timeout` seconds (None: for ever).

        Raises:
          OSError: of epoll_wait(2).
        """
        cdef epoll_event events[EVENTS_PER_WAIT]
        cdef Wire hot = None
        cdef int timeout_ms = -1
        cdef int count, error, i
        cdef uint64_t began_ns = now_ns()
        cdef int64_t left_ns = -1
        if timeout is not None:
            left_ns = <int64_t>(min(max(timeout, 0.0), 1e6) * 1e9)
        while True:
            if left_ns >= 0:
                timeout_ms = <int>((max(<int64_t>0, left_ns - <int64_t>(now_ns() - began_ns)) + 999999) // 1000000)
            if timeout_ms != 0 and self.busy and self.hot is not None and self.streak < HOT_STREAK:
                hot = self.hot
                hot.make_room()
            with nogil:
                count = self.look(events, hot) if timeout_ms != 0 and self.busy else 0
                if count == 0:
                    count = epoll_wait(self.epoll, events, EVENTS_PER_WAIT, timeout_ms)
                error = errno
            if count == FETCHED:
                self.streak += 1
                return [(hot.fd, EPOLLIN)]
            if count >= 0:
                break
            if error != EINTR:
                raise system_error("epoll_wait", error)
            PyErr_CheckSignals()
        self.streak = 0
        self.hot = None
        self.busy = count > 0 and now_ns() - began_ns < SPIN_NS
        return [(<int>events[i].data.u64, events[i].events) for i in range(count)]

    cdef int look(self, epoll_event *events, Wire hot) noexcept nogil:
        """Spin for a while. Returns what epoll_wait does, or FETCHED when `hot` has something to receive."""
        cdef uint64_t before_ns, now = now_ns()
        cdef uint64_t end_ns = now + SPIN_NS
        cdef int count
        cdef int _i
        if now < self.crowded_until_ns:
            return 0
        while True:
            if hot is not None:
                for _i in range(BELL_LOOKS):
                    if load(hot.their_bell) != hot.heard:
                        if hot.fetch():
                            return FETCHED
                        break
            count = epoll_wait(self.epoll, events, EVENTS_PER_WAIT, 0)
            if count != 0 or now >= end_ns:
                return count
            before_ns = now
            sched_yield()
            now = now_ns()
            self.slow_yields = self.slow_yields + 1 if now - before_ns > SLOW_YIELD_NS else 0
            if self.slow_yields >= SLOW_YIELDS or now - before_ns > HOG_NS:
                self.slow_yields = 0
                if now - self.crowded_until_ns < CROWD_SPACING * self.crowd_ns:
                    self.crowd_ns = min(2 * self.crowd_ns, <uint64_t>CROWD_MAX_NS)
                else:
                    self.crowd_ns = CROWD_MIN_NS
                self.crowded_until_ns = now + self.crowd_ns
                end_ns = now  # one more look


cdef void let_go(int fd) noexcept nogil:
    cdef linger off
    cdef sockaddr_storage peer
    cdef int protocol = 0
    cdef socklen_t protocol_size = sizeof(protocol)
    cdef socklen_t peer_size = sizeof(peer)
    memset(&off, 0, sizeof(off))
    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &protocol_size)
    # Without a connection TCP does not linger: there the option is for those that somebody else accepts later.
    if protocol != IPPROTO_TCP or getpeername(fd, <sockaddr *>&peer, &peer_size) == 0:
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off))
    close(fd)


def discard(int fd):
    """Close a descriptor that the peer has sent, -1 for none, and do not wait for what a socket has not sent yet.

    close(2) waits for that with SO_LINGER, as long as the peer has set there. Without it the kernel goes on by itself.
    It is switched off and not set to 0 seconds: it is the socket's, which others may have open still, and that would
    reset their connection.
    """
    with nogil:
        let_go(fd)


cdef size_t size_of(Outgoing *frame) noexcept:
    return FRAME_HEADER_SIZE + <size_t>PyBytes_GET_SIZE(<object>frame.payload)


cdef char *rest_of(Outgoing *frame, size_t head) noexcept:
    """What is to be written of the payload, after so much that is left of the header."""
    return PyBytes_AS_STRING(<object>frame.payload) + (frame.done + head - FRAME_HEADER_SIZE)


@cython.no_gc_clear  # __dealloc__ needs the lists
cdef class Wire:
    """One end of a control channel: a stream socket (borrowed) whose bytes are frames. Any thread may send.

    Iterating gives the frames that have come, as `(kind, payload, fd)`, each taken out before it is given; whoever gets
    it owns its descriptor, which is None, too, when it came and did not fit into the table of descriptors.

    Attributes:
      queued: the bytes that wait to be written.
      waiting_control: how many of the library's own frames are among them.
      rests: whether the system has no room for what is to be written, and no epoll says when: call `flush` later.
      ended: a deque of `(callback, exception or None)`, of frames that were written or have failed, to be taken out.
      exhausted: whether the last `receive` found nothing.
    """

    cdef int fd
    cdef Poll poll
    cdef size_t message_limit
    cdef uint64_t *our_bell
    cdef uint64_t *their_bell
    cdef uint64_t heard          # of their bell, before the last read
    # The ring of what waits; its size is a power of two.
    cdef Outgoing *ring
    cdef size_t ring_size
    cdef size_t first
    cdef size_t count
    cdef size_t tried            # how much was queued after the last try to write
    cdef bint writing            # the collector may run a finalizer that sends, in the middle of a send
    cdef bint frozen             # exported: what waits is somebody else's to write
    cdef bint watched            # for room to write
    cdef readonly size_t queued
    cdef readonly size_t waiting_control
    cdef readonly bint rests
    cdef readonly object ended
    # What has come: incoming[start:end].
    cdef char *incoming
    cdef size_t incoming_size
    cdef size_t start
    cdef size_t end
    cdef bint is_fetched         # the last recvmsg has not been looked at yet
    cdef ssize_t fetched         # its length, or -errno
    cdef msghdr message
    cdef iovec payload
    cdef Rights control
    cdef readonly list descriptors
    cdef readonly bint exhausted

    def __init__(self, int fd, Poll poll not None, size_t message_limit, slot=None):
        """Register the non-blocking socket `fd` (borrowed) in the epoll that `poll` waits for.

        Args:
          slot: the worker's, whose bells both ends ring; None for an end without a region.
          message_limit: the largest payload of a message, in bytes, that is received.

        Raises:
          OSError: of epoll_ctl(2).
        """
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = <uint64_t>fd  # as select.epoll does, whose poll() gives it back
        self.fd = -1
        self.ended = collections.deque()
        self.descriptors = []
        self.message_limit = message_limit
        self.our_bell = self.their_bell = &no_bell
        if slot is not None:
            self.our_bell = &slot_at(slot).bell_of_primary
            self.their_bell = &slot_at(slot).bell_of_worker
            if slot_at(slot) == own_slot:
                self.our_bell, self.their_bell = self.their_bell, self.our_bell
        if epoll_ctl(poll.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise system_error("epoll_ctl", errno)
        self.fd = fd
        self.poll = poll

    def __dealloc__(self):
        if self.descriptors is not None:
            self.drop(False)

    # Sending

    def send(self, uint8_t kind, bytes payload not None, int fd, callback):
        """Send a frame, or queue it where the socket is full or others wait. Owns `fd`, which is -1 for none.

        Returns:
          1 when there is something to look after in `ended` or `rests`, else 0; -1 when the wire is closed.
        """
        cdef size_t length = <size_t>len(payload)
        cdef size_t waiting = self.count
        cdef Outgoing *frame
        if self.fd < 0:
            if fd >= 0:
                close(fd)
            return -1
        if waiting == self.ring_size:
            self.widen()
        frame = &self.ring[(self.first + waiting) & (self.ring_size - 1)]
        Py_INCREF(payload)
        frame.payload = <PyObject *>payload
        frame.callback = NULL
        if callback is not None:
            Py_INCREF(callback)
            frame.callback = <PyObject *>callback
        frame.done = 0
        frame.fd = fd
        frame.header[0] = length & 0xFF
        frame.header[1] = length >> 8 & 0xFF
        frame.header[2] = length >> 16 & 0xFF
        frame.header[3] = length >> 24 & 0xFF
        frame.header[4] = kind
        frame.header[5] = fd >= 0
        frame.header[6] = frame.header[7] = 0
        self.count += 1
        self.waiting_control += kind == CONTROL_FRAME
        self.queued += FRAME_HEADER_SIZE + length
        if waiting == 0 or (self.queued - self.tried >= RETRY_SIZE and not self.rests):
            return self.write()
        return 0

    def flush(self):
        """Write what waits, as much as the socket takes and WRITE_LIMIT allows. Returns what `send` does."""
        self.rests = False
        return self.write()

    cdef int widen(self) except -1:
        cdef size_t size = self.ring_size * 2 if self.ring_size else 16
        cdef Outgoing *wider = <Outgoing *>calloc(size, sizeof(Outgoing))
        cdef size_t i
        if wider == NULL:
            raise MemoryError
        for i in range(self.count):
            wider[i] = self.ring[(self.first + i) & (self.ring_size - 1)]
        free(self.ring)
        self.ring = wider
        self.ring_size = size
        self.first = 0
        return 0

    cdef int write(self) except -2:
        """Write, and ask the epoll for room if something is left."""
        cdef size_t total = 0
        cdef ssize_t written
        cdef int error = 0
        if self.writing or self.frozen or self.fd < 0:
            return 0
        self.writing = True
        while self.count and total < WRITE_LIMIT and not self.frozen:
            written = self.write_some()
            if written < 0:
                error = errno
                break
            total += <size_t>written
            self.take_off(<size_t>written)
        self.writing = False
        if total:
            add(self.our_bell, 1)
        self.tried = self.queued
        if error == ETOOMANYREFS or error == ENOBUFS or error == ENOMEM:
            self.rests = True
        elif error and error != EAGAIN:
            # The peer is gone; the owner learns it from the end of what is to be read.
            self.fail(system_error("sendmsg", error))
        self.watch()
        return 1 if self.rests or self.ended else 0

    cdef ssize_t write_some(self) noexcept:
        """One system call: as many small frames as fit together, or one that is large or has a descriptor."""
        cdef msghdr message
        cdef iovec parts[2]
        cdef Control control
        cdef cmsghdr *rights
        cdef Outgoing *frame
        cdef size_t size = 0
        cdef size_t i, left, head
        cdef ssize_t written
        for i in range(self.count):
            frame = &self.ring[(self.first + i) & (self.ring_size - 1)]
            left = size_of(frame) - frame.done
            if frame.fd >= 0 or left > GATHER_SIZE - size:
                break  # a descriptor must go with the first byte of its own frame
            head = FRAME_HEADER_SIZE - frame.done if frame.done < FRAME_HEADER_SIZE else 0
            memcpy(gathered + size, frame.header + (FRAME_HEADER_SIZE - head), head)
            memcpy(gathered + size + head, rest_of(frame, head), left - head)
            size += left
        if size:
            while True:
                written = send(self.fd, gathered, size, MSG_DONTWAIT | MSG_NOSIGNAL)
                if written >= 0 or errno != EINTR:
                    return written
        frame = &self.ring[self.first]
        head = FRAME_HEADER_SIZE - frame.done if frame.done < FRAME_HEADER_SIZE else 0
        parts[0].iov_base = frame.header + (FRAME_HEADER_SIZE - head)
        parts[0].iov_len = head
        parts[1].iov_base = rest_of(frame, head)
        parts[1].iov_len = size_of(frame) - frame.done - head
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = 2
        if frame.fd >= 0:
            message.msg_control = &control
            message.msg_controllen = sizeof(control)
            rights = CMSG_FIRSTHDR(&message)
            rights.cmsg_level = SOL_SOCKET
            rights.cmsg_type = SCM_RIGHTS
            rights.cmsg_len = CMSG_LEN(sizeof(int))
            memcpy(CMSG_DATA(rights), &frame.fd, sizeof(int))
        while True:
            written = sendmsg(self.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            if written >= 0 or errno != EINTR:
                return written

    cdef int take_off(self, size_t written) except -1:
        """Take written bytes off the ring."""
        cdef Outgoing *frame
        cdef size_t left
        self.queued -= written
        while self.count:
            frame = &self.ring[self.first]
            if frame.fd >= 0 and written:
                close(frame.fd)
                frame.fd = -1
            left = size_of(frame) - frame.done
            if written < left:
                frame.done += written
                break
            written -= left
            self.end_first(None)
            if not written:
                break
        return 0

    cdef int end_first(self, exception) except -1:
        """The first frame has been written, or has failed. It leaves the ring before anything else happens."""
        cdef Outgoing frame = self.ring[self.first]
        self.first = (self.first + 1) & (self.ring_size - 1)
        self.count -= 1
        self.waiting_control -= frame.header[4] == CONTROL_FRAME
        if frame.fd >= 0:
            close(frame.fd)
        Py_DECREF(<object>frame.payload)
        if frame.callback != NULL:
            callback = <object>frame.callback
            Py_DECREF(callback)
            self.ended.append((callback, exception))
        return 0

    cdef int fail(self, exception) except -1:
        self.queued = 0
        while self.count:
            self.end_first(exception)
        return 0

    cdef void watch(self) noexcept:
        """Ask the epoll for room to write, if that is what is waited for."""
        cdef epoll_event event
        cdef bint wanted = self.count > 0 and not self.rests
        if wanted != self.watched and self.fd >= 0:
            event.events = EPOLLIN | (EPOLLOUT if wanted else 0)
            event.data.u64 = <uint64_t>self.fd
            epoll_ctl(self.poll.epoll, EPOLL_CTL_MOD, self.fd, &event)
            self.watched = wanted

    # Receiving

    def receive(self):
        """Read once. Returns itself, to iterate over the frames that are complete by now.

        Raises:
          EOFError: the peer has closed, after the frames before that.
          OSError: of recvmsg(2).
        """
        if not self.is_fetched:
            self.make_room()
            self.fetch()
        self.is_fetched = False
        self.exhausted = self.fetched < 0
        if self.fetched < 0:
            if self.fetched == -EAGAIN or self.fetched == -EINTR:
                return self
            if self.fetched == -ECONNRESET:  # the peer has closed with unread frames of ours
                raise EOFError
            raise system_error("recvmsg", <int>-self.fetched)
        self.take_in()
        if self.fetched == 0:
            raise EOFError
        self.poll.hot = self
        return self

    cdef bint fetch(self) noexcept nogil:
        """Read once, into the room that there is. Returns whether there is something to receive. Owner's thread only,
        where nothing else touches what has come; so it needs no GIL."""
        self.heard = load(self.their_bell)
        memset(&self.message, 0, sizeof(self.message))
        self.payload.iov_base = self.incoming + self.end
        self.payload.iov_len = self.incoming_size - self.end
        self.message.msg_iov = &self.payload
        self.message.msg_iovlen = 1
        self.message.msg_control = &self.control
        self.message.msg_controllen = sizeof(self.control)
        self.fetched = recvmsg(self.fd, &self.message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        if self.fetched < 0:
            self.fetched = -errno
        self.is_fetched = self.fetched != -EAGAIN and self.fetched != -EINTR
        return self.is_fetched

    cdef int take_in(self) except -1:
        """Add what was read last to what has come."""
        cdef cmsghdr *rights
        cdef int fd
        cdef size_t i
        self.end += <size_t>self.fetched
        if self.message.msg_controllen:
            rights = CMSG_FIRSTHDR(&self.message)
            while rights != NULL:
                if rights.cmsg_level == SOL_SOCKET and rights.cmsg_type == SCM_RIGHTS:
                    for i in range((rights.cmsg_len - CMSG_LEN(0)) // sizeof(int)):
                        memcpy(&fd, CMSG_DATA(rights) + i * sizeof(int), sizeof(int))
                        self.descriptors.append(fd)
                rights = CMSG_NXTHDR(&self.message, rights)
        if self.message.msg_flags & MSG_CTRUNC:
            self.descriptors.append(None)
        return 0

    cdef int make_room(self) except -1:
        """Have room for a read: a quarter of the buffer, which grows with a frame that is larger."""
        cdef size_t held = self.end - self.start
        cdef size_t size = READ_BUFFER_SIZE
        cdef char *buffer
        while held > size - size // 4:
            size *= 2
        if held == 0:
            self.start = self.end = 0
        if size > self.incoming_size or (held == 0 and size < self.incoming_size):
            buffer = <char *>malloc(size)
            if buffer == NULL:
                raise MemoryError
            if held:
                memcpy(buffer, self.incoming + self.start, held)
            free(self.incoming)
            self.incoming = buffer
            self.incoming_size = size
        elif self.incoming_size - self.end < size // 4:
            memmove(self.incoming, self.incoming + self.start, held)
        else:
            return 0
        self.start = 0
        self.end = held
        return 0

    def __iter__(self):
        return self

    def __next__(self):
        """
        Raises:
          ProtocolError: what came is no frame. The channel is of no use any more.
        """
        cdef size_t held = self.end - self.start
        cdef const uint8_t *header
        cdef size_t length, limit
        cdef int kind
        if held >= FRAME_HEADER_SIZE:
            header = <const uint8_t *>self.incoming + self.start
            length = header[0] | header[1] << 8 | header[2] << 16 | <size_t>header[3] << 24
            if header[4] > MESSAGE_FRAME or header[5] > 1 or header[6] or header[7]:
                raise errors.ProtocolError(f"no frame starts with {(<const char *>header)[:FRAME_HEADER_SIZE]!r}")
            kind = header[4]
            limit = CONTROL_LIMIT_SIZE if kind == CONTROL_FRAME else self.message_limit
            if length > limit:
                raise errors.ProtocolError(f"a frame of {length} bytes where at most {limit} are allowed")
            if held >= FRAME_HEADER_SIZE + length:
                fd = None
                if header[5]:
                    if not self.descriptors:
                        raise errors.ProtocolError("a frame announces a descriptor, and none came")
                    fd = self.descriptors.pop(0)
                payload = (<const char *>header)[FRAME_HEADER_SIZE:FRAME_HEADER_SIZE + length]
                self.start += FRAME_HEADER_SIZE + length
                return kind, payload, fd
        # A descriptor comes with the first byte of its frame, so one may be early, for the frame that is incomplete.
        if len(self.descriptors) > (held > 0):
            raise errors.ProtocolError("more descriptors came than frames announce")
        raise StopIteration

    # Handing on to the next image of this process

    def export(self):
        """What `adopt` takes: `(incoming, descriptors, outgoing)`, with `(header, payload, done, fd)` in `outgoing`.

        All descriptors are borrowed. Nothing is written after this, until `thaw`.
        """
        cdef Outgoing *frame
        cdef size_t i
        self.frozen = True
        if self.is_fetched and self.fetched > 0:
            self.take_in()
            self.is_fetched = False
        outgoing = []
        for i in range(self.count):
            frame = &self.ring[(self.first + i) & (self.ring_size - 1)]
            header = (<char *>frame.header)[:FRAME_HEADER_SIZE]
            outgoing.append((header, <object>frame.payload, frame.done, frame.fd))
        incoming = self.incoming[self.start:self.end] if self.end > self.start else b""
        return incoming, list(self.descriptors), outgoing

    def thaw(self):
        """Write again: nobody has adopted what was exported. Returns what `send` does."""
        self.frozen = False
        return self.flush()

    def adopt(self, bytes incoming not None, list descriptors not None, list outgoing not None):
        """Go on, as a fresh wire, where the one that was exported has stopped. Returns what `send` does."""
        cdef size_t held = <size_t>len(incoming)
        cdef size_t size = READ_BUFFER_SIZE
        cdef Outgoing *frame
        cdef bytes header, payload
        self.descriptors.extend(descriptors)
        while held > size - size // 4:
            size *= 2
        self.incoming = <char *>malloc(size)
        if self.incoming == NULL:
            raise MemoryError
        memcpy(self.incoming, PyBytes_AS_STRING(incoming), held)
        self.incoming_size = size
        self.end = held
        for header, payload, done, fd in outgoing:
            if self.count == self.ring_size:
                self.widen()
            frame = &self.ring[(self.first + self.count) & (self.ring_size - 1)]
            Py_INCREF(payload)
            frame.payload = <PyObject *>payload
            frame.callback = NULL
            frame.done = done
            frame.fd = fd
            memcpy(frame.header, PyBytes_AS_STRING(header), FRAME_HEADER_SIZE)
            self.count += 1
            self.waiting_control += frame.header[4] == CONTROL_FRAME
            self.queued += size_of(frame) - frame.done
        return self.write()

    # Closing

    def close(self, exception):
        """Leave the epoll, give up what has come, and fail what waits to be written. The caller closes the socket."""
        if self.fd >= 0:
            epoll_ctl(self.poll.epoll, EPOLL_CTL_DEL, self.fd, NULL)
        self.fd = -1
        self.fail(exception)
        self.drop(False)

    def abandon(self):
        """In a forked child: close the copies of all descriptors in here, and leave the parent's epoll alone."""
        self.fd = -1
        self.drop(True)

    cdef void drop(self, bint copies) noexcept:
        if self.poll is not None and self.poll.hot is self:
            self.poll.hot = None
        if self.is_fetched and self.fetched > 0:
            self.take_in()
        self.is_fetched = False
        while self.count:
            self.end_first(None)
        self.queued = 0
        self.start = self.end = self.incoming_size = 0
        free(self.incoming)
        self.incoming = NULL
        free(self.ring)
        self.ring = NULL
        self.ring_size = self.first = 0
        for fd in self.descriptors:
            if fd is None:
                continue
            if copies:
                close(fd)  # whoever has the other one may go on with its socket as it is
            else:
                let_go(fd)
        self.descriptors.clear()
