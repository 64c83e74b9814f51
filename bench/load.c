/* load: a small HTTP and echo client that measures, for the benchmarks and tests beside it.
 *
 *     cc -O2 -Wall -Wextra -pthread -o load load.c
 *     ./load -p PORT [-H 127.0.0.1] [-c 64] [-d SECONDS | -n REQUESTS] [-m echo|http] [-k] [-i]
 *            [-b BYTES] [-P PATH] [-w WARMUP_SECONDS] [-T TIMEOUT_SECONDS] [-t THREADS]
 *
 * One thread, one epoll, C connections that are always busy (closed loop).  Two ways to use them:
 *
 *   per request (default)   connect, send, read the whole answer, close
 *   keep-alive (-k)         connect once, then send, read, send, read, ...
 *
 * and two protocols:
 *
 *   echo   sends BYTES bytes (1 to 64, different for each request) and expects the same bytes back;
 *          with -i the echo is followed by one line that names who answered, such as "worker 3\n"
 *   http   sends a GET and expects a 200; the answer ends at end-of-file, with -k where Content-Length or the
 *          last chunk says; with -i the first line of the body names who answered
 *
 * It prints one JSON object on stdout and exits with 0 whatever it counted; 2 is a wrong option, 1 a failure
 * of its own.
 *
 * Latency is the time from just before connect() (on a connection kept alive: from the send) to the first byte
 * of the answer.  Requests that end in the warm-up, or after the time was up, are finished but not counted;
 * errors are always counted.
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
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
#define ANSWER_KEPT 8192       /* bytes of an answer that are looked at; the rest is only counted */
#define MAX_BYTES 64           /* of an echo request: always goes out in one send() */
#define NAME_SIZE 64           /* of whoever answered, with its final NUL */
#define NAMES 4096             /* slots of the table of names: a power of two, four times max_workers */
#define SOURCES 1024           /* source addresses per thread, see above */
#define MAX_THREADS 64
#define SCAN_NS (NS_PER_S / 20) /* how often timeouts are looked for: 1 % of the default timeout */
#define PAUSE_NS 1000000ull    /* a connection rests after an error, or a dead server would be asked without end */

/* Histogram of nanoseconds: 128 steps per power of two, so every value is known to better than 1 %. */
#define STEP_BITS 7
#define BUCKETS ((64 - STEP_BITS + 1) << STEP_BITS)

enum error { REFUSED, RESET, TIMEOUT, SHORT, WRONG, NO_PORT, OTHER, ERRORS };
static const char *const error_names[ERRORS] = {
    "refused", /* ECONNREFUSED */
    "reset",   /* ECONNRESET or EPIPE, before the answer was complete */
    "timeout", /* no complete answer in TIMEOUT_SECONDS */
    "short",   /* end-of-file before the answer was complete */
    "wrong",   /* another echo than the bytes sent; HTTP: not a 200, or not HTTP at all */
    "no_port", /* EADDRNOTAVAIL or EADDRINUSE: ephemeral ports ran out after all */
    "other",   /* any other errno; the last one is reported as "last_errno" */
};

static struct {
    struct sockaddr_in server;
    uint64_t duration_ns, warmup_ns, timeout_ns, total;
    int clients, threads;
    size_t bytes, http_size;
    char http_request[1024];
    bool http, keepalive, identify;
} option;

enum stage { PAUSED, CONNECTING, READING };

struct connection {
    int fd; /* -1 exactly when PAUSED; opened by start(), closed by stop() */
    enum stage stage;
    bool first_byte;
    size_t sent, got;
    uint64_t began_ns; /* before connect(), or before the send on a connection kept alive */
    char request[MAX_BYTES];
    char answer[ANSWER_KEPT];
};

struct name {
    char text[NAME_SIZE];
    uint64_t count;
};

