/* Faults of a disk and of the wall clock for one process: scripts/chaos loads it in front of the C library.
 *
 * CHAOS_FILE holds the fault that is in force: the errno that writes and syncs of files below CHAOS_DIR fail with
 * (0: none), the milliseconds that a sync of such a file takes longer, and the seconds that the wall clock is
 * ahead. The file is mapped, so a change is in force at once and costs no call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct fault {
  volatile int32_t error, sync_ms;
  volatile int64_t shift_s;
};
static struct fault none;
static const char *folder;

static struct fault *fault(void) {
  static struct fault *mapped;
  if (!mapped) {
    const char *path = getenv("CHAOS_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    folder = getenv("CHAOS_DIR");
    mapped = at == MAP_FAILED ? &none : at;
  }
  return mapped;
}

static int ours(int fd) { /* a file below CHAOS_DIR */
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  return length > 0 && folder && !strncmp(path, folder, strlen(folder));
}

static int fails(int fd) {
  int error = fault()->error;
  if (!error || !ours(fd)) return 0;
  errno = error;
  return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return fails(fd) ? -1 : real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(pwrite);
  return fails(fd) ? -1 : real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  REAL(pwrite64);
  return fails(fd) ? -1 : real(fd, data, size, at);
}
int ftruncate(int fd, off_t size) { REAL(ftruncate); return fails(fd) ? -1 : real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); return fails(fd) ? -1 : real(fd, size); }

static int slow(int fd) {
  struct timespec wait = {fault()->sync_ms / 1000, fault()->sync_ms % 1000 * 1000000L};
  if (fault()->sync_ms && ours(fd)) nanosleep(&wait, NULL);
  return fails(fd);
}
int fsync(int fd) { REAL(fsync); return slow(fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return slow(fd) ? -1 : real(fd); }

int clock_gettime(clockid_t id, struct timespec *now) {
  REAL(clock_gettime);
  int result = real(id, now);
  if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += fault()->shift_s;
  return result;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}
