import type { Reported } from "../bun.ts";
import { type Descriptor, formatAddress } from "../receive/describe.ts";

/** Returns the properties that a server on this socket must report instead of its own. */
export function reportedAddress({ protocol }: Reported, socket: Descriptor) {
  if (!("port" in socket)) {
    const address = formatAddress(socket);
    return { url: unixURL(address), address: reportedPath(address) };
  }
  const { address, port, family } = socket;
  // Bun reports a server on all addresses in the same way.
  const hostname = address === "::" || address === "0.0.0.0" ? "localhost" : address;
  // A URL cannot hold the interface of a link-local address.
  const host = hostname.includes(":") ? `[${hostname.replace(/%.*/, "")}]` : hostname;
  const url = new URL(`${protocol}://${host}:${port}/`);
  return { hostname, url, port, address: { address, family, port } };
}

/** A path as Bun reports it: with a NUL before an abstract name. */
export function reportedPath(path: string): string {
  return path[0] === "@" ? `\0${path.slice(1)}` : path;
}

/** As Bun writes them: unix:///run/example.socket, abstract://example/. */
function unixURL(path: string): URL {
  if (path.startsWith("@")) return new URL(`abstract://${encodeURIComponent(path.slice(1))}/`);
  if (path.startsWith("/"))
    return new URL(`unix://${encodeURI(path).replace(/[?#]/g, encodeURIComponent)}`);
  return new URL(`unix://${path.split("/").map(encodeURIComponent).join("/")}`);
}
