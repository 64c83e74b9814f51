/* handoff: a reference. A primary that accepts and hands over to workers in turn, one connection per wake-up, with
 * nothing else in it.
 *
 *     cc -O2 -Wall -Wextra -pthread -o handoff handoff.c
 *     ./handoff PORT WORKERS echo|http
 *
 * The primary: accept4(), sendmsg() with the descriptor over a SOCK_SEQPACKET pair per worker, close().  A worker:
 * recvmsg(), then what a blocking worker of work.py does.  All calls block; no queue is bounded by anything but the
 * socket's buffer, nothing is taken back from a worker that is stuck or dead.  It is no limit: a primary
 * that lets some connections gather can do with less processor time for each.
 *
 * Prints "ready" when it listens, and ends with all workers at SIGTERM.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 511
#define MOST_WORKERS 1024

static int channels[MOST_WORKERS];

static void die(const char *what)
{
    perror(what);
    _exit(1);
}

static void write_all(int fd, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t n = send(fd, text, size, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the client went away */
        text += n;
        size -= (size_t)n;
    }
}

static void slow(void)
{
    struct timespec time = {0, 50 * 1000 * 1000};
    nanosleep(&time, NULL);
}

static void answer(int fd, int worker, bool http)
{
    char request[1024], text[1200], line[32];
    int line_size = snprintf(line, sizeof line, "worker %d\n", worker);
    ssize_t n;
    while ((n = recv(fd, request, sizeof request, 0)) > 0) {
        int size;
        if (http) {
            if (n >= 10 && memcmp(request, "GET /slow ", 10) == 0)
                slow();
            size = snprintf(text, sizeof text,
                            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                            "Content-Length: %d\r\n\r\n%s", line_size, line);
        } else {
            if (request[0] == '~')
                slow();
            memcpy(text, request, (size_t)n);
            memcpy(text + n, line, (size_t)line_size);
            size = (int)n + line_size;
        }
        write_all(fd, text, (size_t)size);
        if (http)
            break;
    }
}

/* Receives one descriptor, into *fd. Returns false at the end of the channel. */
static bool take(int channel, int *fd)
{
    char byte;
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t n = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (n <= 0 || head == NULL)
        return false;
    memcpy(fd, CMSG_DATA(head), sizeof *fd);
    return true;
}

static void work(int channel, int worker, bool http)
{
    int fd;
    while (take(channel, &fd)) {
        answer(fd, worker, http);
        close(fd);
    }
    _exit(0);
}

static void hand_over(int channel, int fd)
{
    char byte = 0;
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(channel, &message, MSG_NOSIGNAL) < 0)
        die("sendmsg");
}

static void end(int number)
{
    (void)number;
    _exit(0); /* the kernel ends the workers: PR_SET_PDEATHSIG */
}

int main(int argc, char **argv)
{
    if (argc != 4 || (strcmp(argv[3], "echo") != 0 && strcmp(argv[3], "http") != 0)) {
        fprintf(stderr, "usage: handoff PORT WORKERS echo|http\n");
        return 2;
    }
    int workers = atoi(argv[2]), on = 1;
    bool http = strcmp(argv[3], "http") == 0;
    if (workers < 1 || workers > MOST_WORKERS) {
        fprintf(stderr, "handoff: 1 to %d workers\n", MOST_WORKERS);
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0)
        die("listen");
    signal(SIGTERM, end);
    for (int i = 0; i < workers; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
            die("socketpair");
        pid_t primary = getpid(), pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            signal(SIGTERM, SIG_DFL);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != primary)
                _exit(1);
            for (int k = 0; k < i; k++)
                close(channels[k]);
            close(pair[0]);
            close(listener);
            work(pair[1], i + 1, http);
        }
        close(pair[1]);
        channels[i] = pair[0];
    }
    printf("ready\n");
    fflush(stdout);
    for (unsigned turn = 0;; turn++) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == ECONNABORTED || errno == EINTR)
                continue;
            die("accept4");
        }
        hand_over(channels[turn % (unsigned)workers], fd);
        close(fd);
    }
}
