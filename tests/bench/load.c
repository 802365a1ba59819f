/* Sends real mail over SMTP as fast as it is taken, and says how fast that was.
 *
 * One thread a connection, blocking sockets. A mail is a short text and one document in base64, in lines of 76; every
 * one has a Message-ID and a document of its own (a serial number in its first line), so that no server can find a
 * repeat. Or it is a file, lines ended by CRLF and none begun by a dot, with a Message-ID before it: one that bears a
 * signature. Up to its last 250 a mail's time counts, the connection included where each mail has its own.
 * Knows alone: what the bench's mail looks like. Limits: IPv4; no TLS.
 *
 *   load -p PORT (-s SECONDS | -n MESSAGES) [-a ADDRESS] [-c CONNECTIONS] [-b BYTES] [-k MAILS]
 *        [-f SENDER] [-t RECIPIENT] [-u USERS] [-m FILE] [-P] [-B]
 *   -k  mails per connection, 0: one connection for all       -P  MAIL, RCPT and DATA in one packet
 *   -t  may hold one %d: the number of a user, 0 to USERS-1   -B  BDAT instead of DATA
 *   -m  the mail but for its Message-ID; -b does not count then
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 76, MOST_ERRORS = 100, PATIENCE = 120 };

static struct {
    struct sockaddr_in to;
    int connections, mails_each, users;
    long messages;
    double seconds;
    size_t bytes;
    const char *sender, *recipient, *mail;
    bool pipelined, bdat;
} plan = {.connections = 1, .mails_each = 1, .users = 1, .bytes = 20000,
          .sender = "scanner@client.example", .recipient = "user%d@dest.example"};

static char *lines;        /* the document from its second line on, or all of -m, and what ends the mail */
static size_t lines_size;
static double began, ends;
static atomic_long taken, errors;
static char first_error[256];

typedef struct {
    pthread_t thread;
    int fd;
    size_t have;           /* bytes of replies not yet looked at */
    char input[4096];
    char head[2048];
    double *times, last;   /* seconds per mail; when the last was answered */
    size_t sent, room;
} client;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* --- the mail --- */

static int write_head(char *to, size_t room, long serial) {
    int id = snprintf(to, room, "Message-ID: <%ld.%d.%lld@client.example>\r\n",
        serial, (int)getpid(), (long long)(began * 1e6));
    if (plan.mail) return id;
    return id + snprintf(to + id, room - (size_t)id,
        "Date: Mon, 02 Mar 2026 09:00:00 +0100\r\n"
        "From: Scanner <scanner@client.example>\r\nTo: <collecte@welyb.example>\r\nSubject: Numerisation\r\n"
        "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"b1_5f2c9d\"\r\n\r\n"
        "--b1_5f2c9d\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nVeuillez trouver le document ci-joint.\r\n\r\n"
        "--b1_5f2c9d\r\nContent-Type: application/pdf; name=\"facture.pdf\"\r\nContent-Transfer-Encoding: base64\r\n"
        "Content-Disposition: attachment; filename=\"facture.pdf\"\r\n\r\n"
        "JVBERi0xLjQK%016ld%048d\r\n", /* "%PDF-1.4\n", and the document's number in digits of base64 */
        serial, (int)getpid());
}

static void make_lines(void) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const char end[] = "\r\n--b1_5f2c9d--\r\n.\r\n";
    char head[2048];
    size_t fixed = (size_t)write_head(head, sizeof head, 0) + sizeof end - 1;
    size_t count = plan.bytes > fixed ? (plan.bytes - fixed) / (LINE + 2) : 0;
    char *at = lines = malloc(count * (LINE + 2) + sizeof end);
    unsigned long long dice = 0x9e3779b97f4a7c15ULL;
    for (size_t line = 0; line < count; line++) {
        for (int i = 0; i < LINE; i++) {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            *at++ = digits[dice >> 58];
        }
        *at++ = '\r';
        *at++ = '\n';
    }
    memcpy(at, end, sizeof end);
    lines_size = (size_t)(at - lines) + sizeof end - 1;
}

static bool read_lines(void) {
    static const char end[] = ".\r\n";
    struct stat about;
    FILE *file = fopen(plan.mail, "rb");
    if (!file || fstat(fileno(file), &about)) return false;
    size_t size = (size_t)about.st_size;
    lines = malloc(size + sizeof end);
    bool whole = fread(lines, 1, size, file) == size;
    fclose(file);
    memcpy(lines + size, end, sizeof end);
    lines_size = size + sizeof end - 1;
    return whole;
}

