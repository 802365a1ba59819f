/* Takes mail on 127.0.0.1, counts it and throws it away; cheap enough not to bound any sender.
 *
 *   sink PORT [MESSAGES]
 *
 * Ends after MESSAGES or on SIGTERM, and prints how many came, their bytes, and when the last one ended (seconds of
 * CLOCK_MONOTONIC). One process, one thread, epoll; offers PIPELINING, SIZE and 8BITMIME.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 19 };
static const char END[] = "\r\n.\r\n";

typedef struct {
    int fd;
    bool in_data;
    size_t held;           /* of the command that has begun, or of the mail's last bytes */
    char line[4096];
} session;

static char chunk[CHUNK];
static long count, wanted, bytes;
static double last;
static volatile sig_atomic_t stopping;

static void stop(int number) {
    (void)number;
    stopping = 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void say(session *s, const char *text) {
    if (send(s->fd, text, strlen(text), MSG_NOSIGNAL) < 0) shutdown(s->fd, SHUT_RDWR);
}

/* How much of data[0..size) belongs to the mail up to the end of its dot; 0: all of it, and the end is still to come.
 * Base64 has no dots, so a search for them is a search at the speed of memory. */
static size_t end_of_mail(session *s, const char *data, size_t size) {
    char seam[8];
    size_t head = size < 4 ? size : 4;
    memcpy(seam, s->line, s->held);
    memcpy(seam + s->held, data, head);
    char *found = memmem(seam, s->held + head, END, 5);
    if (found) return (size_t)(found - seam) + 5 - s->held;
    const char *dot = data + 2, *stop_at = data + size;
    while (dot + 2 < stop_at && (dot = memchr(dot, '.', (size_t)(stop_at - dot - 2)))) {
        if (!memcmp(dot - 2, END, 5)) return (size_t)(dot - data) + 3;
        dot++;
    }
    if (size >= 4) {
        memcpy(s->line, data + size - 4, s->held = 4);
    } else {
        size_t all = s->held + size, kept = all < 4 ? all : 4;
        memcpy(s->line, seam + all - kept, s->held = kept);
    }
    return 0;
}

static void answer(session *s) {
    if (!strncasecmp(s->line, "DATA", 4)) {
        s->in_data = true;
        memcpy(s->line, "\r\n", s->held = 2);
        say(s, "354 go ahead\r\n");
        return;
    }
    s->held = 0;
    if (!strncasecmp(s->line, "EHLO", 4))
        say(s, "250-sink.example\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250 8BITMIME\r\n");
    else if (!strncasecmp(s->line, "QUIT", 4))
        say(s, "221 2.0.0 bye\r\n");
    else
        say(s, "250 2.0.0 ok\r\n");
}

static void take(session *s, const char *data, size_t size) {
    while (size) {
        size_t used;
        if (s->in_data) {
            used = end_of_mail(s, data, size);
            bytes += (long)(used ? used : size);
            if (!used) return;
            s->in_data = false;
            s->held = 0;
            last = now();
            say(s, "250 2.0.0 taken\r\n");
            if (++count == wanted) stopping = 1;
        } else {
            const char *end = memchr(data, '\n', size);
            used = end ? (size_t)(end - data) + 1 : size;
            size_t room = sizeof s->line - 1 - s->held, kept = used < room ? used : room;
            memcpy(s->line + s->held, data, kept);
            s->held += kept;
            s->line[s->held] = 0;
            if (end) answer(s);
        }
        data += used;
        size -= used;
    }
}

static void open_session(int epoll, int listening) {
    int yes = 1, fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    session *s = calloc(1, sizeof *s);
    s->fd = fd;
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = s});
    say(s, "220 sink.example ESMTP\r\n");
}

static void listen_to(session *s) {
    ssize_t got = recv(s->fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (got > 0) {
        take(s, chunk, (size_t)got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        close(s->fd);
        free(s);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), epoll = epoll_create1(EPOLL_CLOEXEC);
    wanted = argc > 2 ? atol(argv[2]) : 0;
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = stop}, NULL);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listening, (struct sockaddr *)&here, sizeof here) || listen(listening, 512)) {
        perror("sink");
        return 1;
    }
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &(struct epoll_event){.events = EPOLLIN});
    while (!stopping) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready && !stopping; i++) {
            if (events[i].data.ptr) listen_to(events[i].data.ptr);
            else open_session(epoll, listening);
        }
    }
    printf("{\"messages\": %ld, \"bytes\": %ld, \"last\": %.6f}\n", count, bytes, last);
    return 0;
}
