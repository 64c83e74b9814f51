/* load: a small HTTP and echo client that measures, for the benchmarks and tests beside it.
 *
 *     cc -O2 -Wall -Wextra -pthread -o load load.c
 *     ./load -p PORT [-H 127.0.0.1] [-c 64] [-d SECONDS | -n REQUESTS] [-m echo|http] [-k] [-i]
 *            [-b BYTES] [-P PATH] [-w WARMUP_SECONDS] [-T TIMEOUT_SECONDS] [-t THREADS] [-r RATE] [-s PART] [-S SEED]
 *
 * One thread, one epoll, C connections.  Two ways to decide when a request begins:
 *
 *   closed loop (default)   all C connections are always busy: the next request begins when one is answered
 *   open loop (-r, -d)      RATE requests a second begin on a fixed schedule, whether or not others are answered
 *                           by then; C is how many may be under way.  Latency counts from the scheduled time,
 *                           also when a request had to wait for one of the C: so a server that stands still is
 *                           seen by all who would have come meanwhile (no coordinated omission)
 *
 * two ways to use connections:
 *
 *   per request (default)   connect, send, read the whole answer, close
 *   keep-alive (-k)         connect once, then send, read, send, read, ... (closed loop only)
 *
 * and two protocols:
 *
 *   echo   sends BYTES bytes (1 to 64, different for each request) and expects the same bytes back;
 *          with -i the echo is followed by one line that names who answered, such as "worker 3\n"
 *   http   sends a GET and expects a 200; the answer ends at end-of-file, with -k where Content-Length or the
 *          last chunk says; with -i the first line of the body names who answered
 *
 * With -s, that PART of the requests asks to be slow, at random, so that the workers of a round robin all get their
 * share of them: an echo request then begins with "~", a GET is one for /slow.  Which ones is decided by SEED: equal
 * seeds give every server the same requests.
 *
 * It prints one JSON object on stdout and exits with 0 whatever it counted; 2 is a wrong option, 1 a failure
 * of its own.
 *
 * Latency is the time from just before connect() (on a connection kept alive: from the send; in an open loop: from
 * the scheduled time) to the first byte of the answer.  Requests that end in the warm-up, or after the time was up, are
 * finished but not counted; in an open loop those count that were scheduled between the two, whenever they end, but
 * the rate is of the answers that came between the two: a server that cannot keep up shows it.
 * Errors are always counted, and so is who answered: at the edges of the time that counts one server may be half a
 * queue behind another, which is no difference in what they were given.
 *
 * Ephemeral ports.  Whoever closes first keeps the address pair in TIME_WAIT for a minute; in echo mode that is
 * this program, and 28 000 ports would last for one or two seconds.  The usual way out, SO_LINGER 0, makes
 * close() send an RST.  That RST could not destroy unread data here (whoever has the whole echo knows that the
 * server has read all of the request), but the server would then see ECONNRESET where every real client gives
 * it an end-of-file: in Python an exception for each connection, in the code that is being measured.  So
 * connections are closed in the ordinary way and come from 1 024 source addresses in 127/8 in turn (all of it is
 * local on Linux): 29 million address pairs, more than can be used up in the minute after which they come back.
 * The kernel drops what exceeds net.ipv4.tcp_max_tw_buckets without harm.  IP_BIND_ADDRESS_NO_PORT leaves the
 * choice of the port to connect(), which may reuse it for another source address; bind() alone would reserve it
 * for all of them.  Measured (Linux 6.18, two cores, a C server): 25 000 connections/s; with the RST 23 500;
 * with one source address 13 700 and a p99 of 80 ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "answers.h"
#include "figures.h"

#define NS_PER_S 1000000000ull
#define MAX_BYTES 64           /* of an echo request: always goes out in one send() */
#define SOURCES 1024           /* source addresses per thread, see above */
#define MAX_THREADS 64
#define SCAN_NS (NS_PER_S / 20) /* how often timeouts are looked for: 1 % of the default timeout */
#define PAUSE_NS 1000000ull    /* a connection rests after an error, or a dead server would be asked without end */

struct text {
    char bytes[1024];
    size_t size;
};

