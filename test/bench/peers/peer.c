// The greeting in C with libc only:  peer listen|accepted|inet
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DEADLINE 5
#define MAX_FD 65536

static const char greeting[] = "This is a test\n";
static time_t dropAt[MAX_FD]; // by descriptor; 0 where no connection is open

static time_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return t.tv_sec;
}

static void drop(int fd) {
  dropAt[fd] = 0;
  close(fd);
}

static void serveMany(int listening) {
  int epoll = epoll_create1(EPOLL_CLOEXEC), highest = 0;
  char rest[65536];
  struct epoll_event events[512];
  time_t swept = now();
  fcntl(listening, F_SETFL, O_NONBLOCK);
  epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &(struct epoll_event){EPOLLIN, {.fd = listening}});
  for (;;) {
    int n = epoll_wait(epoll, events, 512, 1000);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd != listening) {
        if (recv(fd, rest, sizeof rest, MSG_DONTWAIT) <= 0) drop(fd);
        continue;
      }
      while ((fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FD) abort();
        if (fd > highest) highest = fd;
        send(fd, greeting, sizeof greeting - 1, MSG_NOSIGNAL);
        shutdown(fd, SHUT_WR);
        dropAt[fd] = now() + DEADLINE;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.fd = fd}});
      }
    }
    if (now() == swept) continue;
    swept = now();
    for (int fd = 0; fd <= highest; fd++)
      if (dropAt[fd] && dropAt[fd] <= swept) drop(fd);
  }
}

static void timeUp(int signal) {
  (void)signal;
  _exit(0);
}

static void serveOne(int in, int out, const char *line) {
  char rest[65536];
  signal(SIGPIPE, SIG_IGN);
  if (write(out, line, strlen(line)) < 0) return;
  shutdown(out, SHUT_WR);
  signal(SIGALRM, timeUp);
  alarm(DEADLINE);
  while (read(in, rest, sizeof rest) > 0) {
  }
}

int main(int argc, char **argv) {
  const char *style = argc > 1 ? argv[1] : "listen";
  if (!strcmp(style, "accepted"))
    serveOne(3, 3, "This socket was already accepted\n");
  else if (!strcmp(style, "inet"))
    serveOne(0, 1, "This socket was passed on stdin/stdout\n");
  else
    serveMany(3);
  return 0;
}
