// Activates programs as systemd would, and no more: a socket, fork, descriptors, environment, exec.
// It is the client too, so that one clock sees everything from connect(2) to end of file.
//
// One request a line on stdin, one reply a line on stdout (times in microseconds):
//   cold STYLE PROGRAM...           first-byte end-of-file exit processor-time text
//   storm STYLE N AT-ONCE PROGRAM...  elapsed processor-time failures
//   start STYLE PROGRAM...          pid port       leaves the server running, one connection served
//   hold STYLE N PROGRAM...         pid...         leaves N connections open, each after its greeting
//   stop                            ok             ends what start and hold have left, in order
//   refresh FILE...                 ok             puts files into the page cache as if just read
// STYLE is how the socket is passed: listen (as fd 3), accepted (as fd 3), inet (as stdin/stdout), or
// http: as listen, and the client asks over HTTP. The text is then the body of the response.
// Words NAME=VALUE before PROGRAM are what a unit would say with Environment=.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORDS 32
#define MAX_VARIABLES 32
#define MAX_HELD 1024

struct activation {
  pid_t pid;
  int client;
  int port;
  double began;
};

struct outcome {
  double first, end, exit, cpu;
  char text[1024];
};

static const char request[] = "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

static int notifySocket;
static char notifyVariable[160];
static struct activation held[MAX_HELD];
static int heldCount;