/* --- the conversation --- */

static bool put(client *c, struct iovec *pieces, int count) {
    while (count) {
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
        ssize_t done = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return false;
        for (; count && (size_t)done >= pieces->iov_len; pieces++, count--) done -= (ssize_t)pieces->iov_len;
        if (count) {
            pieces->iov_base = (char *)pieces->iov_base + done;
            pieces->iov_len -= (size_t)done;
        }
    }
    return true;
}

static bool say(client *c, const char *text) {
    struct iovec piece = {(char *)text, strlen(text)};
    return put(c, &piece, 1);
}

static void note(const char *text, size_t size) {
    if (first_error[0]) return;
    for (size_t i = 0; i < size && i < sizeof first_error - 1; i++)
        first_error[i] = text[i] < ' ' || text[i] == '"' || text[i] == '\\' ? ' ' : text[i];
}

/* Reads one reply to its last line; true if it begins with that digit. */
static bool hear(client *c, char wanted) {
    for (;;) {
        char *end = memchr(c->input, '\n', c->have);
        if (end) {
            size_t size = (size_t)(end - c->input) + 1;
            bool last = size < 5 || c->input[3] != '-', good = c->input[0] == wanted;
            if (!good) note(c->input, size);
            c->have -= size;
            memmove(c->input, end + 1, c->have);
            if (last) return good;
            continue;
        }
        ssize_t got = c->have < sizeof c->input ? recv(c->fd, c->input + c->have, sizeof c->input - c->have, 0) : 0;
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            note(got ? strerror(errno) : "the server hung up", 80);
            return false;
        }
        c->have += (size_t)got;
    }
}

static void hang_up(client *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->have = 0;
}

static bool greet(client *c) {
    int yes = 1;
    struct timeval patience = {.tv_sec = PATIENCE};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(c->fd, (struct sockaddr *)&plan.to, sizeof plan.to)) {
        note(strerror(errno), 80);
        return false;
    }
    return hear(c, '2') && say(c, "EHLO client.example\r\n") && hear(c, '2');
}

static bool envelope(client *c, long serial) {
    char mail[512], rcpt[512], both[1100], *rcpt_end = rcpt;
    snprintf(mail, sizeof mail, "MAIL FROM:<%s>\r\n", plan.sender);
    rcpt_end += sprintf(rcpt_end, "RCPT TO:<");
    rcpt_end += snprintf(rcpt_end, 400, plan.recipient, (int)(serial % plan.users)); /* checked in main: one %d at most */
    sprintf(rcpt_end, ">\r\n");
    if (plan.pipelined) {
        snprintf(both, sizeof both, "%s%s%s", mail, rcpt, plan.bdat ? "" : "DATA\r\n");
        return say(c, both) && hear(c, '2') && hear(c, '2') && (plan.bdat || hear(c, '3'));
    }
    return say(c, mail) && hear(c, '2') && say(c, rcpt) && hear(c, '2')
        && (plan.bdat || (say(c, "DATA\r\n") && hear(c, '3')));
}

static bool deliver(client *c, long serial) {
    char command[40];
    size_t tail = plan.bdat ? lines_size - 3 : lines_size; /* BDAT needs no dot */
    if (!envelope(c, serial)) return false;
    size_t head = (size_t)write_head(c->head, sizeof c->head, serial);
    int length = plan.bdat ? snprintf(command, sizeof command, "BDAT %zu LAST\r\n", head + tail) : 0;
    struct iovec pieces[] = {{command, (size_t)length}, {c->head, head}, {lines, tail}};
    return put(c, pieces, 3) && hear(c, '2');
}

static void remember(client *c, double start) {
    if (c->sent == c->room) c->times = realloc(c->times, (c->room = c->room * 2 + 1024) * sizeof *c->times);
    c->last = now();
    c->times[c->sent++] = c->last - start;
}

