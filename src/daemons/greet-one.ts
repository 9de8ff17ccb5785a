import { ActivationError, adoptConnection, ExitStatus } from "../activation/index.ts";
import { Greeter } from "./greeter.ts";

/**
 * Greets the one connection of a process, or writes the greeting to a descriptor that is not a socket.
 */
export async function greetOne(fd: number, greeting: string): Promise<void> {
  const socket = await adoptConnection(fd, new Greeter(greeting).handlers);
  if (socket !== undefined) return;
  try {
    await Bun.write(Bun.file(fd), greeting);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    // A reader that is gone is as normal as a client that is gone.
    if (code === "EPIPE") return;
    if (code !== "EBADF") throw error;
    throw new ActivationError(
      ExitStatus.configuration,
      `descriptor ${fd} is not open for writing: set ListenStream= and Accept=yes in the socket unit`,
    );
  }
}
