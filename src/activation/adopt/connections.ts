import { pendingWrites, type Watched } from "./event-loop.ts";
import { AF, isAcceptedAt } from "../linux/layout.ts";
import * as libc from "../linux/libc.ts";

/** An open connection of a server, as the kernel sees it. */
export interface Connection {
  /** Whether it is newer than the `Connections`. For AF_UNIX only: over TCP, `talk` tells more. */
  readonly isNew: boolean;
  /** Whether the peer has sent something that Bun has not read. */
  readonly isUnread: boolean;
  /** Whether Bun has more to send than the kernel takes. */
  readonly isSending: boolean;
  /** undefined over AF_UNIX, where the kernel keeps no such times. */
  readonly talk: libc.Talk | undefined;
}

/** The open connections of a server: Bun counts none, so this looks at each descriptor. */
export class Connections {
  readonly #epoll: number;
  readonly #address: Uint8Array;
  readonly #known: ReadonlySet<string>;
  /** How many segments each connection had sent at the last look, by its descriptor. */
  readonly #sent = new Map<number, number>();

  constructor({ address, epoll }: Watched) {
    this.#epoll = epoll;
    this.#address = address;
    const isUnix = this.#address[0] === AF.UNIX;
    this.#known = new Set(isUnix ? connectionsAt(this.#address).map(libc.identity) : []);
  }

  /** Whether none is open now. */
  isEmpty(): boolean {
    return !hasConnectionAt(this.#address);
  }

  /** Returns how many meet a condition now. A look takes 2 to 5 µs for each descriptor of this process. */
  count(isSo: (connection: Connection) => boolean): number {
    const known = this.#known;
    const epoll = this.#epoll;
    const maySend = (fd: number) => this.#maySend(fd);
    let sending: ReadonlySet<number> | undefined;
    return connectionsAt(this.#address).filter((fd) =>
      isSo({
        get isNew() {
          return !known.has(libc.identity(fd));
        },
        get isUnread() {
          return libc.hasUnread(fd);
        },
        get isSending() {
          return (sending ??= pendingWrites(epoll))?.has(fd) ?? maySend(fd);
        },
        get talk() {
          return libc.talk(fd);
        },
      }),
    ).length;
  }

  /**
   * Whether Bun may have more to send, as far as the kernel knows. Between two writes of Bun to a client that
   * reads fast, nothing is unsent for a moment. So it has sent nothing since the last look, either.
   */
  #maySend(fd: number): boolean {
    const sent = libc.talk(fd)?.sent ?? 0;
    const before = this.#sent.get(fd);
    this.#sent.set(fd, sent);
    return sent !== before || libc.hasUnsent(fd);
  }
}

/** The connections accepted by the socket that listens, or listened, at the sockaddr `at`. */
export function connectionsAt(at: Uint8Array): number[] {
  return openDescriptors().filter((fd) => isConnectionAt(fd, at));
}

/** Whether there is one. It looks at no more descriptors than it has to. */
export function hasConnectionAt(at: Uint8Array): boolean {
  return openDescriptors().some((fd) => isConnectionAt(fd, at));
}

function isConnectionAt(fd: number, at: Uint8Array): boolean {
  return isAcceptedAt(libc.socketName(fd), at) && libc.hasPeer(fd);
}

/** The descriptors of this process. */
export function openDescriptors(): number[] {
  const { readdirSync } = process.getBuiltinModule("node:fs");
  try {
    return readdirSync("/proc/self/fd").map(Number);
  } catch {
    // No descriptor is free to read it with. So all are open, up to the limit.
    return [...new Array(libc.descriptorLimit()).keys()];
  }
}