static void *work(void *argument) {
    client *c = argument;
    for (int here = 0; atomic_load(&errors) < MOST_ERRORS;) {
        double start = now();
        if (plan.seconds > 0 && start > ends) break;
        long serial = atomic_fetch_add(&taken, 1);
        if (plan.messages && serial - atomic_load(&errors) >= plan.messages) break;
        if ((c->fd < 0 && !greet(c)) || !deliver(c, serial)) {
            atomic_fetch_add(&errors, 1); /* a mail that failed is made up for by another */
            hang_up(c);
            here = 0;
            usleep(20000);
            continue;
        }
        remember(c, start);
        if (plan.mails_each && ++here == plan.mails_each) {
            say(c, "QUIT\r\n"); /* the 221 is not waited for: Exim keeps it back until the client is gone */
            hang_up(c);
            here = 0;
        }
    }
    if (c->fd >= 0) say(c, "QUIT\r\n");
    hang_up(c);
    return NULL;
}

/* --- the account --- */

static int by_size(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static void account(client *clients) {
    size_t sent = 0, at = 0;
    double last = began;
    for (int i = 0; i < plan.connections; i++) {
        sent += clients[i].sent;
        if (clients[i].last > last) last = clients[i].last;
    }
    double *times = calloc(sent + 1, sizeof *times);
    for (int i = 0; i < plan.connections; at += clients[i++].sent)
        if (clients[i].sent) memcpy(times + at, clients[i].times, clients[i].sent * sizeof *times);
    qsort(times, sent, sizeof *times, by_size);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    double seconds = sent ? last - began : now() - began;
    char head[2048];
    size_t bytes = (size_t)write_head(head, sizeof head, 0) + lines_size - 3;
#define PERCENTILE(share) (sent ? times[(size_t)((double)(sent - 1) * (share))] * 1e3 : 0.0)
    printf("{\"sent\": %zu, \"errors\": %ld, \"seconds\": %.4f, \"rate\": %.3f, \"bytes\": %zu, \"mb_s\": %.3f, "
           "\"p50_ms\": %.2f, \"p95_ms\": %.2f, \"p99_ms\": %.2f, \"max_ms\": %.2f, \"generator_cpu_s\": %.4f, "
           "\"first_error\": \"%s\"}\n",
           sent, atomic_load(&errors), seconds, (double)sent / seconds, bytes,
           (double)sent * (double)bytes / seconds / 1e6, PERCENTILE(.5), PERCENTILE(.95), PERCENTILE(.99),
           PERCENTILE(1.), cpu, first_error);
}

static int usage(void) {
    fputs("load: see the head of load.c\n", stderr);
    return 2;
}

static bool fits(const char *pattern) {
    const char *sign = strchr(pattern, '%');
    return strlen(pattern) < 300 && (!sign || (sign[1] == 'd' && !strchr(sign + 1, '%')));
}

int main(int argc, char **argv) {
    plan.to = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int option; (option = getopt(argc, argv, "a:p:c:s:n:b:k:f:t:u:m:PB")) != -1;) switch (option) {
        case 'a': if (!inet_aton(optarg, &plan.to.sin_addr)) return usage(); break;
        case 'p': plan.to.sin_port = htons((unsigned short)atoi(optarg)); break;
        case 'c': plan.connections = atoi(optarg); break;
        case 's': plan.seconds = atof(optarg); break;
        case 'n': plan.messages = atol(optarg); break;
        case 'b': plan.bytes = (size_t)atol(optarg); break;
        case 'k': plan.mails_each = atoi(optarg); break;
        case 'f': plan.sender = optarg; break;
        case 't': plan.recipient = optarg; break;
        case 'u': plan.users = atoi(optarg); break;
        case 'm': plan.mail = optarg; break;
        case 'P': plan.pipelined = true; break;
        case 'B': plan.bdat = true; break;
        default: return usage();
    }
    bool endless = plan.seconds <= 0 && plan.messages <= 0;
    if (endless || !plan.to.sin_port || plan.connections < 1 || plan.users < 1) return usage();
    if (!fits(plan.recipient) || strlen(plan.sender) > 400) return usage();
    began = now();
    if (!plan.mail) make_lines();
    else if (!read_lines()) return usage();
    client *clients = calloc((size_t)plan.connections, sizeof *clients);
    began = now();
    ends = began + plan.seconds;
    for (int i = 0; i < plan.connections; i++) {
        clients[i].fd = -1;
        pthread_create(&clients[i].thread, NULL, work, &clients[i]);
    }
    for (int i = 0; i < plan.connections; i++) pthread_join(clients[i].thread, NULL);
    account(clients);
    return atomic_load(&errors) != 0;
}
