/* What a program asks of the disk, in order: for whoever wants to know what a power cut would leave of it.

   Loaded with LD_PRELOAD. Every change below the folder POWERCUT_ROOT (bytes, lengths, names, syncs) and the beginning of
   whatever is sent to a network is appended to the file POWERCUT_LOG, by all processes and threads to the same one. A
   change and its record are one step under one lock, so that the log has them in the order in which they happened. What is
   sent is recorded before it is sent, what is done on the disk after it was done: whoever cuts the log anywhere errs on the
   side of the loss. tests/crash/disk.py reads it.

   close is not here: it makes nothing durable. Neither is mmap: what is written through one is missing from the log, which
   a test finds by comparing (the -shm of SQLite is the only such file, and means nothing after a power cut). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHOWN 16384 /* bytes of what is sent */
#define PATH (2 * PATH_MAX)

struct head { /* of a record; path and data follow */
    uint32_t path, data;
    uint64_t inode, offset;
    uint64_t kind;
};

static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...)                                                                                          \
    static type (*real)(__VA_ARGS__);                                                                                  \
    if (!real)                                                                                                         \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static ssize_t plain_write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    return real(fd, data, size);
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("POWERCUT_ROOT"), *log = getenv("POWERCUT_LOG");
    int (*plain_open)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    if (!folder || !log || strlen(folder) >= sizeof root)
        return;
    int fd = plain_open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        abort();
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 200); /* out of the way of descriptors that are inherited by number */
    close(fd);
    strcpy(root, folder);
    root_length = strlen(root);
}