struct loader { /* all that a thread owns; nothing is shared while it runs */
    int index, epoll, clients, busy, paused, last_errno;
    struct connection *connections;
    uint64_t started, total; /* requests; total is 0 when the time decides */
    uint64_t sequence;
    uint64_t begin_ns, count_from_ns, count_until_ns, last_ns;
    bool stopping;
    uint64_t completed, requests, connects, errors[ERRORS], latency_max, latency_count;
    uint64_t latency[BUCKETS];
    struct name names[NAMES];
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

/* ---- What is counted ---- */

static size_t bucket(uint64_t ns)
{
    if (ns < (2u << STEP_BITS))
        return (size_t)ns;
    int shift = 63 - __builtin_clzll(ns) - STEP_BITS;
    return ((size_t)shift << STEP_BITS) + (size_t)(ns >> shift);
}

static double bucket_middle(size_t index)
{
    if (index < (2u << STEP_BITS))
        return (double)index;
    unsigned shift = (unsigned)(index >> STEP_BITS) - 1;
    uint64_t low = (uint64_t)(index - ((size_t)shift << STEP_BITS)) << shift;
    return (double)low + (double)(1ull << shift) / 2;
}

static void count_latency(struct loader *l, uint64_t ns)
{
    l->latency[bucket(ns)]++;
    l->latency_count++;
    if (ns > l->latency_max)
        l->latency_max = ns;
}

static void count_name(struct name *table, const char *text, size_t size, uint64_t count)
{
    char key[NAME_SIZE] = {0};
    memcpy(key, text, size < NAME_SIZE - 1 ? size : NAME_SIZE - 1);
    uint64_t hash = 14695981039346656037ull; /* FNV-1a */
    for (const char *c = key; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 1099511628211ull;
    for (size_t probe = 0; probe < NAMES; probe++) {
        struct name *n = &table[(hash + probe) % NAMES];
        if (n->count == 0)
            memcpy(n->text, key, NAME_SIZE);
        if (strcmp(n->text, key) == 0) {
            n->count += count;
            return;
        }
    }
    /* More than NAMES names: the answers are no identities; the sum of shares then falls short of requests. */
}

static bool counts(const struct loader *l, uint64_t now)
{
    return now >= l->count_from_ns && now < l->count_until_ns;
}

/* ---- One connection ---- */

static void stop(struct connection *c)
{
    close(c->fd); /* also takes it out of the epoll: no copy of the descriptor exists */
    c->fd = -1;
    c->stage = PAUSED;
}

static void fail(struct loader *l, struct connection *c, enum error kind)
{
    l->errors[kind]++;
    if (c->fd >= 0)
        stop(c);
    l->busy--;
    l->paused++;
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
    default: l->last_errno = number; return OTHER;
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
    l->started++;
    if (!option.http) {
        /* Another text each time, so that an answer which belongs to another connection is noticed. */
        uint64_t x = (++l->sequence + ((uint64_t)l->index << 48)) * 0x9e3779b97f4a7c15ull;
        for (size_t i = 0; i < option.bytes; i++, x = (x >> 5) | (x << 59))
            c->request[i] = (char)('@' + (x & 31)); /* never a newline */
    }
}

/* Returns 0 when all is sent, EAGAIN, or another errno. */
static int send_request(struct connection *c)
{
    const char *text = option.http ? option.http_request : c->request;
    size_t size = option.http ? option.http_size : option.bytes;
    while (c->sent < size) {
        ssize_t n = send(c->fd, text + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0)
            return errno;
        c->sent += (size_t)n;
    }
    return 0;
}

static void start(struct loader *l, struct connection *c)
{
    l->busy++;
    new_request(l, c);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fail_errno(l, c, errno);
        return;
    }
    uint64_t attempt = l->connects++;
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

static bool may_start(struct loader *l)
{
    return !l->stopping && (l->total == 0 || l->started < l->total);
}

/* ---- Answers ---- */

struct slice { const char *text; size_t size; };

static struct slice line_at(const char *text, const char *end)
{
    size_t size = 0;
    while (text + size < end && text[size] != '\r' && text[size] != '\n')
        size++;
    return (struct slice){text, size};
}

enum verdict { FAILED, WAIT, COMPLETE, COMPLETE_CLOSE }; /* the last: the connection cannot be used again */

static enum verdict echo_verdict(const struct connection *c, bool eof, struct slice *name, enum error *kind)
{
    size_t same = c->got < option.bytes ? c->got : option.bytes;
    size_t expected = option.bytes;
    *kind = WRONG;
    if (memcmp(c->answer, c->request, same) != 0)
        return FAILED;
    if (option.identify && c->got > option.bytes) {
        const char *line = c->answer + option.bytes;
        const char *newline = memchr(line, '\n', c->got - option.bytes);
        if (newline == NULL && c->got - option.bytes >= NAME_SIZE)
            return FAILED;
        expected = newline ? (size_t)(newline + 1 - c->answer) : c->got + 1;
        if (newline)
            *name = (struct slice){line, (size_t)(newline - line)};
    } else if (option.identify)
        expected = option.bytes + 1;
    if (c->got > expected)
        return FAILED;
    if (c->got == expected)
        return eof ? COMPLETE_CLOSE : COMPLETE;
    *kind = SHORT;
    return eof ? FAILED : WAIT;
}

/* The value of a header, without a value when there is none. */
static struct slice header(const char *head, const char *end, const char *field)
{
    size_t size = strlen(field);
    while (head < end) {
        struct slice line = line_at(head, end);
        if (line.size > size && line.text[size] == ':' && strncasecmp(line.text, field, size) == 0) {
            const char *value = line.text + size + 1, *stop = line.text + line.size;
            while (value < stop && *value == ' ')
                value++;
            return (struct slice){value, (size_t)(stop - value)};
        }
        head = line.text + line.size + 1; /* an empty line between CR and LF does no harm */
    }
    return (struct slice){NULL, 0};
}

static bool says(struct slice value, const char *word)
{
    return value.text && value.size == strlen(word) && strncasecmp(value.text, word, value.size) == 0;
}

static enum verdict http_verdict(const struct connection *c, bool eof, struct slice *name, enum error *kind)
{
    size_t kept = c->got < ANSWER_KEPT ? c->got : ANSWER_KEPT;
    const char *end = c->answer + kept;
    const char *blank = memmem(c->answer, kept, "\r\n\r\n", 4);
    if (blank == NULL) {
        *kind = kept == ANSWER_KEPT ? WRONG : SHORT;
        return eof || kept == ANSWER_KEPT ? FAILED : WAIT;
    }
    *kind = WRONG;
    if (strncmp(c->answer, "HTTP/1.", 7) != 0 || strncmp(c->answer + 8, " 200", 4) != 0)
        return FAILED;

    const char *body = blank + 4;
    struct slice length = header(c->answer, body, "Content-Length");
    struct slice connection = header(c->answer, body, "Connection");
    bool chunked = says(header(c->answer, body, "Transfer-Encoding"), "chunked");
    bool whole;
    if (chunked)
        /* Only the end is looked at, so the answer must fit; the bodies asked for here are a line long. */
        whole = c->got <= ANSWER_KEPT && kept >= 5 && memcmp(end - 5, "0\r\n\r\n", 5) == 0;
    else if (length.text)
        whole = c->got - (size_t)(body - c->answer) >= strtoull(length.text, NULL, 10);
    else
        whole = eof;
    if (!whole) {
        *kind = SHORT;
        return eof ? FAILED : WAIT;
    }
    if (!eof && !option.keepalive)
        return WAIT; /* "Connection: close" was asked for: the end-of-file belongs to the answer */

    const char *first = body;
    if (chunked) { /* the first line is the size of the chunk */
        first += line_at(body, end).size;
        first += end - first > 2 ? 2 : end - first;
    }
    *name = line_at(first, end);
    bool old = c->answer[7] == '0' && !says(connection, "keep-alive");
    return eof || old || says(connection, "close") ? COMPLETE_CLOSE : COMPLETE;
}

/* ---- The loop ---- */

static void complete(struct loader *l, struct connection *c, enum verdict verdict, struct slice name, uint64_t now)
{
    l->completed++;
    if (counts(l, now)) {
        l->requests++;
        l->last_ns = now;
        if (option.identify)
            count_name(l->names, name.text, name.size, 1);
    }
    bool more = may_start(l);
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
    stop(c);
    l->busy--;
    if (more)
        start(l, c);
    else
        l->paused++;
}

static void readable(struct loader *l, struct connection *c)
{
    char rest[ANSWER_KEPT];
    bool fits = c->got < ANSWER_KEPT;
    ssize_t n = fits ? recv(c->fd, c->answer + c->got, ANSWER_KEPT - c->got, 0) : recv(c->fd, rest, sizeof rest, 0);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail_errno(l, c, errno);
        return;
    }
    uint64_t now = now_ns();
    if (n > 0 && !c->first_byte) {
        c->first_byte = true;
        if (counts(l, now))
            count_latency(l, now - c->began_ns);
    }
    c->got += (size_t)n;
    struct slice name = {"", 0};
    enum error kind = OTHER;
    enum verdict verdict =
        option.http ? http_verdict(c, n == 0, &name, &kind) : echo_verdict(c, n == 0, &name, &kind);
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

static void wake_paused(struct loader *l)
{
    for (int i = 0; i < l->clients && may_start(l); i++)
        if (l->connections[i].stage == PAUSED) {
            l->paused--;
            start(l, &l->connections[i]);
        }
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
    if (l->epoll < 0 || l->connections == NULL)
        die("load");
    for (int i = 0; i < l->clients; i++)
        l->connections[i].fd = -1;
    l->paused = l->clients;

    l->begin_ns = now_ns();
    l->count_from_ns = l->begin_ns + option.warmup_ns;
    l->count_until_ns = l->total ? UINT64_MAX : l->count_from_ns + option.duration_ns;
    uint64_t resumed = l->begin_ns, scanned = l->begin_ns;
    wake_paused(l);
    /* Whatever is under way when the time is up is finished (or times out), so that errors at the end are seen. */
    while (l->busy > 0 || may_start(l)) {
        int n = epoll_wait(l->epoll, events, 256, l->paused > 0 && may_start(l) ? 1 : 10);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        /* A connection is in `events` at most once, and one that is opened below is not in this batch. */
        for (int i = 0; i < n; i++)
            step(l, events[i].data.ptr);
        uint64_t now = now_ns();
        if (now >= l->count_until_ns)
            l->stopping = true;
        if (now - scanned >= SCAN_NS) {
            scanned = now;
            end_overdue(l, now);
        }
        if (l->paused > 0 && now - resumed >= PAUSE_NS) {
            resumed = now;
            wake_paused(l);
        }
    }
    close(l->epoll);
    free(l->connections);
    return NULL;
}

/* ---- Report ---- */

static double percentile_us(const struct loader *l, double part)
{
    uint64_t rank = (uint64_t)((double)l->latency_count * part), seen = 0;
    if (rank >= l->latency_count)
        rank = l->latency_count - 1;
    for (size_t i = 0; i < BUCKETS; i++)
        if ((seen += l->latency[i]) > rank) {
            double ns = bucket_middle(i);
            return (ns < (double)l->latency_max ? ns : (double)l->latency_max) / 1e3;
        }
    return 0;
}

static void print_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c > 0x7e || c == '"' || c == '\\')
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void report(const struct loader *sum)
{
    uint64_t end = option.total ? sum->last_ns : sum->count_until_ns;
    double seconds = end > sum->count_from_ns ? (double)(end - sum->count_from_ns) / 1e9 : 0;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
                 + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    /* cpu_seconds near threads * elapsed_seconds: this program was the bottleneck, not the server */
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"rate\": %.3f, \"connects\": %llu, \"completed\": %llu,\n",
           (unsigned long long)sum->requests, seconds, seconds > 0 ? (double)sum->requests / seconds : 0,
           (unsigned long long)sum->connects, (unsigned long long)sum->completed);
    printf(" \"elapsed_seconds\": %.6f, \"cpu_seconds\": %.6f, \"last_errno\": %d,\n \"errors\": {",
           (double)(now_ns() - sum->begin_ns) / 1e9, cpu, sum->last_errno);
    for (int i = 0; i < ERRORS; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", error_names[i], (unsigned long long)sum->errors[i]);
    printf("},\n \"latency_us\": {\"count\": %llu, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f,",
           (unsigned long long)sum->latency_count, percentile_us(sum, 0.5), percentile_us(sum, 0.9),
           percentile_us(sum, 0.99));
    printf(" \"p999\": %.1f, \"max\": %.1f},\n \"shares\": {", percentile_us(sum, 0.999),
           (double)sum->latency_max / 1e3);
    bool comma = false;
    for (size_t i = 0; i < NAMES; i++)
        if (sum->names[i].count) {
            fputs(comma ? ", " : "", stdout);
            print_string(sum->names[i].text);
            printf(": %llu", (unsigned long long)sum->names[i].count);
            comma = true;
        }
    printf("}}\n");
}

static void merge(struct loader *sum, const struct loader *l)
{
    sum->completed += l->completed;
    sum->requests += l->requests;
    sum->connects += l->connects;
    sum->latency_count += l->latency_count;
    if (l->last_errno)
        sum->last_errno = l->last_errno;
    if (l->last_ns > sum->last_ns)
        sum->last_ns = l->last_ns;
    if (l->latency_max > sum->latency_max)
        sum->latency_max = l->latency_max;
    for (int i = 0; i < ERRORS; i++)
        sum->errors[i] += l->errors[i];
    for (size_t i = 0; i < BUCKETS; i++)
        sum->latency[i] += l->latency[i];
    for (size_t i = 0; i < NAMES; i++)
        if (l->names[i].count)
            count_name(sum->names, l->names[i].text, strlen(l->names[i].text), l->names[i].count);
}

/* ---- Options ---- */

static void usage(const char *problem)
{
    fprintf(stderr,
            "load: %s\n"
            "usage: load -p PORT [-H ADDRESS] [-c CLIENTS] [-d SECONDS | -n REQUESTS] [-m echo|http] [-k] [-i]\n"
            "            [-b BYTES] [-P PATH] [-w WARMUP_SECONDS] [-T TIMEOUT_SECONDS] [-t THREADS]\n",
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

int main(int argc, char **argv)
{
    const char *host = "127.0.0.1", *path = "/";
    double duration = 0;
    int port = 0, letter;
    option.clients = 64;
    option.threads = 1;
    option.bytes = 1;
    option.timeout_ns = 5 * NS_PER_S;
    while ((letter = getopt(argc, argv, "H:p:c:d:n:m:kib:P:w:T:t:")) != -1)
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
        default: usage("unknown option");
        }
    if (optind != argc || port == 0)
        usage("one -p PORT and no other arguments");
    if ((duration > 0) == (option.total > 0))
        usage("one of -d and -n");
    if (option.total && option.warmup_ns)
        usage("-w goes with -d: a number of requests has no warm-up");
    if (option.threads > option.clients)
        usage("more threads than clients");
    option.duration_ns = (uint64_t)(duration * 1e9);
    option.server.sin_family = AF_INET;
    option.server.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, host, &option.server.sin_addr) != 1)
        usage("-H is an IPv4 address");
    int size = snprintf(option.http_request, sizeof option.http_request,
                        "GET %s HTTP/1.1\r\nHost: %s:%d\r\nConnection: %s\r\n\r\n", path, host, port,
                        option.keepalive ? "keep-alive" : "close");
    if (size < 0 || (size_t)size >= sizeof option.http_request)
        usage("-P is too long");
    option.http_size = (size_t)size;

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
    struct loader *sum = &loaders[option.threads];
    sum->begin_ns = loaders[0].begin_ns;
    sum->count_from_ns = loaders[0].count_from_ns;
    sum->count_until_ns = loaders[0].count_until_ns;
    for (int i = 0; i < option.threads; i++) {
        if (i > 0)
            pthread_join(threads[i], NULL);
        merge(sum, &loaders[i]);
    }
    report(sum);
    free(loaders);
    return 0;
}
