// Clients for a server on loopback. For the kernel, a connection is more work at this end than at
// the server's, so there is an epoll loop for every processor: a single one would be the bottleneck.
//   load PORT CLIENTS CONNECTIONS PID...  CLIENTS at a time until CONNECTIONS are done; prints
//                                       elapsed, own and the PIDs' processor time (microseconds),
//                                       errors, and how many loops there were
//   load PORT CLIENTS hold              opens CLIENTS, waits for their greetings, prints how many came,
//                                       and holds them until a line arrives on stdin
// A connection is good when exactly one line came and then end of file.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// More connects at once than fit into a backlog would measure the kernel's retries; Bun's and
// Node's is 511.
#define BURST 256

static struct sockaddr_in server = {.sin_family = AF_INET};
static int epoll;
static long errors, finished;

static double clockOf(clockid_t clock) {
  struct timespec t;
  if (clock_gettime(clock, &t) < 0) return 0;
  return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

// The processor time of these processes, by their numbers.
static double clockOfAll(char **pids) {
  double sum = 0;
  for (clockid_t one; *pids; sum += clockOf(one), pids++)
    if (clock_getcpuclockid(atoi(*pids), &one) != 0) {
      fprintf(stderr, "load: no process %s\n", *pids);
      exit(2);
    }
  return sum;
}

static void begin(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0 || (connect(fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)) {
    perror("load: connect");
    exit(1);
  }
  // The kernel reports the end of file by itself (RDHUP): one wake-up a connection, not two.
  epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLRDHUP, {.fd = fd}});
}

static void finish(int fd) {
  char line[256];
  ssize_t n = recv(fd, line, sizeof line, 0);
  if (n < 2 || memchr(line, '\n', n) != line + n - 1) errors++;
  finished++;
}

// Runs `connections`, `atOnce` of them not yet finished at a time, and closes each, or keeps it open.
static void carry(long atOnce, long connections, int keep) {
  struct epoll_event events[512];
  long begun = 0;
  for (; begun < atOnce && begun < connections; begun++) begin();
  while (finished < connections) {
    int n = epoll_wait(epoll, events, 512, 10000);
    if (n == 0) {
      fprintf(stderr, "load: nothing came for ten seconds, %ld missing\n", connections - finished);
      exit(1);
    }
    for (int i = 0; i < n; i++) {
      finish(events[i].data.fd);
      if (keep)
        epoll_ctl(epoll, EPOLL_CTL_DEL, events[i].data.fd, NULL);
      else
        close(events[i].data.fd);
      if (begun++ < connections) begin();
    }
  }
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fputs("usage: load PORT CLIENTS CONNECTIONS PID... | load PORT CLIENTS hold\n", stderr);
    return 2;
  }
  server.sin_port = htons(atoi(argv[1]));
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  long clients = atol(argv[2]), connections = atol(argv[3]), loops = sysconf(_SC_NPROCESSORS_ONLN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);

  if (!strcmp(argv[3], "hold")) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    carry(clients < BURST ? clients : BURST, clients, 1);
    printf("%ld\n", finished - errors);
    fflush(stdout);
    return getchar() == EOF;
  }
  if (loops > clients) loops = clients;
  double began = clockOf(CLOCK_MONOTONIC), before = clockOfAll(argv + 4);
  int reports[2];
  if (pipe(reports) < 0) return 1;
  for (long i = 0; i < loops; i++) {
    if (fork() != 0) continue;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    // Each its share, the first ones what is left over.
    carry(clients / loops + (i < clients % loops), connections / loops + (i < connections % loops), 0);
    return write(reports[1], &errors, sizeof errors) != sizeof errors;
  }
  close(reports[1]);
  long loop = 0, failed;
  for (; read(reports[0], &failed, sizeof failed) == sizeof failed; loop++) errors += failed;
  if (loop < loops) return 1; // a loop has ended early, and said why
  double elapsed = clockOf(CLOCK_MONOTONIC) - began, cpu = clockOfAll(argv + 4) - before;
  while (wait(NULL) > 0) {
  }
  struct rusage own;
  getrusage(RUSAGE_CHILDREN, &own);
  printf("%.0f %.0f %.0f %ld %ld\n", elapsed,
         (own.ru_utime.tv_sec + own.ru_stime.tv_sec) * 1e6 + own.ru_utime.tv_usec + own.ru_stime.tv_usec,
         cpu, errors, loops);
  return 0;
}
