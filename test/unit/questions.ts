/* What the differential tests ask libsystemd and this module, and how both answer. */

/** Variables for one call of sd_listen_fds_with_names(3); `{pid}` stands for the callee's own. */
export type Variables = Readonly<Record<string, string>>;

export const LISTEN_VARIABLES = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/** The names of the passed descriptors, none, or an error; and which variables are left. */
export interface Listened {
  readonly names: readonly string[] | "error";
  readonly left: readonly string[];
}

/** One call of sd_is_*(3), with the arguments of the C function; addresses in hexadecimal. */
export type Question =
  | { readonly call: "sd_is_fifo" | "sd_is_special" | "sd_is_mq"; readonly fd: number }
  | {
      readonly call: "sd_is_socket";
      readonly fd: number;
      readonly family: number;
      readonly type: number;
      readonly listening: number;
    }
  | {
      readonly call: "sd_is_socket_inet";
      readonly fd: number;
      readonly family: number;
      readonly type: number;
      readonly listening: number;
      readonly port: number;
    }
  | {
      readonly call: "sd_is_socket_unix";
      readonly fd: number;
      readonly type: number;
      readonly listening: number;
      /** As in sockaddr_un: an abstract name begins with a NUL. Null: any. */
      readonly path: string | null;
    }
  | {
      readonly call: "sd_is_socket_sockaddr";
      readonly fd: number;
      readonly type: number;
      readonly listening: number;
      readonly address: string;
      readonly port: number;
    };

export type Answer = boolean | "error";

/** What sd_watchdog_enabled(3) tells: the interval in microseconds, none, or an error. */
export interface Watched {
  readonly usec: string | "none" | "error";
  readonly left: readonly string[];
}

export const WATCHDOG_VARIABLES = ["WATCHDOG_USEC", "WATCHDOG_PID"];

export interface Questions {
  readonly environments: readonly Variables[];
  readonly watchdogs: readonly Variables[];
  /** Values of NOTIFY_SOCKET, each to send a datagram to. */
  readonly addresses: readonly string[];
  readonly questions: readonly Question[];
}

export interface Answers {
  readonly environments: readonly Listened[];
  readonly watchdogs: readonly Watched[];
  /** Whether the datagram was sent. */
  readonly addresses: readonly Answer[];
  readonly questions: readonly Answer[];
}

/** The variables with this process's own id in them, as the decimal, octal or hexadecimal it asks for. */
export function own(variables: Variables): Record<string, string> {
  const fill = (value: string) =>
    value
      .replace("{pid}", String(process.pid))
      .replace("{pid8}", process.pid.toString(8))
      .replace("{pid16}", process.pid.toString(16));
  return Object.fromEntries(Object.entries(variables).map(([name, value]) => [name, fill(value)]));
}
