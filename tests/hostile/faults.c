/* Fails one chosen call that writes below a folder, as a full or broken disk would.
 *
 * Preloaded before the C library. fault_arm(folder, n) makes the n-th call from then on that
 * writes, renames, makes or flushes a file below the folder return -1 with ENOSPC (EIO where the
 * call needs no room); fault_calls() tells how many there were. Writers in any thread and any
 * library are met, since all of them go through these functions.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long calls, chosen;

void fault_arm(const char *below, long n) {
  chosen = 0;
  calls = 0;
  snprintf(folder, sizeof folder, "%s", below);
  chosen = n;
}

long fault_calls(void) { return calls; }

static int below(const char *path) {
  return chosen && path && !strncmp(path, folder, strlen(folder));
}

static int is_open_below(int fd) {
  char link[64], path[PATH_MAX];
  if (!chosen) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

/* True for the call that is to fail; counts all others. */
static int fails(int error) {
  if (atomic_fetch_add(&calls, 1) + 1 != chosen) return 0;
  errno = error;
  return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  if (is_open_below(fd) && fails(ENOSPC)) return -1;
  return NEXT(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (is_open_below(fd) && fails(ENOSPC)) return -1;
  return NEXT(writev)(fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  if (is_open_below(fd) && fails(ENOSPC)) return -1;
  return NEXT(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  if (is_open_below(fd) && fails(ENOSPC)) return -1;
  return NEXT(pwrite64)(fd, data, size, at);
}

int fsync(int fd) {
  if (is_open_below(fd) && fails(EIO)) return -1;
  return NEXT(fsync)(fd);
}

int fdatasync(int fd) {
  if (is_open_below(fd) && fails(EIO)) return -1;
  return NEXT(fdatasync)(fd);
}

int rename(const char *from, const char *to) {
  if (below(to) && fails(EIO)) return -1;
  return NEXT(rename)(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
  if (below(to) && fails(EIO)) return -1;
  return NEXT(renameat)(from_at, from, to_at, to);
}

int mkdir(const char *path, mode_t mode) {
  if (below(path) && fails(ENOSPC)) return -1;
  return NEXT(mkdir)(path, mode);
}

#define OPEN(name)                                                   \
  int name(const char *path, int flags, ...) {                       \
    va_list rest;                                                    \
    va_start(rest, flags);                                           \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                    \
    if (flags & O_CREAT && below(path) && fails(ENOSPC)) return -1;  \
    return NEXT(name)(path, flags, mode);                            \
  }
OPEN(open)
OPEN(open64)