static int ours(const char *path) {
    return log_fd >= 0 && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

static int of_descriptor(int fd, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    path[length < 0 ? 0 : length] = 0;
    return ours(path);
}

static int of_name(int folder, const char *name, char *path) {
    int saved = errno;
    if (name[0] == '/') {
        snprintf(path, PATH, "%s", name);
    } else {
        if (folder != AT_FDCWD)
            of_descriptor(folder, path);
        else if (!getcwd(path, PATH_MAX))
            path[0] = 0;
        size_t length = strlen(path);
        snprintf(path + length, PATH - length, "/%s", name);
    }
    errno = saved;
    return ours(path);
}

static void lock(void) {
    pthread_mutex_lock(&mutex);
    while (flock(log_fd, LOCK_EX) < 0 && errno == EINTR)
        ;
}

static void unlock(void) {
    int saved = errno;
    flock(log_fd, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void record(char kind, uint64_t inode, uint64_t offset, const char *path, const void *data, size_t size) {
    int saved = errno;
    struct head head = {strlen(path), size, inode, offset, kind};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)data, size}};
    size_t whole = sizeof head + head.path + size;
    ssize_t (*plain_writev)(int, const struct iovec *, int) =
        (ssize_t(*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    if (plain_writev(log_fd, parts, 3) != (ssize_t)whole)
        abort(); /* half a record: what follows would mean nothing */
    errno = saved;
}

static uint64_t inode_of(int fd) {
    struct stat status;
    int saved = errno;
    uint64_t inode = fstat(fd, &status) < 0 ? 0 : status.st_ino;
    errno = saved;
    return inode;
}

static uint64_t inode_at(int folder, const char *name) {
    struct stat status;
    int saved = errno;
    uint64_t inode = fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) < 0 ? 0 : status.st_ino;
    errno = saved;
    return inode;
}

/* --- names ------------------------------------------------------------------------------------------------------- */

typedef int (*opener)(int, const char *, int, ...);

static int opened(opener real, int folder, const char *name, int flags, mode_t mode) {
    char path[PATH];
    int changes = (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE;
    if (!changes || !of_name(folder, name, path))
        return real(folder, name, flags, mode);
    lock();
    int was_there = inode_at(folder, name) != 0;
    int fd = real(folder, name, flags, mode);
    if (fd >= 0 && !was_there)
        record('C', inode_of(fd), 0, path, "", 0);
    if (fd >= 0 && was_there && (flags & O_TRUNC))
        record('T', inode_of(fd), 0, path, "", 0);
    unlock();
    return fd;
}

#define OPEN(suffix)                                                                                                   \
    int openat##suffix(int folder, const char *name, int flags, ...) {                                                 \
        REAL(int, openat##suffix, int, const char *, int, ...);                                                        \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(real, folder, name, flags, mode);                                                                \
    }                                                                                                                  \
    int open##suffix(const char *name, int flags, ...) {                                                               \
        REAL(int, openat##suffix, int, const char *, int, ...);                                                        \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(real, AT_FDCWD, name, flags, mode);                                                              \
    }                                                                                                                  \
    int creat##suffix(const char *name, mode_t mode) {                                                                 \
        REAL(int, openat##suffix, int, const char *, int, ...);                                                        \
        return opened(real, AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);                                       \
    }

OPEN()
OPEN(64)

int mkdirat(int folder, const char *name, mode_t mode) {
    REAL(int, mkdirat, int, const char *, mode_t);
    char path[PATH];
    if (!of_name(folder, name, path))
        return real(folder, name, mode);
    lock();
    int done = real(folder, name, mode);
    if (done == 0)
        record('M', inode_at(folder, name), 0, path, "", 0);
    unlock();
    return done;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int linkat(int from, const char *name, int to, const char *other, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int);
    char path[PATH];
    if (!of_name(to, other, path))
        return real(from, name, to, other, flags);
    lock();
    int done = real(from, name, to, other, flags);
    if (done == 0)
        record('L', inode_at(to, other), 0, path, "", 0);
    unlock();
    return done;
}

int link(const char *name, const char *other) { return linkat(AT_FDCWD, name, AT_FDCWD, other, 0); }

int unlinkat(int folder, const char *name, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char path[PATH];
    if (!of_name(folder, name, path))
        return real(folder, name, flags);
    lock();
    uint64_t inode = inode_at(folder, name);
    int done = real(folder, name, flags);
    if (done == 0)
        record('U', inode, 0, path, "", 0);
    unlock();
    return done;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int renameat2(int from, const char *name, int to, const char *other, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    char old[PATH], new[PATH];
    int known = of_name(from, name, old);
    if (!of_name(to, other, new) && !known)
        return real(from, name, to, other, flags);
    lock();
    uint64_t inode = inode_at(from, name);
    int done = real(from, name, to, other, flags);
    if (done == 0)
        record('R', inode, 0, new, old, strlen(old));
    unlock();
    return done;
}

int renameat(int from, const char *name, int to, const char *other) { return renameat2(from, name, to, other, 0); }
int rename(const char *name, const char *other) { return renameat2(AT_FDCWD, name, AT_FDCWD, other, 0); }

/* --- bytes and lengths ------------------------------------------------------------------------------------------- */

ssize_t write(int fd, const void *data, size_t size) {
    char path[PATH];
    if (!of_descriptor(fd, path))
        return plain_write(fd, data, size);
    lock();
    ssize_t done = plain_write(fd, data, size);
    if (done > 0)
        record('W', inode_of(fd), lseek(fd, 0, SEEK_CUR) - done, path, data, done);
    unlock();
    return done;
}

static void record_parts(int fd, const char *path, const struct iovec *parts, off_t offset, ssize_t left) {
    for (; left > 0; parts++) {
        ssize_t size = left < (ssize_t)parts->iov_len ? left : (ssize_t)parts->iov_len;
        record('W', inode_of(fd), offset, path, parts->iov_base, size);
        offset += size;
        left -= size;
    }
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    char path[PATH];
    if (!of_descriptor(fd, path))
        return real(fd, parts, count);
    lock();
    ssize_t done = real(fd, parts, count);
    if (done > 0)
        record_parts(fd, path, parts, lseek(fd, 0, SEEK_CUR) - done, done);
    unlock();
    return done;
}

#define AT_OFFSET(suffix)                                                                                              \
    ssize_t pwrite##suffix(int fd, const void *data, size_t size, off_t offset) {                                      \
        REAL(ssize_t, pwrite##suffix, int, const void *, size_t, off_t);                                               \
        char path[PATH];                                                                                               \
        if (!of_descriptor(fd, path))                                                                                  \
            return real(fd, data, size, offset);                                                                       \
        lock();                                                                                                        \
        ssize_t done = real(fd, data, size, offset);                                                                   \
        if (done > 0)                                                                                                  \
            record('W', inode_of(fd), offset, path, data, done);                                                       \
        unlock();                                                                                                      \
        return done;                                                                                                   \
    }                                                                                                                  \
    ssize_t pwritev##suffix(int fd, const struct iovec *parts, int count, off_t offset) {                              \
        REAL(ssize_t, pwritev##suffix, int, const struct iovec *, int, off_t);                                         \
        char path[PATH];                                                                                               \
        if (!of_descriptor(fd, path))                                                                                  \
            return real(fd, parts, count, offset);                                                                     \
        lock();                                                                                                        \
        ssize_t done = real(fd, parts, count, offset);                                                                 \
        if (done > 0)                                                                                                  \
            record_parts(fd, path, parts, offset, done);                                                               \
        unlock();                                                                                                      \
        return done;                                                                                                   \
    }                                                                                                                  \
    int ftruncate##suffix(int fd, off_t length) {                                                                      \
        REAL(int, ftruncate##suffix, int, off_t);                                                                      \
        char path[PATH];                                                                                               \
        if (!of_descriptor(fd, path))                                                                                  \
            return real(fd, length);                                                                                   \
        lock();                                                                                                        \
        int done = real(fd, length);                                                                                   \
        if (done == 0)                                                                                                 \
            record('T', inode_of(fd), length, path, "", 0);                                                            \
        unlock();                                                                                                      \
        return done;                                                                                                   \
    }                                                                                                                  \
    static int grown##suffix(int (*real)(int, off_t, off_t), int fd, off_t offset, off_t length) {                     \
        char path[PATH];                                                                                               \
        struct stat status;                                                                                            \
        if (!of_descriptor(fd, path))                                                                                  \
            return real(fd, offset, length);                                                                           \
        lock();                                                                                                        \
        int done = real(fd, offset, length);                                                                           \
        if (done == 0 && fstat(fd, &status) == 0)                                                                      \
            record('T', status.st_ino, status.st_size, path, "", 0);                                                   \
        unlock();                                                                                                      \
        return done;                                                                                                   \
    }                                                                                                                  \
    int posix_fallocate##suffix(int fd, off_t offset, off_t length) {                                                  \
        REAL(int, posix_fallocate##suffix, int, off_t, off_t);                                                         \
        return grown##suffix(real, fd, offset, length);                                                                \
    }

AT_OFFSET()
AT_OFFSET(64)

/* --- syncs ------------------------------------------------------------------------------------------------------- */

#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        REAL(int, name, int);                                                                                          \
        char path[PATH];                                                                                               \
        if (!of_descriptor(fd, path))                                                                                  \
            return real(fd);                                                                                           \
        lock();                                                                                                        \
        int done = 0; /* the disk of these tests is the log: it need not wait for the other one */                     \
        record('F', inode_of(fd), 0, path, "", 0);                                                                     \
        unlock();                                                                                                      \
        return done;                                                                                                   \
    }

SYNC(fsync)
SYNC(fdatasync)

/* --- what others are told ---------------------------------------------------------------------------------------- */

static void told(int fd, const void *data, size_t size) {
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    int saved = errno;
    /* Not a single byte: a signal handler sends one, perhaps while this very thread has the lock. */
    int network = log_fd >= 0 && size > 1 && getsockname(fd, (struct sockaddr *)&own, &length) == 0;
    errno = saved;
    if (!network || (own.ss_family != AF_INET && own.ss_family != AF_INET6))
        return;
    lock();
    record('S', 0, 0, "", data, size < SHOWN ? size : SHOWN);
    unlock();
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    REAL(ssize_t, send, int, const void *, size_t, int);
    told(fd, data, size);
    return real(fd, data, size, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    REAL(ssize_t, sendto, int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    told(fd, data, size);
    return real(fd, data, size, flags, to, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(ssize_t, sendmsg, int, const struct msghdr *, int);
    for (size_t part = 0; part < message->msg_iovlen; part++)
        told(fd, message->msg_iov[part].iov_base, message->msg_iov[part].iov_len);
    return real(fd, message, flags);
}

#define FROM_FILE(suffix, offset_t)                                                                                    \
    ssize_t sendfile##suffix(int fd, int from, offset_t *offset, size_t size) {                                        \
        REAL(ssize_t, sendfile##suffix, int, int, offset_t *, size_t);                                                 \
        char data[SHOWN];                                                                                              \
        ssize_t length = pread(from, data, size < SHOWN ? size : SHOWN, offset ? *offset : lseek(from, 0, SEEK_CUR));  \
        if (length > 0)                                                                                                \
            told(fd, data, length);                                                                                    \
        return real(fd, from, offset, size);                                                                           \
    }

FROM_FILE(, off_t)
FROM_FILE(64, off64_t)
