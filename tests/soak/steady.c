/* Sends mail over SMTP at a steady rate that does not depend on the answers, and says what became of each.
 *
 * Mail number i is due at i/RATE seconds after the start. A mail's time counts from when it was due, not from when a
 * connection was free for it: a server that stands still for two seconds is charged with every mail of those two seconds.
 * A mail that got no answer, or a 4xx, is tried again as a mail server would, up to TRIES times.
 * Knows alone: the schedule, and where a mail has its number. Limits: IPv4, loopback; no TLS; a connection for each mail.
 *
 *   steady PORT RATE SECONDS CONNECTIONS FIRST SENDER KIND…        KIND is WEIGHT:USERS:RECIPIENT:FILE
 *
 * RATE 0: as fast as it is taken. FILE is a mail as it follows DATA, with its dots and its end; wherever it has the mark,
 * a number of 16 digits is put, from FIRST on. RECIPIENT may hold one %d, the number of a user.
 * For each mail a line: NUMBER KIND DUE_S TOOK_S CODE TRIES; code 0 where no answer came. Ends with whoever started it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { TRIES = 5, MARKS = 4, KINDS = 16, DIGITS = 16, PATIENCE = 60 };
static const char MARK[] = "SoakSerialNumber";

typedef struct {
    int weight, users, marks;
    char *recipient, *data;
    size_t size, at[MARKS];
} kind;

typedef struct {
    int fd;
    size_t have;
    char input[4096];
} line;

static struct {
    struct sockaddr_in to;
    double rate, seconds, began;
    int kinds, weights;
    long first;
    const char *sender;
    kind of[KINDS];
} plan;
static atomic_long next_number;
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

static void sleep_until(double when) {
    struct timespec t = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (double)(time_t)when) * 1e9)};
    while (!stopping && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
}

/* --- the conversation --- */

