/* Preloaded into a process (LD_PRELOAD): writes down what it asks of the files below one folder, in order,
   and lets calls fail on demand. tests/support/disk.py compiles it, sets the variables and reads the record.

   DISK_FOLDER   only files and folders whose path begins with this are looked at
   DISK_RECORD   append a record of each write, sync, change of names and reply sent to this file
   DISK_FAIL     CALL:ERRNO:FIRST:COUNT[:PART] fails COUNT calls from the FIRST on, of those on paths with
                 PART in them; errno 0 cuts a write short instead

   A record is a head (struct head), a path, and what was written. Writes and syncs are recorded once they are
   done and replies before they are sent: what stands before a reply did happen before it. */
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
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
    uint32_t kind, path_bytes;
    uint64_t inode, offset, data_bytes;
};

static char folder[PATH_MAX], call_name[32], part[256];
static int record = -1, fail_errno;
static long fail_first, fail_count, seen;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static ssize_t really_write(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return real(fd, parts, count);
}

/* Also called by a test from within the process (ctypes), to choose another call to fail; returns how many
   calls of the last choice there were. */
long disk_fail(const char *what) {
    long before = seen;
    call_name[0] = part[0] = 0;
    if (what) sscanf(what, "%31[^:]:%d:%ld:%ld:%255s", call_name, &fail_errno, &fail_first, &fail_count, part);
    seen = 0;
    return before;
}

__attribute__((constructor)) static void begin(void) {
    const char *named = getenv("DISK_FOLDER"), *file = getenv("DISK_RECORD");
    if (!named || !realpath(named, folder)) folder[0] = 0;
    if (file) record = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    disk_fail(getenv("DISK_FAIL"));
}

static int is_ours(const char *path) {
    return folder[0] && !strncmp(path, folder, strlen(folder));
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return is_ours(path);
}

static int absolute(int at, const char *given, char *path) {
    char base[PATH_MAX];
    if (given[0] == '/') snprintf(path, PATH_MAX, "%s", given);
    else {
        if (at == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
        else path_of(at, base);
        if (snprintf(path, PATH_MAX, "%s/%s", base, given) >= PATH_MAX) path[0] = 0;
    }
    return is_ours(path);
}

static void note(char kind, const char *path, uint64_t inode, uint64_t offset, const void *data, size_t bytes) {
    if (record < 0) return;
    int kept = errno;
    struct head head = {kind, strlen(path), inode, offset, bytes};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path_bytes}, {(void *)data, bytes}};
    pthread_mutex_lock(&lock);
    if (really_write(record, parts, 3) < 0) abort();
    pthread_mutex_unlock(&lock);
    errno = kept;
}

static struct { const char *name; long calls; } counted[32];

/* How many calls of a kind there were so far, whatever is to fail. */
long disk_calls(const char *name) {
    for (int at = 0; at < 32 && counted[at].name; at++)
        if (!strcmp(counted[at].name, name)) return counted[at].calls;
    return 0;
}

static void count(const char *name) {
    pthread_mutex_lock(&lock);
    for (int at = 0; at < 32; at++) {
        if (!counted[at].name) counted[at].name = name;
        if (strcmp(counted[at].name, name)) continue;
        counted[at].calls++;
        break;
    }
    pthread_mutex_unlock(&lock);
}

/* Whether this call is one that is to fail; errno is set then. */
static int fails(const char *name, const char *path) {
    count(name);
    if (!call_name[0] || strcmp(name, call_name) || (part[0] && !strstr(path, part))) return 0;
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (number < fail_first || number >= fail_first + fail_count) return 0;
    errno = fail_errno;
    return 1;
}

static uint64_t inode_of(int fd, int *flags, mode_t *mode) {
    struct stat found;
    if (fstat(fd, &found)) return 0;
    if (flags) *flags = fcntl(fd, F_GETFL);
    if (mode) *mode = found.st_mode;
    return found.st_ino;
}

static void wrote(int fd, const char *path, uint64_t offset, const struct iovec *parts, int count, ssize_t done) {
    int flags = 0;
    uint64_t inode = inode_of(fd, &flags, NULL);
    char kind = flags & O_DSYNC ? 'D' : 'W';
    for (int at = 0; at < count && done > 0; at++) {
        size_t bytes = (size_t)done < parts[at].iov_len ? (size_t)done : parts[at].iov_len;
        note(kind, path, inode, offset, parts[at].iov_base, bytes);
        offset += bytes;
        done -= bytes;
    }
}

#define POSITIONED(name, type) \
    ssize_t name(int fd, const void *data, size_t bytes, type offset) { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (!path_of(fd, path)) return real(fd, data, bytes, offset); \
        if (fails("pwrite", path)) { \
            if (fail_errno) return -1; \
            bytes /= 2; \
        } \
        ssize_t done = real(fd, data, bytes, offset); \
        struct iovec one = {(void *)data, bytes}; \
        wrote(fd, path, offset, &one, 1, done); \
        return done; \
    }
POSITIONED(pwrite, off_t)
POSITIONED(pwrite64, off64_t)

