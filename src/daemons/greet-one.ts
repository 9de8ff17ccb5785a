import { ActivationError, adoptConnection, ExitStatus } from "../activation/index.ts";
import { codeOf } from "../activation/error.ts";
import { Greeter } from "./greeter.ts";

/**
 * Greets the one connection of a process that was started for it; where the descriptor is no
 * socket, but a terminal, a pipe or a file, prints the greeting. The process ends with either.
 */
export async function greetOne(fd: number, greeting: string): Promise<void> {
  const socket = await adoptConnection(fd, new Greeter(greeting).handlers);
  if (socket !== undefined) return;
  try {
    await Bun.write(Bun.file(fd), greeting);
  } catch (error) {
    const code = codeOf(error);
    // A reader that has gone away is as normal as a client that has.
    if (code === "EPIPE") return;
    if (code !== "EBADF") throw error;
    const message = `descriptor ${fd} is not open for writing: pass a connection on it`;
    throw new ActivationError(ExitStatus.configuration, message);
  }
}
