import {
  AF_UNIX,
  bound,
  close,
  type Datagram,
  passCredentials,
  receive,
  SOCK_DGRAM,
} from "./sockets.ts";
import { until } from "./until.ts";

/** A service manager's notification socket. */
export class NotifyReceiver {
  readonly fd: number;

  constructor(readonly address: string) {
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

  close(): void {
    close(this.fd);
  }
}