static struct {
    struct sockaddr_in server;
    uint64_t duration_ns, warmup_ns, timeout_ns, total;
    double rate, slow; /* requests/s of an open loop, else 0; part of them that is slow */
    uint64_t seed;     /* of which ones */
    int clients, threads;
    size_t bytes;
    struct text get, get_slow;
    bool http, keepalive, identify;
} option;

enum stage { PAUSED, CONNECTING, READING };

struct connection {
    int fd; /* -1 exactly when PAUSED; opened by start(), closed by stop() */
    enum stage stage;
    bool first_byte, slow;
    size_t sent, got;
    uint64_t began_ns; /* before connect(), or before the send on a connection kept alive, or when it was scheduled */
    char request[MAX_BYTES];
    char answer[ANSWER_KEPT];
};

struct loader { /* all that a thread owns; nothing is shared while it runs */
    int index, epoll, clients, busy, paused;
    struct connection *connections;
    struct connection **resting; /* those that are PAUSED: so many as `paused` */
    uint64_t started, total;     /* requests; total is 0 when the time decides */
    uint64_t begin_ns, count_from_ns, count_until_ns, last_ns;
    uint64_t freed_ns; /* when a connection came back while all were taken: nothing could begin before */
    bool stopping;
    struct figures figures;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static bool counts(const struct loader *l, const struct connection *c, uint64_t now)
{
    uint64_t when = option.rate > 0 ? c->began_ns : now;
    return when >= l->count_from_ns && when < l->count_until_ns;
}

/* When the request of this number is due in an open loop; the threads take turns. */
static uint64_t due_ns(const struct loader *l, uint64_t number)
{
    double turn = (double)number * option.threads + l->index;
    return l->begin_ns + (uint64_t)(turn * 1e9 / option.rate);
}

/* ---- One connection ---- */

static void stop(struct connection *c)
{
    close(c->fd); /* also takes it out of the epoll: no copy of the descriptor exists */
    c->fd = -1;
    c->stage = PAUSED;
}

static void rest(struct loader *l, struct connection *c)
{
    if (c->fd >= 0)
        stop(c);
    if (l->paused == 0)
        l->freed_ns = now_ns();
    l->busy--;
    l->resting[l->paused++] = c;
}

static void fail(struct loader *l, struct connection *c, enum error kind)
{
    l->figures.errors[kind]++;
    rest(l, c);
}

static enum error kind_of(struct loader *l, int number)
{
    switch (number) {
    case ECONNREFUSED: return REFUSED;
    case ECONNRESET:
    case EPIPE: return RESET;
    case ETIMEDOUT: return TIMEOUT;
    case EADDRNOTAVAIL:
    case EADDRINUSE: return NO_PORT;
    default: l->figures.last_errno = number; return OTHER;
    }
}

static void fail_errno(struct loader *l, struct connection *c, int number)
{
    fail(l, c, kind_of(l, number));
}

static void new_request(struct loader *l, struct connection *c)
{
    c->sent = c->got = 0;
    c->first_byte = false;
    uint64_t x = (++l->started + (option.seed << 32) + ((uint64_t)l->index << 48)) * 0x9e3779b97f4a7c15ull;
    uint64_t dice = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9ull; /* splitmix64: no pattern that a round robin could meet */
    c->slow = (double)((dice ^ (dice >> 27)) >> 11) < option.slow * 0x1p53;
    if (!option.http) {
        /* Another text each time, so that an answer which belongs to another connection is noticed. */
        for (size_t i = 0; i < option.bytes; i++, x = (x >> 5) | (x << 59))
            c->request[i] = (char)('@' + (x & 31)); /* never a newline */
        if (c->slow)
            c->request[0] = '~';
    }
}

/* Returns 0 when all is sent, EAGAIN, or another errno. */
static int send_request(struct connection *c)
{
    const struct text *get = c->slow ? &option.get_slow : &option.get;
    const char *text = option.http ? get->bytes : c->request;
    size_t size = option.http ? get->size : option.bytes;
    while (c->sent < size) {
        ssize_t n = send(c->fd, text + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0)
            return errno;
        c->sent += (size_t)n;
    }
    return 0;
}

/* Takes a connection that rests. */
static void start(struct loader *l)
{
    struct connection *c = l->resting[--l->paused];
    if (option.rate > 0) {
        c->began_ns = due_ns(l, l->started);
        uint64_t now = now_ns();
        if (counts(l, c, now))
            count_ns(&l->figures.late, now - (c->began_ns > l->freed_ns ? c->began_ns : l->freed_ns));
    }
    l->busy++;
    new_request(l, c);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fail_errno(l, c, errno);
        return;
    }
    uint64_t attempt = l->figures.connects++;
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if ((ntohl(option.server.sin_addr.s_addr) >> 24) == 127) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        uint32_t low = 1 + (uint32_t)(attempt % SOURCES);
        from.sin_addr.s_addr = htonl(0x7f100000u + ((uint32_t)l->index << 16) + low); /* 127.16+thread.x.y */
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(c->fd, (struct sockaddr *)&from, sizeof from) < 0) {
            fail_errno(l, c, errno);
            return;
        }
    }
    if (option.rate == 0)
        c->began_ns = now_ns();
    if (connect(c->fd, (struct sockaddr *)&option.server, sizeof option.server) < 0 && errno != EINPROGRESS) {
        fail_errno(l, c, errno);
        return;
    }
    /* On loopback the handshake is over by now, although connect() says EINPROGRESS: sending at once saves a
     * round through epoll.  When the server's backlog is full the answer is EAGAIN, and EPOLLOUT comes later. */
    int number = send_request(c);
    if (number != 0 && number != EAGAIN) {
        fail_errno(l, c, number);
        return;
    }
    c->stage = number == 0 ? READING : CONNECTING;
    struct epoll_event event = {.events = number == 0 ? EPOLLIN : EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

static bool may_start(const struct loader *l)
{
    return !l->stopping && (l->total == 0 || l->started < l->total);
}

/* ---- The loop ---- */

static void complete(struct loader *l, struct connection *c, enum verdict verdict, struct slice name, uint64_t now)
{
    l->figures.completed++;
    if (option.identify)
        count_name(l->figures.names, name.text, name.size, 1);
    if (now >= l->count_from_ns && now < l->count_until_ns)
        l->figures.answered++;
    if (counts(l, c, now)) {
        l->figures.requests++;
        l->last_ns = now;
    }
    bool more = may_start(l) && option.rate == 0;
    if (more && option.keepalive && verdict == COMPLETE) {
        new_request(l, c);
        c->began_ns = now;
        int number = send_request(c);
        if (number == EAGAIN)
            number = ENOBUFS; /* an empty send buffer takes a request whole; anything else is not an ordinary case */
        if (number != 0)
            fail_errno(l, c, number);
        return;
    }
    rest(l, c);
    if (more)
        start(l);
}

static void readable(struct loader *l, struct connection *c)
{
    char surplus[ANSWER_KEPT];
    bool fits = c->got < ANSWER_KEPT;
    ssize_t n = fits ? recv(c->fd, c->answer + c->got, ANSWER_KEPT - c->got, 0) : recv(c->fd, surplus, sizeof surplus, 0);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail_errno(l, c, errno);
        return;
    }
    uint64_t now = now_ns();
    if (n > 0 && !c->first_byte) {
        c->first_byte = true;
        if (counts(l, c, now))
            count_ns(&l->figures.latency, now - c->began_ns);
    }
    c->got += (size_t)n;
    struct slice name = {"", 0};
    enum error kind = OTHER;
    struct answer answer = {c->answer, c->got, c->request, option.bytes, option.identify, option.keepalive};
    enum verdict verdict =
        option.http ? http_verdict(&answer, n == 0, &name, &kind) : echo_verdict(&answer, n == 0, &name, &kind);
    if (verdict == FAILED)
        fail(l, c, kind);
    else if (verdict != WAIT)
        complete(l, c, verdict, name, now);
}