static void fail(const char *what) {
  fprintf(stderr, "activator: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int check(int result, const char *what) {
  if (result < 0) fail(what);
  return result;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static double cpuOf(const struct rusage *r) {
  return (r->ru_utime.tv_sec + r->ru_stime.tv_sec) * 1e6 + r->ru_utime.tv_usec + r->ru_stime.tv_usec;
}

static int listens(const char *style) {
  return !strcmp(style, "listen") || !strcmp(style, "http");
}

// What follows fork(2) in systemd's child, with the environment of a system service.
static void become(const char *style, int socket, int port, char **program) {
  char pid[32], execPid[32], remotePort[32];
  snprintf(pid, sizeof pid, "LISTEN_PID=%d", getpid());
  snprintf(execPid, sizeof execPid, "SYSTEMD_EXEC_PID=%d", getpid());
  snprintf(remotePort, sizeof remotePort, "REMOTE_PORT=%d", port);
  char *environment[MAX_VARIABLES + 1] = {
      "LANG=C.UTF-8",
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
      "INVOCATION_ID=0123456789abcdef0123456789abcdef",
      execPid,
  };
  int n = 4, nothing = open("/dev/null", O_RDWR);
  if (!strcmp(style, "inet")) {
    dup2(socket, 0);
    dup2(socket, 1);
  } else {
    dup2(nothing, 0);
    dup2(nothing, 1);
    if (socket == 3)
      fcntl(3, F_SETFD, 0);
    else
      dup2(socket, 3);
    environment[n++] = pid;
    environment[n++] = "LISTEN_FDS=1";
  }
  if (listens(style)) {
    environment[n++] = "LISTEN_FDNAMES=bench.socket";
    environment[n++] = notifyVariable;
  } else {
    if (!strcmp(style, "accepted")) environment[n++] = "LISTEN_FDNAMES=connection";
    environment[n++] = "REMOTE_ADDR=127.0.0.1";
    environment[n++] = remotePort;
  }
  for (; *program && strchr(*program, '=') && n < MAX_VARIABLES; program++) environment[n++] = *program;
  close_range(4, ~0U, 0);
  signal(SIGPIPE, SIG_IGN);
  execve(program[0], program, environment);
  _exit(127);
}

static struct activation activate(const char *style, char **program) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int listening = check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  check(bind(listening, (struct sockaddr *)&address, sizeof address), "bind");
  check(listen(listening, 4096), "listen");
  check(getsockname(listening, (struct sockaddr *)&address, &length), "getsockname");
  struct activation a = {.port = ntohs(address.sin_port)};
  a.client = check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  struct timeval patience = {.tv_sec = 10};
  setsockopt(a.client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);

  a.began = now();
  check(connect(a.client, (struct sockaddr *)&address, sizeof address), "connect");
  if (!strcmp(style, "http")) check(send(a.client, request, sizeof request - 1, 0), "send");
  int passed = listening;
  if (!listens(style)) passed = check(accept4(listening, NULL, NULL, SOCK_CLOEXEC), "accept");
  a.pid = check(fork(), "fork");
  if (a.pid == 0) become(style, passed, a.port, program);
  if (passed != listening) close(passed);
  close(listening);
  return a;
}

static int readGreeting(struct activation *a, struct outcome *o) {
  size_t got = 0;
  ssize_t n;
  while ((n = recv(a->client, o->text + got, sizeof o->text - 1 - got, 0)) > 0) {
    if (got == 0) o->first = now() - a->began;
    got += n;
  }
  o->end = now() - a->began;
  if (got > 0 && o->text[got - 1] == '\n') got--;
  o->text[got] = 0;
  char *body = strstr(o->text, "\r\n\r\n");
  if (body) memmove(o->text, body + 4, strlen(body + 4) + 1);
  return n == 0 && got > 0;
}

static void reap(struct activation *a, struct outcome *o) {
  struct rusage usage;
  check(wait4(a->pid, NULL, 0, &usage), "wait4");
  o->exit = now() - a->began;
  o->cpu = cpuOf(&usage);
}

static int cold(const char *style, char **program, struct outcome *o) {
  memset(o, 0, sizeof *o);
  struct activation a = activate(style, program);
  int ok = readGreeting(&a, o);
  close(a.client);
  if (listens(style) || !ok) kill(a.pid, SIGTERM);
  reap(&a, o);
  return ok;
}

// Several workers, each activating one after the other.
static void storm(const char *style, int n, int atOnce, char **program) {
  struct report {
    double cpu;
    int failures;
  } sum = {0}, one;
  int reports[2];
  check(pipe(reports), "pipe");
  double began = now();
  pid_t workers[MAX_HELD];
  if (atOnce > MAX_HELD) atOnce = MAX_HELD;
  for (int worker = 0; worker < atOnce; worker++) {
    if ((workers[worker] = check(fork(), "fork")) != 0) continue;
    struct outcome o;
    one = (struct report){0};
    for (int i = worker; i < n; i += atOnce) {
      if (!cold(style, program, &o)) one.failures++;
      one.cpu += o.cpu;
    }
    _exit(write(reports[1], &one, sizeof one) != sizeof one);
  }
  close(reports[1]);
  while (read(reports[0], &one, sizeof one) == sizeof one) {
    sum.cpu += one.cpu;
    sum.failures += one.failures;
  }
  close(reports[0]);
  double elapsed = now() - began;
  while (atOnce > 0) waitpid(workers[--atOnce], NULL, 0);
  printf("%.0f %.0f %d\n", elapsed, sum.cpu, sum.failures);
}

static struct activation *keep(struct activation a) {
  if (heldCount == MAX_HELD) {
    errno = ENFILE;
    fail("keep");
  }
  held[heldCount] = a;
  return &held[heldCount++];
}

static void start(const char *style, char **program) {
  struct outcome o;
  struct activation *a = keep(activate(style, program));
  if (!readGreeting(a, &o)) fail(program[0]);
  close(a->client);
  a->client = -1;
  printf("%d %d\n", a->pid, a->port);
}

static void hold(const char *style, int n, char **program) {
  struct outcome o;
  // All at once: after five seconds the first would be gone before the last is there.
  for (int i = 0; i < n; i++) keep(activate(style, program));
  for (int i = 0; i < n; i++) {
    if (!readGreeting(&held[heldCount - n + i], &o)) fail(program[0]);
    printf("%d%c", held[heldCount - n + i].pid, i + 1 < n ? ' ' : '\n');
  }
}

static void stop(void) {
  struct outcome o;
  for (int i = 0; i < heldCount; i++) {
    if (held[i].client >= 0)
      close(held[i].client);
    else
      kill(held[i].pid, SIGTERM);
    reap(&held[i], &o);
  }
  heldCount = 0;
  puts("ok");
}

// The page cache ages: a file whose large folios the kernel has split since maps more slowly, which
// costs a program of 100 MB up to a third of its start. Every contender begins alike.
static void refresh(char **files) {
  static char buffer[1 << 20];
  for (; *files; files++) {
    int fd = check(open(*files, O_RDONLY | O_CLOEXEC), *files);
    fsync(fd); // only clean pages are dropped
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    while (read(fd, buffer, sizeof buffer) > 0) {
    }
    close(fd);
  }
  puts("ok");
}

static void answer(char *line) {
  char *words[MAX_WORDS + 1] = {0};
  int n = 0;
  for (char *word = strtok(line, " \n"); word && n < MAX_WORDS; word = strtok(NULL, " \n")) words[n++] = word;
  if (n == 0) return;
  if (n >= 3 && !strcmp(words[0], "cold")) {
    struct outcome o;
    int ok = cold(words[1], words + 2, &o);
    printf("%.1f %.1f %.1f %.0f %s\n", o.first, o.end, o.exit, o.cpu, ok ? o.text : "");
  } else if (n >= 5 && !strcmp(words[0], "storm"))
    storm(words[1], atoi(words[2]), atoi(words[3]), words + 4);
  else if (n >= 3 && !strcmp(words[0], "start"))
    start(words[1], words + 2);
  else if (n >= 4 && !strcmp(words[0], "hold"))
    hold(words[1], atoi(words[2]), words + 3);
  else if (n == 1 && !strcmp(words[0], "stop"))
    stop();
  else if (!strcmp(words[0], "refresh"))
    refresh(words + 1);
  else {
    errno = EINVAL;
    fail(words[0]);
  }
  fflush(stdout);
}

int main(void) {
  // What stands for systemd's /run/systemd/notify, with an abstract name: no file to clean up.
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "socket-service-bench-%d", getpid());
  snprintf(notifyVariable, sizeof notifyVariable, "NOTIFY_SOCKET=@%s", address.sun_path + 1);
  notifySocket = check(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket");
  length += offsetof(struct sockaddr_un, sun_path) + 1;
  check(bind(notifySocket, (struct sockaddr *)&address, length), "bind");

  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);

  static char input[65536];
  size_t filled = 0;
  for (;;) {
    struct pollfd ready[] = {{.fd = 0, .events = POLLIN}, {.fd = notifySocket, .events = POLLIN}};
    check(poll(ready, 2, -1), "poll");
    char datagram[4096];
    while (recv(notifySocket, datagram, sizeof datagram, 0) > 0) {
    }
    if (!ready[0].revents) continue;
    ssize_t n = read(0, input + filled, sizeof input - 1 - filled);
    if (n <= 0) break;
    filled += n;
    for (char *end; (end = memchr(input, '\n', filled)); ) {
      char line[4096];
      size_t length = end + 1 - input;
      snprintf(line, sizeof line, "%.*s", (int)length, input);
      memmove(input, end + 1, filled -= length);
      answer(line);
    }
  }
  fclose(stdout); // the requester is gone: so are its servers
  for (int i = 0; i < heldCount; i++) kill(held[i].pid, SIGKILL);
  return 0;
}