#define ALLOCATE(name, type) \
    int name(int fd, type offset, type length) { \
        REAL(name); \
        char path[PATH_MAX]; \
        struct stat found; \
        if (!path_of(fd, path)) return real(fd, offset, length); \
        if (fails("fallocate", path)) return fail_errno; \
        off_t before = fstat(fd, &found) ? 0 : found.st_size; \
        int failed = real(fd, offset, length); \
        if (!failed && offset + length > before) note('T', path, found.st_ino, offset + length, "", 0); \
        return failed; \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

ssize_t read(int fd, void *data, size_t bytes) {
    REAL(read);
    char path[PATH_MAX];
    return path_of(fd, path) && fails("read", path) ? -1 : real(fd, data, bytes);
}

#define READ_AT(name, type) \
    ssize_t name(int fd, void *data, size_t bytes, type offset) { \
        REAL(name); \
        char path[PATH_MAX]; \
        return path_of(fd, path) && fails("pread", path) ? -1 : real(fd, data, bytes, offset); \
    }
READ_AT(pread, off_t)
READ_AT(pread64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, parts, count);
    if (fails("writev", path)) {
        if (fail_errno) return -1;
        count = 1;
    }
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, parts, count);
    wrote(fd, path, offset, parts, count, done);
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    REAL(write);
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, data, bytes);
    if (fails("write", path)) {
        if (fail_errno) return -1;
        bytes /= 2;
    }
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, data, bytes);
    struct iovec one = {(void *)data, bytes};
    wrote(fd, path, offset, &one, 1, done);
    return done;
}

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        char path[PATH_MAX]; \
        mode_t mode = 0; \
        if (!path_of(fd, path)) return real(fd); \
        if (fails(#name, path)) return -1; \
        int done = real(fd); \
        uint64_t inode = inode_of(fd, NULL, &mode); \
        if (!done) note(S_ISDIR(mode) ? 'F' : 'S', path, inode, 0, "", 0); \
        return done; \
    }
SYNC(fsync)
SYNC(fdatasync)

int msync(void *start, size_t length, int how) {
    REAL(msync);
    return fails("msync", "") ? -1 : real(start, length, how);
}

#define TRUNCATE(name, type) \
    int name(int fd, type size) { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (!path_of(fd, path)) return real(fd, size); \
        if (fails("ftruncate", path)) return -1; \
        int done = real(fd, size); \
        if (!done) note('T', path, inode_of(fd, NULL, NULL), size, "", 0); \
        return done; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

static int opened(int fd, const char *path, int flags, int was_there) {
    if (fd >= 0 && !was_there) note('C', path, inode_of(fd, NULL, NULL), 0, "", 0);
    else if (fd >= 0 && flags & O_TRUNC) note('T', path, inode_of(fd, NULL, NULL), 0, "", 0);
    return fd;
}

#define OPEN(name, at, call, ...) \
    int name(__VA_ARGS__, const char *given, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        char path[PATH_MAX]; \
        if (!absolute(at, given, path)) return call; \
        if (fails("open", path)) return -1; \
        int was_there = !(flags & O_CREAT) || !access(path, F_OK); \
        return opened(call, path, flags, was_there); \
    }
OPEN(openat, at, real(at, given, flags, mode), int at)
OPEN(openat64, at, real(at, given, flags, mode), int at)

#define OPEN_HERE(name) \
    int name(const char *given, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        char path[PATH_MAX]; \
        if (!absolute(AT_FDCWD, given, path)) return real(given, flags, mode); \
        if (fails("open", path)) return -1; \
        int was_there = !(flags & O_CREAT) || !access(path, F_OK); \
        return opened(real(given, flags, mode), path, flags, was_there); \
    }
OPEN_HERE(open)
OPEN_HERE(open64)

static uint64_t inode_at(const char *path) {
    struct stat found;
    return lstat(path, &found) ? 0 : found.st_ino;
}

int mkdirat(int at, const char *given, mode_t mode) {
    REAL(mkdirat);
    char path[PATH_MAX];
    if (!absolute(at, given, path)) return real(at, given, mode);
    if (fails("mkdir", path)) return -1;
    int done = real(at, given, mode);
    if (!done) note('M', path, inode_at(path), 0, "", 0);
    return done;
}
int mkdir(const char *given, mode_t mode) { return mkdirat(AT_FDCWD, given, mode); }

static int named(const char *call, char kind, int done_by(const char *, const char *), const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    int ours = absolute(AT_FDCWD, from, old);
    if (!absolute(AT_FDCWD, to, new) && !ours) return done_by(from, to);
    if (fails(call, old)) return -1;
    int done = done_by(from, to);
    if (!done) note(kind, old, inode_at(new), 0, new, strlen(new));
    return done;
}
int rename(const char *from, const char *to) { REAL(rename); return named("rename", 'R', real, from, to); }
int link(const char *from, const char *to) { REAL(link); return named("link", 'L', real, from, to); }

int unlink(const char *given) {
    REAL(unlink);
    char path[PATH_MAX];
    if (!absolute(AT_FDCWD, given, path)) return real(given);
    if (fails("unlink", path)) return -1;
    uint64_t inode = inode_at(path);
    int done = real(given);
    if (!done) note('U', path, inode, 0, "", 0);
    return done;
}

int flock(int fd, int operation) {
    REAL(flock);
    char path[PATH_MAX];
    return path_of(fd, path) && fails("flock", path) ? -1 : real(fd, operation);
}

#define MAP(name, type) \
    void *name(void *where, size_t length, int protection, int flags, int fd, type offset) { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (fd >= 0 && path_of(fd, path) && fails("mmap", path)) return MAP_FAILED; \
        return real(where, length, protection, flags, fd, offset); \
    }
MAP(mmap, off_t)
MAP(mmap64, off64_t)

#define STATVFS(name, type) \
    int name(const char *given, struct type *found) { \
        REAL(name); \
        char path[PATH_MAX]; \
        return absolute(AT_FDCWD, given, path) && fails("statvfs", path) ? -1 : real(given, found); \
    }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)

ssize_t send(int fd, const void *data, size_t bytes, int flags) {
    REAL(send);
    note('N', "", 0, 0, data, bytes < 65536 ? bytes : 65536);
    return real(fd, data, bytes, flags);
}
