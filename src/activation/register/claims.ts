import { printable, quote } from "../error.ts";
import { isHot } from "../hot.ts";
import { type Descriptor, formatAddress } from "../receive/describe.ts";

/** Where a call of `Bun.serve`, `Bun.listen` or `Bun.udpSocket` wants to listen, if a passed socket can serve it. */
export interface Wanted {
  readonly type: "stream" | "datagram";
  /** A port from 1, or a path (`@` and a name if it is abstract). */
  readonly at: number | string;
  readonly hostname?: string | undefined;
  readonly reusePort?: boolean;
  /** The number of a passed descriptor, if the call names one. */
  readonly fd?: number;
}

/** A passed socket that a call can have: one that listens, or one for datagrams over IP. */
export interface Claimable {
  readonly fd: number;
  readonly name: string;
  readonly socket: Extract<Descriptor, { kind: "socket" }>;
}

/** A socket that a call has. */
export interface Claim {
  readonly fd: number;
  readonly wanted: Wanted;
  /** Whether it was the only one left: its name and its address are not the wanted ones. */
  readonly isGuess: boolean;
  /** Whether it has the wanted port or path, which nobody else can open. */
  readonly isBound: boolean;
}

/** A server on one of these listens on all addresses. */
const ALL: readonly string[] = ["0.0.0.0", "::"];
/** The addresses of localhost. */
const LOCAL: readonly string[] = ["127.0.0.1", "::1"];
/** In characters: how much of a status the addresses may take. */
const LONGEST_LIST = 256;

/** Whether a descriptor can be claimed. */
export function isClaimable(it: Descriptor): it is Claimable["socket"] {
  if (it.kind !== "socket" || typeof it.family === "number") return false;
  return it.type === "stream" ? it.listening : it.type === "datagram" && it.family !== "Unix";
}

/** Decides which call gets which of the passed sockets. */
export class Claims {
  readonly #claims = new Map<number, Claim>();
  #hasWarned = false;

  constructor(
    readonly sockets: readonly Claimable[],
    readonly warn: (message: string) => void,
    /** Whether the program has given a descriptor to a function of the module. */
    readonly isGone: (fd: number) => boolean = () => false,
  ) {}

  /** The sockets that no call has. */
  get left(): readonly Claimable[] {
    return this.sockets.filter(({ fd }) => !this.#claims.has(fd) && !this.isGone(fd));
  }

  /** Returns what a call asks for that names a descriptor; undefined if it is not a passed socket. */
  wantedOf(fd: number): Wanted | undefined {
    const socket = this.sockets.find((it) => it.fd === fd)?.socket;
    if (socket === undefined) return undefined;
    const type = socket.type === "datagram" ? "datagram" : "stream";
    return "port" in socket
      ? { type, at: socket.port, hostname: socket.address, fd }
      : { type, at: formatAddress(socket), fd };
  }

  /**
   * Claims the socket whose name is the wanted port or path; otherwise one that is bound to it;
   * otherwise the only one that is left, unless its name is another port or path. A call that names a
   * descriptor gets that.
   */
  claim(wanted: Wanted): Claim | undefined {
    if (wanted.fd !== undefined) {
      const own = this.left.find(({ fd }) => fd === wanted.fd);
      return own && this.#take(own, wanted, false);
    }
    const left = this.left.filter(({ socket }) => socket.type === wanted.type);
    const unnamed = left.filter(({ name }) => !isPlace(name));
    const named = left.filter(({ name }) => isSamePlace(name, wanted.at));
    const bound = unnamed.filter(({ socket }) => isBoundTo(socket, wanted.at));
    const fitting = named.length > 0 ? named : bound;
    const [first] = fitting;
    if (first !== undefined) {
      const exact = fitting.find(({ socket }) => hasAddress(socket, wanted.hostname));
      if (exact === undefined && fitting.length > 1)
        this.#warn(
          `${list(fitting)} are for ${nameWanted(wanted)}, but one call gets one socket: ` +
            `keep one ${lineFor(first)}, or listen on each address in a call of its own, with its hostname`,
        );
      return this.#take(exact ?? first, wanted, false);
    }
    // A path is for some users of this machine, and a port may be for all the world.
    const isPath = typeof wanted.at === "string";
    const others = unnamed.filter(({ socket }) => !isPath || !("port" in socket));
    const [only] = others;
    if (only !== undefined && others.length === 1) return this.#take(only, wanted, true);
    if (others.length > 1)
      this.#warn(
        `${list(others)} were passed, but none is for ${nameWanted(wanted)}, so the program opens ${nameWanted(wanted)} itself: ` +
          `keep one address in each socket unit, and set FileDescriptorName=${wanted.at} in one of them`,
      );
    else this.#warnOfGuess(wanted);
    return undefined;
  }

  /** The guess that gave another call the socket for this one. */
  wrongGuess(wanted: Wanted): Claim | undefined {
    // A name counts more than an address: the call gets the free socket with this name.
    const isFor = ({ socket, name }: Claimable) =>
      socket.type === wanted.type && isSamePlace(name, wanted.at);
    if (wanted.fd === undefined && this.left.some(isFor)) return undefined;
    const sockets = this.#taken(wanted).filter(
      ({ socket }) => !isElsewhere(socket, wanted.hostname),
    );
    return sockets.map(({ fd }) => this.#claims.get(fd)).find((claim) => claim?.isGuess);
  }

  /**
   * Whether a server opens the other address of localhost, on the port of a passed socket that a call has.
   * Its clients come by the passed one, too.
   */
  isTwin(wanted: Wanted): boolean {
    const { hostname = "" } = wanted;
    return this.#taken(wanted).some(
      ({ socket }) =>
        "address" in socket &&
        socket.address !== hostname &&
        LOCAL.includes(hostname) &&
        [...LOCAL, ...ALL].includes(socket.address),
    );
  }

  /** The sockets that are bound to the wanted port and that a call has. */
  #taken({ type, at }: Wanted): Claimable[] {
    return this.sockets.filter(
      ({ fd, socket }) => socket.type === type && isBoundTo(socket, at) && this.#claims.has(fd),
    );
  }

  /**
   * Claims the socket that a call for the same place has: under `bun --hot`, most likely the call of an
   * earlier evaluation. Bun itself knows its servers by their hostname and port there.
   */
  reclaim(wanted: Wanted): Claim | undefined {
    const former = this.#claims.values().find((claim) => Bun.deepEquals(claim.wanted, wanted));
    const socket = this.sockets.find(({ fd }) => fd === former?.fd);
    return socket && former && this.#take(socket, wanted, former.isGuess);
  }

  /** Gives a socket back, for a later call. */
  release(claim: Claim): void {
    if (this.#claims.get(claim.fd) === claim) this.#claims.delete(claim.fd);
  }

  #take({ fd, socket }: Claimable, wanted: Wanted, isGuess: boolean): Claim {
    const claim = { fd, wanted, isGuess, isBound: isBoundTo(socket, wanted.at) };
    this.#claims.set(fd, claim);
    return claim;
  }

  #warnOfGuess(wanted: Wanted): void {
    const guess = this.#claims
      .values()
      .find((claim) => claim.isGuess && claim.wanted.type === wanted.type);
    // Names do not help a second call for the same port, or a call for another address.
    const isSame = guess?.wanted.at === wanted.at || this.#taken(wanted).length > 0;
    if (guess === undefined || (isSame && this.wrongGuess(wanted) === undefined))
      return this.#warnOfHostname(wanted);
    const socket = list(this.sockets.filter(({ fd }) => fd === guess.fd));
    this.#warn(
      `the call for ${nameWanted(guess.wanted)} came first and got ${socket}, so the program opens ${nameWanted(wanted)} itself: ` +
        `set FileDescriptorName=${guess.wanted.at} or ${wanted.at} in the socket unit`,
    );
  }

  /** Under `bun --hot`, a server of the code before an edit keeps its socket. */
  #warnOfHostname({ type, at, hostname }: Wanted): void {
    const isOther = ({ wanted }: Claim) =>
      wanted.type === type && wanted.at === at && wanted.hostname !== hostname;
    if (isHot() && this.#claims.values().some(isOther))
      this.#warn(
        `a call with another hostname has the socket of ${nameWanted({ type, at })}: if an edit has changed the hostname, restart the program`,
      );
  }

  /** Only the first one: others would follow from it. */
  #warn(message: string): void {
    if (!this.#hasWarned) this.warn(message);
    this.#hasWarned = true;
  }
}