static bool put(line *l, struct iovec *pieces, int count) {
    while (count) {
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
        ssize_t done = sendmsg(l->fd, &message, MSG_NOSIGNAL);
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

/* The code of one reply; 0 where the line broke. */
static int hear(line *l) {
    for (;;) {
        char *end = memchr(l->input, '\n', l->have);
        if (end) {
            size_t size = (size_t)(end - l->input) + 1;
            int code = atoi(l->input);
            bool last = size < 5 || l->input[3] != '-';
            l->have -= size;
            memmove(l->input, end + 1, l->have);
            if (last) return code;
            continue;
        }
        ssize_t got = l->have < sizeof l->input ? recv(l->fd, l->input + l->have, sizeof l->input - l->have, 0) : 0;
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        l->have += (size_t)got;
    }
}

static int say(line *l, const char *text) {
    struct iovec piece = {(char *)text, strlen(text)};
    return put(l, &piece, 1) ? hear(l) : 0;
}

static int greet(line *l) {
    int yes = 1, code;
    struct timeval patience = {.tv_sec = PATIENCE};
    l->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    l->have = 0;
    setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(l->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(l->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(l->fd, (struct sockaddr *)&plan.to, sizeof plan.to)) return 0;
    return (code = hear(l)) != 220 ? code : say(l, "EHLO cabinet.example\r\n");
}

static int deliver(line *l, const kind *k, const char *number, long serial) {
    char command[600], address[400];
    int code;
    snprintf(command, sizeof command, "MAIL FROM:<%s>\r\n", plan.sender);
    if ((code = say(l, command)) != 250) return code;
    snprintf(address, sizeof address, k->recipient, (int)(serial % k->users));
    snprintf(command, sizeof command, "RCPT TO:<%s>\r\n", address);
    if ((code = say(l, command)) != 250) return code;
    if ((code = say(l, "DATA\r\n")) != 354) return code;
    struct iovec pieces[2 * MARKS + 1];
    int count = 0;
    size_t from = 0;
    for (int m = 0; m < k->marks; m++) {
        pieces[count++] = (struct iovec){k->data + from, k->at[m] - from};
        pieces[count++] = (struct iovec){(char *)number, DIGITS};
        from = k->at[m] + DIGITS;
    }
    pieces[count++] = (struct iovec){k->data + from, k->size - from};
    return put(l, pieces, count) ? hear(l) : 0;
}

static int attempt(const kind *k, const char *number, long serial) {
    static const char goodbye[] = "QUIT\r\n";
    line l = {.fd = -1};
    int code = greet(&l);
    if (code == 250) code = deliver(&l, k, number, serial);
    send(l.fd, goodbye, sizeof goodbye - 1, MSG_NOSIGNAL);
    close(l.fd);
    return code;
}

/* --- the schedule --- */

static int kind_of(long number) {
    unsigned long long dice = (unsigned long long)number * 0x9e3779b97f4a7c15ULL;
    int at = (int)((dice >> 32) % (unsigned)plan.weights), chosen = 0;
    while ((at -= plan.of[chosen].weight) >= 0) chosen++;
    return chosen;
}

static void *work(void *nothing) {
    while (!stopping) {
        long i = atomic_fetch_add(&next_number, 1), serial = plan.first + i;
        double due = plan.rate > 0 ? (double)i / plan.rate : now() - plan.began;
        if (due >= plan.seconds) break;
        sleep_until(plan.began + due);
        if (stopping) break;
        char number[DIGITS + 8];
        snprintf(number, sizeof number, "%0*ld", DIGITS, serial);
        int chosen = kind_of(serial), code = 0, tries = 0;
        do {
            if (tries) sleep_until(now() + tries);
            code = attempt(&plan.of[chosen], number, serial);
            tries++;
        } while ((code == 0 || code / 100 == 4) && tries < TRIES && !stopping);
        printf("%ld %d %.4f %.6f %d %d\n", serial, chosen, due, now() - plan.began - due, code, tries);
    }
    return nothing;
}

static bool read_kind(kind *k, const char *text) {
    int used = 0;
    char recipient[300], path[1000];
    if (sscanf(text, "%d:%d:%299[^:]:%n", &k->weight, &k->users, recipient, &used) < 3 || !used) return false;
    if (k->weight < 0 || k->users < 1 || strlen(text + used) >= sizeof path) return false;
    const char *sign = strchr(recipient, '%'); /* one %d at most: it becomes a format */
    if (sign && (sign[1] != 'd' || strchr(sign + 1, '%'))) return false;
    k->recipient = strdup(recipient);
    FILE *file = fopen(text + used, "rb");
    if (!file || fseek(file, 0, SEEK_END)) return false;
    k->size = (size_t)ftell(file);
    rewind(file);
    k->data = malloc(k->size);
    bool whole = k->data && fread(k->data, 1, k->size, file) == k->size;
    fclose(file);
    for (char *found = k->data; whole && k->marks < MARKS; found += DIGITS) {
        found = memmem(found, k->size - (size_t)(found - k->data), MARK, DIGITS);
        if (!found) break;
        k->at[k->marks++] = (size_t)(found - k->data);
    }
    return whole;
}

int main(int argc, char **argv) {
    if (argc < 8 || argc - 7 > KINDS) return 2;
    plan.to = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    plan.to.sin_port = htons((unsigned short)atoi(argv[1]));
    plan.rate = atof(argv[2]);
    plan.seconds = atof(argv[3]);
    int connections = atoi(argv[4]);
    plan.first = atol(argv[5]);
    plan.sender = argv[6];
    for (int i = 7; i < argc; i++, plan.kinds++) {
        if (!read_kind(&plan.of[plan.kinds], argv[i])) return 2;
        plan.weights += plan.of[plan.kinds].weight;
    }
    if (connections < 1 || plan.weights < 1 || strlen(plan.sender) > 400) return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = stop}, NULL);
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    pthread_t *threads = calloc((size_t)connections, sizeof *threads);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    plan.began = now();
    printf("began %.6f\n", plan.began);
    for (int i = 0; i < connections; i++)
        if (pthread_create(&threads[i], &small, work, NULL)) return 1;
    for (int i = 0; i < connections; i++) pthread_join(threads[i], NULL);
    return 0;
}