static void step(struct loader *l, struct connection *c)
{
    if (c->stage == READING) {
        readable(l, c);
        return;
    }
    int number = 0;
    socklen_t size = sizeof number;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &number, &size);
    if (number == 0)
        number = send_request(c);
    if (number == EAGAIN)
        return;
    if (number != 0) {
        fail_errno(l, c, number);
        return;
    }
    c->stage = READING;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(l->epoll, EPOLL_CTL_MOD, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* Closed loop: connections that rested after an error, and at first all. Each of them once: it may fail again. */
static void start_resting(struct loader *l)
{
    for (int n = l->paused; n > 0 && may_start(l); n--)
        start(l);
}

/* Open loop: those whose time has come, as far as there are connections for them. */
static void start_due(struct loader *l, uint64_t now)
{
    while (l->paused > 0 && may_start(l) && due_ns(l, l->started) <= now)
        start(l);
}

/* Waits until something is readable, or the next request of an open loop is due. */
static int wait_for_events(const struct loader *l, struct epoll_event *events, int most)
{
    bool may = l->paused > 0 && may_start(l);
    if (option.rate == 0 || !may)
        return epoll_wait(l->epoll, events, most, may ? 1 : 10);
    /* epoll_wait() knows milliseconds only: wait for its descriptor by a call that knows nanoseconds. */
    uint64_t now = now_ns(), due = due_ns(l, l->started);
    uint64_t left = due > now ? due - now : 0;
    struct timespec timeout = {(time_t)(left / NS_PER_S), (long)(left % NS_PER_S)};
    struct pollfd poll = {.fd = l->epoll, .events = POLLIN};
    if (left > 0 && ppoll(&poll, 1, &timeout, NULL) < 0)
        return -1;
    return epoll_wait(l->epoll, events, most, 0);
}

static void end_overdue(struct loader *l, uint64_t now)
{
    for (int i = 0; i < l->clients; i++) {
        struct connection *c = &l->connections[i];
        if (c->stage != PAUSED && now > c->began_ns + option.timeout_ns)
            fail(l, c, TIMEOUT);
    }
}

static void *run(void *argument)
{
    struct loader *l = argument;
    struct epoll_event events[256];
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->connections = calloc((size_t)l->clients, sizeof *l->connections);
    l->resting = calloc((size_t)l->clients, sizeof *l->resting);
    if (l->epoll < 0 || l->connections == NULL || l->resting == NULL)
        die("load");
    for (int i = 0; i < l->clients; i++) {
        l->connections[i].fd = -1;
        l->resting[l->paused++] = &l->connections[i];
    }
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond; the 50 microseconds of everybody else would come into the latencies */

    l->begin_ns = now_ns();
    l->count_from_ns = l->begin_ns + option.warmup_ns;
    l->count_until_ns = l->total ? UINT64_MAX : l->count_from_ns + option.duration_ns;
    uint64_t stop_ns = l->count_until_ns;
    if (option.rate > 0) {
        while (due_ns(l, l->total) < l->count_until_ns)
            l->total++;
        stop_ns += option.timeout_ns; /* until then requests may still wait for a connection */
        l->stopping = l->total == 0;
    } else
        start_resting(l);
    uint64_t now = l->begin_ns, resumed = now, scanned = now;
    /* Whatever is under way when the time is up is finished (or times out), so that errors at the end are seen. */
    while (l->busy > 0 || may_start(l)) {
        int n = wait_for_events(l, events, 256);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        /* A connection is in `events` at most once, and one that is opened below is not in this batch. */
        for (int i = 0; i < n; i++)
            step(l, events[i].data.ptr);
        now = now_ns();
        if (now >= stop_ns)
            l->stopping = true;
        if (now - scanned >= SCAN_NS) {
            scanned = now;
            end_overdue(l, now);
        }
        if (option.rate > 0)
            start_due(l, now);
        else if (l->paused > 0 && now - resumed >= PAUSE_NS) {
            resumed = now;
            start_resting(l);
        }
    }
    if (option.rate > 0)
        l->figures.errors[UNSENT] = l->total - l->started;
    free(l->resting);
    close(l->epoll);
    free(l->connections);
    return NULL;
}

/* ---- Options ---- */

static void usage(const char *problem)
{
    fprintf(stderr,
            "load: %s\n"
            "usage: load -p PORT [-H ADDRESS] [-c CLIENTS] [-d SECONDS | -n REQUESTS] [-m echo|http] [-k] [-i]\n"
            "            [-b BYTES] [-P PATH] [-w WARMUP_SECONDS] [-T TIMEOUT_SECONDS] [-t THREADS] [-r RATE] [-s PART]\n"
            "            [-S SEED]\n",
            problem);
    exit(2);
}

static double number(const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most)) {
        fprintf(stderr, "load: %s is not a number from %g to %g\n", text, least, most);
        exit(2);
    }
    return value;
}

