import { describe, expect, test } from "bun:test";
import { mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";

import { type Claimable, Claims, isClaimable } from "../../src/activation/register/claims.ts";
import { listClaimable, nameWanted, type Wanted } from "../../src/activation/register/claims.ts";
import { scratch } from "../support/daemon.ts";

let next = 3;
function tcp(port: number, name = "app.socket", address = "127.0.0.1"): Claimable {
  const family = address.includes(":") ? "IPv6" : "IPv4";
  const is = { kind: "socket", type: "stream", listening: true, connected: false } as const;
  return { fd: next++, name, socket: { ...is, family, address, port } };
}
function udp(port: number, name = "app.socket"): Claimable {
  const it = tcp(port, name);
  return { ...it, socket: { ...it.socket, type: "datagram", listening: false } };
}
function unix(path: string, name = "app.socket"): Claimable {
  const is = { kind: "socket", type: "stream", listening: true, connected: false } as const;
  return { fd: next++, name, socket: { ...is, family: "Unix", path } };
}
const stream = (at: number | string, hostname?: string): Wanted => ({
  type: "stream",
  at,
  hostname,
});
const datagram = (at: number): Wanted => ({ type: "datagram", at });

/** Returns the indices of the sockets that the calls get, in turn, and the warnings. */
function claims(sockets: readonly Claimable[], ...wanted: readonly Wanted[]) {
  const warnings: string[] = [];
  const all = new Claims(sockets, (message) => void warnings.push(message));
  const got = wanted.map((it) => {
    const fd = all.claim(it)?.fd;
    return fd === undefined ? undefined : sockets.findIndex((socket) => socket.fd === fd);
  });
  return { got, warnings };
}

describe("a call gets", () => {
  test.each<[string, Claimable[], Wanted[], (number | undefined)[]]>([
    [
      "the socket with its port as a name",
      [tcp(80, "3000"), tcp(81, "9100")],
      [stream(9100), stream(3000)],
      [1, 0],
    ],
    [
      "the socket with its port as a name, not one that is bound to the port",
      [tcp(3000), tcp(80, "3000")],
      [stream(3000), stream(3000)],
      [1, 0],
    ],
    [
      "the socket with its path as a name",
      [tcp(80), unix("/run/a", "/tmp/b")],
      [stream("/tmp/b")],
      [1],
    ],
    ["the socket bound to its port", [tcp(80), tcp(3000)], [stream(3000)], [1]],
    ["the socket bound to its path", [tcp(80), unix("/run/a")], [stream("/run/a")], [1]],
    [
      "of two sockets bound to its port, the one bound to its hostname",
      [tcp(80), tcp(80, "b", "::1")],
      [stream(80, "::1"), stream(80, "127.0.0.1")],
      [1, 0],
    ],
    ["the only socket", [tcp(80)], [stream(3000)], [0]],
    ["the only socket, also another path", [unix("/run/b")], [stream("/run/a")], [0]],
    ["no socket over TCP for a path", [tcp(80)], [stream("/run/a"), stream(3000)], [undefined, 0]],
    [
      "no socket over TCP for a path, if there are two",
      [tcp(80), tcp(81)],
      [stream("/run/a")],
      [undefined],
    ],
    [
      "the only socket that no other call has",
      [tcp(80), tcp(443, "8443")],
      [stream(8443), stream(3000)],
      [1, 0],
    ],
    [
      "the only socket whose name is not another port",
      [tcp(80), tcp(443, "8443")],
      [stream(3000), stream(8443)],
      [0, 1],
    ],
    ["the only socket of its type", [tcp(80), udp(53)], [datagram(5353), stream(3000)], [1, 0]],
    [
      "no socket of another type, which is no reason to warn",
      [tcp(80)],
      [stream(3000), datagram(5353)],
      [0, undefined],
    ],
  ])("%s", (_, sockets, wanted, got) => {
    expect(claims(sockets, ...wanted)).toEqual({ got, warnings: [] });
  });

  test.each<[string, Claimable[], Wanted[]]>([
    ["a socket whose name is another port", [tcp(80, "3000")], [stream(9100)]],
    [
      "a socket whose name is another port, though it is bound to this one",
      [tcp(80, "3000")],
      [stream(80)],
    ],
    ["a socket whose name is another path", [tcp(80, "/run/a")], [stream(9100)]],
    ["a socket whose name is an abstract name", [tcp(80, "@a")], [stream(9100)]],
    ["a socket of another type", [tcp(80)], [datagram(80)]],
  ])("never %s", (_, sockets, wanted) => {
    expect(claims(sockets, ...wanted)).toEqual({ got: wanted.map(() => undefined), warnings: [] });
  });
});

test("a path is that of a socket if it leads through a link to the same folder", () => {
  using directory = scratch();
  const [real, link] = [join(directory.path, "real"), join(directory.path, "link")];
  mkdirSync(real);
  symlinkSync(real, link);
  const sockets = [tcp(80), unix(`${real}/a`), unix("/run/b", `${link}/b`)];
  const wanted = [stream(`${link}/a`), stream(`${real}/b`)];
  expect(claims(sockets, ...wanted)).toEqual({ got: [1, 2], warnings: [] });
});

test("a call that names a passed socket by its descriptor gets that one", () => {
  const sockets = [tcp(80, "3000"), tcp(3000), udp(53), unix("/run/a")];
  const all = new Claims(sockets, (message) => expect.unreachable(message));
  for (const { fd } of sockets.toReversed()) {
    const wanted = all.wantedOf(fd);
    if (wanted === undefined) expect.unreachable();
    expect(all.claim(wanted)?.fd).toBe(fd);
    expect(all.claim(wanted)).toBeUndefined();
  }
  expect(all.wantedOf(2)).toBeUndefined();
});

describe("one warning names the remedy if it is not clear which call gets which socket:", () => {
  test("two sockets, and neither is for the port", () => {
    const sockets = [tcp(80, "a.socket"), tcp(81, "b.socket")];
    expect(claims(sockets, stream(3000), stream(3001))).toEqual({
      got: [undefined, undefined],
      warnings: [
        '127.0.0.1:80 ("a.socket") and 127.0.0.1:81 ("b.socket") were passed, but none is for port 3000, ' +
          "so the program opens port 3000 itself: keep one address in each socket unit, and set FileDescriptorName=3000 in one of them",
      ],
    });
  });

  test("two calls, and one socket that is for neither", () => {
    expect(claims([tcp(80)], stream(9100), stream(3000), stream(3001))).toEqual({
      got: [0, undefined, undefined],
      warnings: [
        'the call for port 9100 came first and got 127.0.0.1:80 ("app.socket"), so the program opens port 3000 itself: ' +
          "set FileDescriptorName=9100 or 3000 in the socket unit",
      ],
    });
  });

  test("a call for the socket's port, if another one keeps the socket", () => {
    const { got, warnings } = claims([tcp(80)], stream(9100), stream(80));
    expect(got).toEqual([0, undefined]);
    expect(warnings).toEqual([expect.stringMatching(/^the call for port 9100 came first and got/)]);
  });

  test("but not a call for the same port of another address", () => {
    const wanted = [stream(3000), stream(80, "::1"), stream(80, "127.0.0.2")];
    expect(claims([tcp(80)], ...wanted).warnings).toEqual([]);
  });

  test("two sockets for the port of one call", () => {
    const sockets = [tcp(80), tcp(80, "app.socket", "::1")];
    expect(claims(sockets, stream(80))).toEqual({
      got: [0],
      warnings: [
        '127.0.0.1:80 ("app.socket") and [::1]:80 ("app.socket") are for port 80, but one call gets one socket: ' +
          "keep one ListenStream=, such as [::]:80 (it serves IPv4 too), " +
          "or listen on each address in a call of its own, with its hostname",
      ],
    });
  });
});

test("a guess was wrong if a later call asks for the port of its socket, on an address of the socket", () => {
  const guessed = (sockets: Claimable[], ...wanted: Wanted[]) => {
    const all = new Claims(sockets, (message) => expect.unreachable(message));
    const [first, later] = wanted;
    const claim = first && all.claim(first);
    expect(claim).toBeDefined();
    return later && all.wrongGuess(later) === claim;
  };
  const first = stream(9100);
  for (const hostname of [undefined, "localhost", "web1", "web.1", "127.0.0.1", "0.0.0.0", "::"])
    expect(guessed([tcp(80)], first, stream(80, hostname))).toBe(true);
  expect(guessed([tcp(80, "app.socket", "::")], first, stream(80, "127.0.0.1"))).toBe(true);
  for (const hostname of ["::1", "127.0.0.2", "127.0.0.10"])
    expect(guessed([tcp(80)], first, stream(80, hostname))).toBe(false);
  // No guess.
  expect(guessed([tcp(80)], stream(80), stream(80))).toBe(false);
  expect(guessed([tcp(80)], first, stream(81))).toBe(false);
  expect(guessed([tcp(80), udp(80)], first, datagram(80))).toBe(false);
  // That call gets the other one.
  expect(guessed([tcp(80), tcp(81, "80")], first, stream(80))).toBe(false);
  // One that names the descriptor does not.
  const named = tcp(80);
  expect(guessed([named, tcp(81, "80")], first, { ...stream(80), fd: named.fd })).toBe(true);
});

test("a server on the other address of localhost is a twin of the one on the passed socket", () => {
  const isTwin = (passed: string, hostname?: string) => {
    const all = new Claims([tcp(80, "app.socket", passed)], (message) =>
      expect.unreachable(message),
    );
    expect(all.isTwin(stream(80, hostname))).toBe(false);
    all.claim(stream(80));
    return all.isTwin(stream(80, hostname));
  };
  for (const passed of ["127.0.0.1", "::", "0.0.0.0"]) expect(isTwin(passed, "::1")).toBe(true);
  expect(isTwin("::1", "127.0.0.1")).toBe(true);
  for (const hostname of ["127.0.0.1", "127.0.0.2", "localhost", undefined])
    expect(isTwin("127.0.0.1", hostname)).toBe(false);
  expect(isTwin("192.0.2.1", "::1")).toBe(false);
});

test("a later call gets a socket that was given back, and the old claim cannot give it back twice", () => {
  const all = new Claims([tcp(80)], (message) => expect.unreachable(message));
  const first = all.claim(stream(3000));
  if (first === undefined) expect.unreachable();
  expect(all.left).toEqual([]);
  all.release(first);
  const second = all.claim(stream(3001));
  expect(second?.fd).toBe(first.fd);
  all.release(first);
  expect(all.left).toEqual([]);
});

test("a second evaluation gets the sockets of the first", () => {
  const all = new Claims([tcp(80), tcp(81)], (message) => expect.unreachable(message));
  const first = all.claim(stream(81));
  expect(all.reclaim(stream(80))).toBeUndefined();
  const second = all.reclaim(stream(81));
  expect(second?.fd).toBe(first?.fd ?? 0);
  if (first) all.release(first);
  expect(all.left).toHaveLength(1);
});

test("a second evaluation gets the socket of the descriptor that it names", () => {
  const sockets = [tcp(80), tcp(80)];
  const all = new Claims(sockets, (message) => expect.unreachable(message));
  const [first, second] = sockets.map(({ fd }) => all.wantedOf(fd) ?? expect.unreachable());
  for (const wanted of [first, second]) if (wanted) all.claim(wanted);
  for (const wanted of [second, first])
    if (wanted) expect(all.reclaim(wanted)?.fd).toBe(wanted.fd ?? 0);
});

test("a second evaluation gets the socket of the same hostname", () => {
  const all = new Claims([tcp(80), tcp(80, "b", "::1")], (message) => expect.unreachable(message));
  const first = all.claim(stream(80, "::1"));
  expect(all.reclaim(stream(80, "127.0.0.1"))).toBeUndefined();
  const second = all.claim(stream(80, "127.0.0.1"));
  expect(all.reclaim(stream(80, "::1"))?.fd).toBe(first?.fd ?? 0);
  expect(all.reclaim(stream(80, "127.0.0.1"))?.fd).toBe(second?.fd ?? 0);
});

test("a second evaluation gets the socket of the same type, and knows that it was the only one", () => {
  const warnings: string[] = [];
  const all = new Claims([tcp(80), udp(53)], (message) => void warnings.push(message));
  all.claim(stream(3000));
  const datagrams = all.claim(datagram(3000));
  expect(all.reclaim(datagram(3000))?.fd).toBe(datagrams?.fd ?? 0);
  all.reclaim(stream(3000));
  expect(all.claim(stream(3001))).toBeUndefined();
  expect(warnings).toEqual([expect.stringContaining("the call for port 3000 came first")]);
});

test("a call can claim a socket that listens, or one for datagrams over IP", () => {
  const { socket } = tcp(80);
  const { socket: local } = unix("/run/a");
  expect([
    isClaimable(socket),
    isClaimable(local),
    isClaimable({ ...socket, type: "datagram", listening: false }),
    isClaimable({ ...socket, listening: false, connected: true }),
    isClaimable({ ...socket, type: "seqpacket" }),
    isClaimable({ ...local, type: "datagram", listening: false }),
    isClaimable({ ...socket, family: 40 }),
    isClaimable({ kind: "fifo" }),
  ]).toEqual([true, true, true, false, false, false, false, false]);
});

test("a status lists where sockets listen, up to a length", () => {
  expect(listClaimable([tcp(80), tcp(81, "b", "::1"), unix("/run/a\nb")])).toBe(
    "127.0.0.1:80, [::1]:81, /run/a?b",
  );
  expect(listClaimable(Array<Claimable>(400).fill(tcp(80)))).toMatch(/^.{100,1000}\.\.\.$/);
});

test("a call is named by its port or path", () => {
  expect([stream(80), datagram(53), stream("/run/a")].map(nameWanted)).toEqual([
    "port 80",
    "UDP port 53",
    "/run/a",
  ]);
});

test("under bun --hot, a call with another hostname, whose port has its socket, is a warning", () => {
  const { execArgv } = process;
  const flags = (value: readonly string[]) =>
    Object.defineProperty(process, "execArgv", { value, configurable: true });
  const calls = [stream(3000), stream(3000, "127.0.0.1"), stream(3000)] as const;
  try {
    flags(["--hot"]);
    const { got, warnings } = claims([tcp(80)], ...calls);
    expect(got).toEqual([0, undefined, undefined]);
    expect(warnings).toEqual([
      expect.stringMatching(
        /^a call with another hostname has the socket of port 3000: if an edit/,
      ),
    ]);
    // The same call again is no edit of the hostname.
    expect(claims([tcp(80)], stream(3000), stream(3000)).warnings).toEqual([]);
    // Nor is one for the UDP port of that number.
    const other = { ...datagram(3000), hostname: "127.0.0.1" };
    expect(claims([tcp(80)], stream(3000), other).warnings).toEqual([]);
  } finally {
    flags(execArgv);
  }
  expect(claims([tcp(80)], ...calls).warnings).toEqual([]);
});
