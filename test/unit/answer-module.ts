/* Answers the questions in the file named by the first argument as this module does. */
import { readFileSync } from "node:fs";

import {
  type Descriptor,
  describe,
  listenFds,
  notify,
  watchdogEnabled,
} from "../../src/activation/index.ts";
import { clearCloseOnExec } from "../support/sockets.ts";
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

function listen(variables: Variables): Listened {
  // As after exec: a call before has set it.
  clearCloseOnExec(3);
  for (const name of LISTEN_VARIABLES) delete process.env[name];
  Object.assign(process.env, own(variables));
  let names: Listened["names"];
  try {
    names = listenFds().map(({ name }) => name);
  } catch {
    names = "error";
  }
  return { names, left: LISTEN_VARIABLES.filter((name) => name in process.env) };
}

function watchdog(variables: Variables): Watched {
  for (const name of WATCHDOG_VARIABLES) delete process.env[name];
  Object.assign(process.env, own(variables));
  let usec: string;
  try {
    usec = String(watchdogEnabled() ?? "none");
  } catch {
    usec = "error";
  }
  return { usec, left: WATCHDOG_VARIABLES.filter((name) => name in process.env) };
}

function send(address: string): Answer {
  process.env["NOTIFY_SOCKET"] = address;
  try {
    return notify({ ready: true });
  } catch {
    return "error";
  }
}

const FAMILIES: Readonly<Record<string, number>> = { Unix: 1, IPv4: 2, IPv6: 10 };
const TYPES: Readonly<Record<string, number>> = { stream: 1, datagram: 2, seqpacket: 5 };

/** The questions of sd_is_*(3), put to what `describe` tells and to nothing else. */
function answer(question: Question): Answer {
  let it: Descriptor;
  try {
    it = describe(question.fd);
  } catch {
    return "error";
  }
  switch (question.call) {
    case "sd_is_fifo":
      return it.kind === "fifo";
    case "sd_is_special":
      return (
        it.kind === "regular file" || it.kind === "character device" || it.kind === "message queue"
      );
    case "sd_is_mq":
      return it.kind === "message queue";
  }
  if (it.kind !== "socket") return false;
  if (question.type !== 0 && TYPES[it.type] !== question.type) return false;
  if (question.listening >= 0 && it.listening !== question.listening > 0) return false;
  switch (question.call) {
    case "sd_is_socket":
      return question.family === 0 || (FAMILIES[it.family] ?? it.family) === question.family;
    case "sd_is_socket_inet":
      if (it.family !== "IPv4" && it.family !== "IPv6") return false;
      if (question.family !== 0 && FAMILIES[it.family] !== question.family) return false;
      return question.port === 0 || it.port === question.port;
    case "sd_is_socket_unix":
      if (it.family !== "Unix") return false;
      return question.path === null || it.path === question.path.replace(/^\0/, "@");
    case "sd_is_socket_sockaddr":
      if (it.family !== "IPv4" && it.family !== "IPv6") return false;
      if (question.port !== 0 && it.port !== question.port) return false;
      return it.address === text(question.address);
  }
}

/** An address in hexadecimal as one writes it. */
function text(address: string): string {
  const bytes = Uint8Array.fromHex(address);
  if (bytes.length === 4) return bytes.join(".");
  return new URL(`http://[${address.match(/.{4}/g)?.join(":")}]`).hostname.slice(1, -1);
}

const asked: Questions = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8"));
const answers: Answers = {
  environments: asked.environments.map(listen),
  watchdogs: asked.watchdogs.map(watchdog),
  addresses: asked.addresses.map(send),
  questions: asked.questions.map(answer),
};
console.log(JSON.stringify(answers));