static void write_get(struct text *get, const char *path, const char *host, int port)
{
    int size = snprintf(get->bytes, sizeof get->bytes, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nConnection: %s\r\n\r\n", path,
                        host, port, option.keepalive ? "keep-alive" : "close");
    if (size < 0 || (size_t)size >= sizeof get->bytes)
        usage("-P is too long");
    get->size = (size_t)size;
}

int main(int argc, char **argv)
{
    const char *host = "127.0.0.1", *path = "/";
    double duration = 0;
    int port = 0, letter;
    option.clients = 64;
    option.threads = 1;
    option.bytes = 1;
    option.timeout_ns = 5 * NS_PER_S;
    while ((letter = getopt(argc, argv, "H:p:c:d:n:m:kib:P:w:T:t:r:s:S:")) != -1)
        switch (letter) {
        case 'H': host = optarg; break;
        case 'p': port = (int)number(optarg, 1, 65535); break;
        case 'c': option.clients = (int)number(optarg, 1, 100000); break;
        case 'd': duration = number(optarg, 0.001, 3600); break;
        case 'n': option.total = (uint64_t)number(optarg, 1, 1e12); break;
        case 'm':
            if (strcmp(optarg, "echo") != 0 && strcmp(optarg, "http") != 0)
                usage("-m is echo or http");
            option.http = strcmp(optarg, "http") == 0;
            break;
        case 'k': option.keepalive = true; break;
        case 'i': option.identify = true; break;
        case 'b': option.bytes = (size_t)number(optarg, 1, MAX_BYTES); break;
        case 'P': path = optarg; break;
        case 'w': option.warmup_ns = (uint64_t)(number(optarg, 0, 3600) * 1e9); break;
        case 'T': option.timeout_ns = (uint64_t)(number(optarg, 0.01, 3600) * 1e9); break;
        case 't': option.threads = (int)number(optarg, 1, MAX_THREADS); break;
        case 'r': option.rate = number(optarg, 1, 1e7); break;
        case 's': option.slow = number(optarg, 0, 1); break;
        case 'S': option.seed = (uint64_t)number(optarg, 0, UINT16_MAX); break;
        default: usage("unknown option");
        }
    if (optind != argc || port == 0)
        usage("one -p PORT and no other arguments");
    if ((duration > 0) == (option.total > 0))
        usage("one of -d and -n");
    if (option.total && option.warmup_ns)
        usage("-w goes with -d: a number of requests has no warm-up");
    if (option.rate > 0 && (option.total || option.keepalive))
        usage("-r goes with -d, and without -k");
    if (option.threads > option.clients)
        usage("more threads than clients");
    option.duration_ns = (uint64_t)(duration * 1e9);
    option.server.sin_family = AF_INET;
    option.server.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, host, &option.server.sin_addr) != 1)
        usage("-H is an IPv4 address");
    write_get(&option.get, path, host, port);
    write_get(&option.get_slow, "/slow", host, port);

    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }

    struct loader *loaders = calloc((size_t)option.threads + 1, sizeof *loaders);
    pthread_t threads[MAX_THREADS];
    if (loaders == NULL)
        die("calloc");
    for (int i = 0; i < option.threads; i++) {
        struct loader *l = &loaders[i];
        l->index = i;
        l->clients = option.clients / option.threads + (i < option.clients % option.threads);
        l->total = option.total / (uint64_t)option.threads + ((uint64_t)i < option.total % (uint64_t)option.threads);
        if (option.total && l->total == 0)
            usage("more threads than requests");
        if (i > 0 && (errno = pthread_create(&threads[i], NULL, run, l)) != 0)
            die("pthread_create");
    }
    run(&loaders[0]); /* the main thread is the first of them */
    uint64_t last_ns = 0;
    struct figures *sum = &loaders[option.threads].figures;
    for (int i = 0; i < option.threads; i++) {
        if (i > 0)
            pthread_join(threads[i], NULL);
        if (loaders[i].last_ns > last_ns)
            last_ns = loaders[i].last_ns;
        merge(sum, &loaders[i].figures);
    }
    uint64_t from_ns = loaders[0].count_from_ns, end_ns = option.total ? last_ns : loaders[0].count_until_ns;
    double seconds = end_ns > from_ns ? (double)(end_ns - from_ns) / 1e9 : 0;
    print_figures(sum, seconds, (double)(now_ns() - loaders[0].begin_ns) / 1e9);
    free(loaders);
    return 0;
}
