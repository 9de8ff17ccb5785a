/* Answers the questions in the file named by the first argument as libsystemd.so.0 does. */
import { CString, dlopen, type Pointer, ptr, read } from "bun:ffi";
import { readFileSync } from "node:fs";

import {
  type Answer,
  type Answers,
  LISTEN_VARIABLES,
  type Listened,
  own,
  type Question,
  type Questions,
  type Variables,
  WATCHDOG_VARIABLES,
  type Watched,
} from "./questions.ts";

const { symbols: libc } = dlopen("libc.so.6", {
  getenv: { args: ["buffer"], returns: "ptr" },
  setenv: { args: ["buffer", "buffer", "i32"], returns: "i32" },
  unsetenv: { args: ["buffer"], returns: "i32" },
});
const { symbols: sd } = dlopen("libsystemd.so.0", {
  sd_is_fifo: { args: ["i32", "ptr"], returns: "i32" },
  sd_is_mq: { args: ["i32", "ptr"], returns: "i32" },
  sd_is_socket: { args: ["i32", "i32", "i32", "i32"], returns: "i32" },
  sd_is_socket_inet: { args: ["i32", "i32", "i32", "i32", "u16"], returns: "i32" },
  sd_is_socket_sockaddr: { args: ["i32", "i32", "buffer", "u32", "i32"], returns: "i32" },
  sd_is_socket_unix: { args: ["i32", "i32", "i32", "ptr", "u64"], returns: "i32" },
  sd_is_special: { args: ["i32", "ptr"], returns: "i32" },
  sd_listen_fds_with_names: { args: ["i32", "ptr"], returns: "i32" },
  sd_notify: { args: ["i32", "buffer"], returns: "i32" },
  sd_watchdog_enabled: { args: ["i32", "buffer"], returns: "i32" },
});

const c = (text: string) => new TextEncoder().encode(`${text}\0`);
const isSet = (name: string) => libc.getenv(c(name)) !== null;

/** Sets these variables and no others of `names`. */
function set(names: readonly string[], variables: Variables): void {
  for (const name of names) libc.unsetenv(c(name));
  for (const [name, value] of Object.entries(own(variables))) libc.setenv(c(name), c(value), 1);
}

function watchdog(variables: Variables): Watched {
  set(WATCHDOG_VARIABLES, variables);
  const usec = new BigUint64Array(1);
  const result = sd.sd_watchdog_enabled(1, usec);
  const left = WATCHDOG_VARIABLES.filter(isSet);
  return { usec: result < 0 ? "error" : result === 0 ? "none" : String(usec[0]), left };
}

function notify(address: string): Answer {
  set(["NOTIFY_SOCKET"], { NOTIFY_SOCKET: address });
  const result = sd.sd_notify(1, c("READY=1"));
  return result < 0 ? "error" : result > 0;
}

function listen(variables: Variables): Listened {
  set(LISTEN_VARIABLES, variables);
  const list = new BigUint64Array(1);
  const count = sd.sd_listen_fds_with_names(1, ptr(list));
  const left = LISTEN_VARIABLES.filter(isSet);
  if (count < 0) return { names: "error", left };
  const names: string[] = [];
  for (let index = 0; index < count; index++) {
    const name = read.ptr(Number(list[0]) as Pointer, index * 8);
    names.push(new CString(name as Pointer).toString());
  }
  return { names, left };
}

function answer(it: Question): Answer {
  const result = ask(it);
  return result < 0 ? "error" : result > 0;
}

function ask(it: Question): number {
  switch (it.call) {
    case "sd_is_socket":
      return sd.sd_is_socket(it.fd, it.family, it.type, it.listening);
    case "sd_is_socket_inet":
      return sd.sd_is_socket_inet(it.fd, it.family, it.type, it.listening, it.port);
    case "sd_is_socket_unix": {
      if (it.path === null) return sd.sd_is_socket_unix(it.fd, it.type, it.listening, null, 0n);
      const path = c(it.path);
      const length = BigInt(path.length - 1);
      return sd.sd_is_socket_unix(it.fd, it.type, it.listening, ptr(path), length);
    }
    case "sd_is_socket_sockaddr": {
      const address = Uint8Array.fromHex(it.address);
      const isIPv4 = address.length === 4;
      const sockaddr = new Uint8Array(isIPv4 ? 16 : 28);
      new DataView(sockaddr.buffer).setUint16(0, isIPv4 ? 2 : 10, true);
      new DataView(sockaddr.buffer).setUint16(2, it.port);
      sockaddr.set(address, isIPv4 ? 4 : 8);
      return sd.sd_is_socket_sockaddr(it.fd, it.type, sockaddr, sockaddr.length, it.listening);
    }
    default:
      return sd[it.call](it.fd, null);
  }
}

const asked: Questions = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8"));
const answers: Answers = {
  environments: asked.environments.map(listen),
  watchdogs: asked.watchdogs.map(watchdog),
  addresses: asked.addresses.map(notify),
  questions: asked.questions.map(answer),
};
console.log(JSON.stringify(answers));
