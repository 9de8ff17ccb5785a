/** The three services: how systemd-socket-activate starts each, its greeting, its service unit and port. */
export const SERVICES = [
  {
    name: "socket-service",
    flags: [],
    greeting: "This is a test\n",
    unit: "socket-service.service",
    port: 4000,
  },
  {
    name: "socket-service-accepted",
    flags: ["-a"],
    greeting: "This socket was already accepted\n",
    unit: "socket-service-accepted@.service",
    port: 4001,
  },
  {
    name: "socket-service-inet",
    flags: ["-a", "--inetd"],
    greeting: "This socket was passed on stdin/stdout\n",
    unit: "socket-service-inet@.service",
    port: 4002,
  },
] as const;
