/* A disk that fails when a test says so.
 *
 * Preloaded into a program, this library stands between the program and the system calls that write to files and sync them.
 * The files are those whose path begins with FAILING_DISK_BELOW. The faults are in the file FAILING_DISK_FAULTS, which both the
 * program and the test have open: first the bytes that the disk still takes (-1 for no limit), then the error of a sync
 * (0 for none, -1 for a sync that does not return). Both are 64-bit numbers in the machine's order. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct faults {
    int64_t space;
    int64_t sync_error;
};

static struct faults *faults;
static char below[PATH_MAX];

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("FAILING_DISK_BELOW"), *file = getenv("FAILING_DISK_FAULTS");
    if (!directory || !file) return;
    snprintf(below, sizeof below, "%s", directory);
    int fd = open(file, O_RDWR | O_CLOEXEC);
    void *shared = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) abort();
    close(fd);
    faults = shared;
}

static int is_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, below, strlen(below)) == 0;
}

/* Takes space for up to `wanted` bytes. Returns the bytes that fit; -1 with ENOSPC when none does. */
static ssize_t reserve(int fd, size_t wanted) {
    if (!faults || wanted == 0 || __atomic_load_n(&faults->space, __ATOMIC_SEQ_CST) < 0 || !is_below(fd)) return wanted;
    int64_t space = __atomic_load_n(&faults->space, __ATOMIC_SEQ_CST), fits;
    do {
        if (space < 0) return wanted;
        fits = space < (int64_t)wanted ? space : (int64_t)wanted;
    } while (!__atomic_compare_exchange_n(&faults->space, &space, space - fits, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    if (fits > 0) return fits;
    errno = ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t fits = reserve(fd, count);
    return fits < 0 ? -1 : syscall(SYS_write, fd, bytes, (size_t)fits);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    ssize_t fits = reserve(fd, count);
    return fits < 0 ? -1 : syscall(SYS_pwrite64, fd, bytes, (size_t)fits, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    return pwrite(fd, bytes, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!faults || __atomic_load_n(&faults->space, __ATOMIC_SEQ_CST) < 0 || !is_below(fd)) {
        return syscall(SYS_writev, fd, parts, count);
    }
    /* A short write is allowed. */
    for (int i = 0; i < count; i++) {
        if (parts[i].iov_len > 0) return write(fd, parts[i].iov_base, parts[i].iov_len);
    }
    return 0;
}

static int sync_with(long number, int fd) {
    while (faults && __atomic_load_n(&faults->sync_error, __ATOMIC_SEQ_CST) < 0 && is_below(fd)) usleep(10000);
    int64_t error = faults ? __atomic_load_n(&faults->sync_error, __ATOMIC_SEQ_CST) : 0;
    if (error > 0 && is_below(fd)) {
        errno = (int)error;
        return -1;
    }
    return syscall(number, fd);
}

int fsync(int fd) {
    return sync_with(SYS_fsync, fd);
}

int fdatasync(int fd) {
    return sync_with(SYS_fdatasync, fd);
}