/** Whether a name is a port or a path. No regular expression: the first one takes a start 60 µs. */
function isPlace(name: string): boolean {
  return name[0] === "/" || name[0] === "@" || Number(name) > 0;
}

function isBoundTo(socket: Claimable["socket"], at: number | string): boolean {
  return "port" in socket ? socket.port === at : isSamePlace(formatAddress(socket), at);
}

/** Whether a name or a path is that of a call. A folder may be a link, as /var/run is to /run. */
function isSamePlace(name: string, at: number | string): boolean {
  if (name === String(at)) return true;
  return name[0] === "/" && typeof at === "string" && at[0] === "/" && real(name) === real(at);
}

/** Returns a path without links to folders. */
function real(path: string): string {
  const { basename, dirname, join } = process.getBuiltinModule("node:path");
  const { realpathSync } = process.getBuiltinModule("node:fs");
  try {
    return join(realpathSync(dirname(path)), basename(path));
  } catch {
    return path;
  }
}

function hasAddress(socket: Claimable["socket"], hostname: string | undefined): boolean {
  return "address" in socket && socket.address === hostname;
}

/** Whether a hostname is an address that a socket does not serve. */
function isElsewhere(socket: Claimable["socket"], hostname = "::"): boolean {
  const isNumber = (part: string) => Number.parseInt(part, 10) >= 0;
  const isAddress = hostname.includes(":") || hostname.split(".").every(isNumber);
  if (!isAddress || !("address" in socket)) return false;
  return ![socket.address, ...ALL].includes(hostname) && !ALL.includes(socket.address);
}

function list(sockets: readonly Claimable[]): string {
  return sockets
    .map(({ socket, name }) => `${formatAddress(socket)} (${quote(name)})`)
    .join(" and ");
}

/** Returns a line of a socket unit that replaces the lines of several addresses. */
function lineFor({ socket }: Claimable): string {
  const setting = socket.type === "stream" ? "ListenStream=" : "ListenDatagram=";
  return "port" in socket
    ? `${setting}, such as [::]:${socket.port} (it serves IPv4 too)`
    : setting;
}

/** Lists where sockets listen, for a status: systemd reads only so much of it. */
export function listClaimable(sockets: readonly Claimable[]): string {
  const places = sockets.map(({ socket }) => printable(formatAddress(socket), "?"));
  const text = places.join(", ");
  return text.length > LONGEST_LIST ? `${text.slice(0, LONGEST_LIST)}...` : text;
}

/** Names what a call asks for, such as `port 4000`. */
export function nameWanted({ type, at }: Wanted): string {
  if (typeof at === "string") return at;
  return `${type === "stream" ? "port" : "UDP port"} ${at}`;
}
