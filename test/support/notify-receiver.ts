import { randomUUID } from "node:crypto";

import { AF_UNIX, bound, close, type Datagram } from "./sockets.ts";
import { passCredentials, receive, SOCK_DGRAM } from "./sockets.ts";
import { until } from "./until.ts";

/** A service manager's notification socket: by default at an abstract name of its own. */
export class NotifyReceiver implements Disposable {
  readonly fd: number;

  constructor(readonly address = `@${randomUUID()}`) {
    this.fd = bound(AF_UNIX, SOCK_DGRAM, address);
    passCredentials(this.fd);
  }

  /** The next datagram that is there, if any. */
  poll(): Datagram | undefined {
    return receive(this.fd);
  }

  /** Waits for the next datagram. */
  async next(): Promise<Datagram> {
    return await until("a notification", 10, () => this.poll());
  }

  /** Waits for the next datagram, and returns its text. */
  async text(): Promise<string> {
    return (await this.next()).text;
  }

  close(): void {
    close(this.fd);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
