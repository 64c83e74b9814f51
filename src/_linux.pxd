"""Declarations of the system calls and structs that the core uses; nothing else."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<errno.h>" nogil:
    enum:
        EAGAIN, EBADF, ECONNABORTED, ECONNRESET, EINTR, EMFILE, ENOBUFS, ENOENT, ENOMEM, EOPNOTSUPP, EPERM, EPIPE
        EPROTO, ETOOMANYREFS


cdef extern from "<sys/types.h>" nogil:
    ctypedef unsigned int gid_t
    ctypedef unsigned int uid_t
    ctypedef int pid_t
    ctypedef long off_t


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *duration, timespec *left)


cdef extern from "<unistd.h>" nogil:
    enum:
        SEEK_END
    int close(int fd)
    pid_t c_fork "fork"()
    int ftruncate(int fd, int64_t length)
    pid_t getppid()
    off_t lseek(int fd, off_t offset, int whence)
    ssize_t read(int fd, void *buffer, size_t count)
    ssize_t write(int fd, const void *buffer, size_t count)
    void _exit(int status)
    long syscall(long number, ...)


cdef extern from "<fcntl.h>" nogil:
    enum:
        F_ADD_SEALS, F_DUPFD_CLOEXEC, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK
        AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_RDONLY
    int fcntl(int fd, int command, ...)
    int open(const char *path, int flags, ...)
    int openat(int directory, const char *path, int flags, ...)


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *buffer, size_t size, const char *format, ...)


cdef extern from "<dirent.h>" nogil:
    struct linux_dirent64 "dirent":  # on a 64-bit machine the same layout as the kernel's
        unsigned short d_reclen
        char d_name[256]


cdef extern from "<signal.h>" nogil:
    enum:
        SIGCHLD, SIGKILL, SIG_SETMASK
    ctypedef struct sigset_t:
        pass
    int kill(pid_t pid, int signal)
    int sigfillset(sigset_t *mask)
    int pthread_sigmask(int how, const sigset_t *mask, sigset_t *old)


cdef extern from "<sys/wait.h>" nogil:
    pid_t waitpid(pid_t pid, int *status, int options)


cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_clone, SYS_getdents64, SYS_get_robust_list, SYS_gettid, SYS_pidfd_open, SYS_set_robust_list
        SYS_setgroups


cdef extern from "<sys/fsuid.h>" nogil:
    int setfsgid(gid_t group)
    int setfsuid(uid_t user)


cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_GET_DUMPABLE, PR_GET_TID_ADDRESS, PR_SET_DUMPABLE, PR_SET_NAME
    int prctl(int option, unsigned long argument, ...)


cdef extern from "<sched.h>" nogil:
    struct sched_param:
        int sched_priority
    enum:
        CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_PARENT, CLONE_PARENT_SETTID, SCHED_BATCH
    int sched_yield()
    int sched_setscheduler(pid_t pid, int policy, const sched_param *parameter)


cdef extern from "<sys/mman.h>" nogil:
    enum:
        MAP_SHARED, MFD_ALLOW_SEALING, MFD_CLOEXEC, PROT_READ, PROT_WRITE
    void *MAP_FAILED
    int memfd_create(const char *name, unsigned int flags)
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)


cdef extern from "<sys/resource.h>" nogil:
    struct rlimit:
        uint64_t rlim_cur
        uint64_t rlim_max
    enum:
        RLIMIT_NOFILE
    int getrlimit(int resource, rlimit *limit)


cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int initial, int flags)


cdef extern from "<sys/timerfd.h>" nogil:
    struct itimerspec:
        timespec it_interval
        timespec it_value
    enum:
        TFD_CLOEXEC, TFD_NONBLOCK
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)


cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT
        EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    union epoll_data:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int max_events, int timeout_ms)


cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN, POLLNVAL, POLLRDHUP
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET, AF_INET6, AF_UNIX, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK
        MSG_TRUNC
        SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET, SO_ATTACH_FILTER, SO_COOKIE, SO_LINGER, SO_PROTOCOL
    ctypedef unsigned int socklen_t
    struct linger:
        int l_onoff
        int l_linger
    struct sockaddr:
        uint16_t sa_family
    struct sockaddr_storage:
        uint16_t ss_family
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *control)
    unsigned char *CMSG_DATA(cmsghdr *control)
    size_t CMSG_LEN(size_t length)
    int accept4(int fd, sockaddr *address, socklen_t *length, int flags)
    int getsockname(int fd, sockaddr *address, socklen_t *length)
    int getpeername(int fd, sockaddr *address, socklen_t *length)
    int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    ssize_t send(int fd, const void *buffer, size_t length, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int socketpair(int family, int type, int protocol, int fds[2])


cdef extern from "<linux/filter.h>" nogil:
    enum:
        BPF_ABS, BPF_B, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET
    struct sock_filter:
        uint16_t code
        uint8_t jf
        uint32_t k
    struct sock_fprog:
        unsigned short len
        sock_filter *filter


cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    uint16_t ntohs(uint16_t value)
    uint32_t ntohl(uint32_t value)


cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *source, char *buffer, socklen_t size)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_attr_init(pthread_attr_t *attributes)
    int pthread_attr_destroy(pthread_attr_t *attributes)
    int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size)
    int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                       void *(*start)(void *) noexcept nogil, void *argument)
    int pthread_detach(pthread_t thread)
    int pthread_join(pthread_t thread, void **result)
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


# The compiler's atomics. The memory orders are GCC's and Clang's __ATOMIC_ constants.
cdef extern from * nogil:
    enum:
        __ATOMIC_RELAXED, __ATOMIC_ACQUIRE, __ATOMIC_RELEASE, __ATOMIC_ACQ_REL, __ATOMIC_SEQ_CST
    uint64_t __atomic_fetch_add(uint64_t *cell, uint64_t value, int order)
    uint64_t __atomic_load_n(const uint64_t *cell, int order)
    void __atomic_store_n(uint64_t *cell, uint64_t value, int order)
    bint __atomic_compare_exchange_n(uint64_t *cell, uint64_t *expected, uint64_t desired, bint weak,
                                     int success, int failure)
    void __atomic_thread_fence(int order)


cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()
