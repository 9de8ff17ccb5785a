// What one does where a program cannot take a passed socket: systemd-socket-proxyd has it, and the
// program a Unix socket of its own. The two units are here one process each below this one, which starts
// the second when the first has said that it listens (Type=notify would be as quick).
//   behind PROXYD PROGRAM [ARGUMENT]   PROGRAM gets the path of its socket as its last argument, and
//                                      prints a line when it listens
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t program, proxy;

static void end(int signal) {
  (void)signal;
  if (proxy > 0) kill(proxy, SIGTERM);
  kill(program, SIGTERM);
}

int main(int argc, char **argv) {
  char path[64], pid[32], c;
  int ready[2];
  if (argc < 3 || pipe(ready) < 0) return 2;
  snprintf(path, sizeof path, "/tmp/behind-%d.socket", getpid());
  if ((program = fork()) == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(3); // the passed socket is the proxy's
    dup2(ready[1], 1);
    close(ready[0]);
    close(ready[1]);
    unsetenv("LISTEN_PID");
    execv(argv[2], (char *[]){argv[2], argc > 3 ? argv[3] : path, argc > 3 ? path : NULL, NULL});
    _exit(127);
  }
  close(ready[1]);
  if (read(ready[0], &c, 1) != 1) return 1;
  signal(SIGTERM, end);
  if ((proxy = fork()) == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGTERM, SIG_DFL);
    snprintf(pid, sizeof pid, "%d", getpid());
    setenv("LISTEN_PID", pid, 1);
    // The default of 256 connections would turn the others away.
    execl(argv[1], argv[1], "--connections-max=20000", path, NULL);
    _exit(127);
  }
  while (wait(NULL) > 0) { // so that their processor time is this one's too
  }
  unlink(path);
  return 0;
}
