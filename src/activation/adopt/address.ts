import type { Reported } from "../bun.ts";
import { type Descriptor, formatAddress } from "../receive/describe.ts";

/** Returns what a server on this socket reports, where that differs from what it says itself. */
export function reportedAddress(
  { protocol, address: bound }: Reported,
  socket: Descriptor,
): object {
  if (!("port" in socket)) {
    const address = formatAddress(socket);
    return { url: unixURL(address), address };
  }
  const { address, port, family } = socket;
  // As Bun reports its own default, which is all addresses.
  const hostname = address === "::" || address === "0.0.0.0" ? "localhost" : address;
  // A URL has no place for the interface of an address of one link.
  const host = hostname.includes(":") ? `[${hostname.replace(/%.*/, "")}]` : hostname;
  const url = new URL(`${protocol}://${host}:${port}/`);
  return typeof bound === "object" && bound?.address === address && bound.port === port
    ? { hostname, url }
    : { hostname, url, port, address: { address, family, port } };
}

/** As Bun writes them: unix:///run/example.socket, abstract://example/. */
function unixURL(path: string): URL {
  if (path.startsWith("@")) return new URL(`abstract://${encodeURIComponent(path.slice(1))}/`);
  if (path.startsWith("/"))
    return new URL(`unix://${encodeURI(path).replace(/[?#]/g, encodeURIComponent)}`);
  return new URL(`unix://${path.split("/").map(encodeURIComponent).join("/")}`);
}
