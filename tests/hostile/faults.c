/* Fails one chosen call that writes below a folder, as a full or broken disk would.
 *
 * Preloaded before the C library. fault_arm(folder, n, 0) makes the n-th call from then on that
 * writes, renames, makes or flushes a file below the folder return -1 with ENOSPC (EIO where the
 * call needs no room). fault_arm(folder, n, 1) lets the n-th call, if it writes, write half of what
 * it was given, as a disk does that fills up, and makes all later writes return -1.
 * fault_calls() tells how many calls there were, fault_writes() whether the n-th was cut short.
 * Writers in any thread and any library are met, since all of them go through these functions, and
 * so are programs that are started, such as FFmpeg: all count in the file that FAULT_STATE names.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static struct state {
  char folder[PATH_MAX];
  atomic_long calls, chosen;
  atomic_int cuts_short, is_full;
} *shared;

__attribute__((constructor)) static void share(void) {
  int fd = open(getenv("FAULT_STATE"), O_RDWR);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
}

void fault_arm(const char *below, long n, int half) {
  shared->chosen = 0;
  shared->calls = 0;
  shared->is_full = 0;
  shared->cuts_short = half;
  snprintf(shared->folder, sizeof shared->folder, "%s", below);
  shared->chosen = n;
}

long fault_calls(void) { return shared->calls; }

int fault_writes(void) { return shared->is_full; }

/* True while a call is to fail. */
static int is_armed(void) { return shared && shared->chosen; }

static int below(const char *path) {
  return is_armed() && path && !strncmp(path, shared->folder, strlen(shared->folder));
}

static int is_open_below(int fd) {
  char link[64], path[PATH_MAX];
  if (!is_armed()) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

/* True for a call that is to fail as a whole; counts all others. */
static int fails(int error) {
  if (atomic_fetch_add(&shared->calls, 1) + 1 != shared->chosen || shared->cuts_short) return 0;
  errno = error;
  return 1;
}

/* Bytes of `size` that a write may have: all, half of them when it is cut short, 0 if it fails. */
static size_t room(size_t size) {
  errno = ENOSPC;
  if (shared->is_full) return 0;
  if (atomic_fetch_add(&shared->calls, 1) + 1 != shared->chosen) return size;
  if (!shared->cuts_short) return 0;
  shared->is_full = 1;
  return size / 2;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  if (!size || !is_open_below(fd)) return NEXT(write)(fd, data, size);
  size_t most = room(size);
  return most ? NEXT(write)(fd, data, most) : -1;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (!count || !is_open_below(fd)) return NEXT(writev)(fd, parts, count);
  size_t share = room(2), half = parts[0].iov_len / 2;
  if (share == 2) return NEXT(writev)(fd, parts, count);
  return share && half ? NEXT(write)(fd, parts[0].iov_base, half) : -1;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  if (!size || !is_open_below(fd)) return NEXT(pwrite)(fd, data, size, at);
  size_t most = room(size);
  return most ? NEXT(pwrite)(fd, data, most, at) : -1;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  if (!size || !is_open_below(fd)) return NEXT(pwrite64)(fd, data, size, at);
  size_t most = room(size);
  return most ? NEXT(pwrite64)(fd, data, most, at) : -1;
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
