/* register.ts loads this if there is something to do. The package has it in register/, with its bytecode. */
import { ActivationError, ExitStatus, messageOf } from "../error.ts";
import { exit } from "../journal/exit-on-error.ts";
import { register } from "./unchanged.ts";

/** Puts the servers of the program onto the passed sockets, or ends it with the reason in one line. */
export function run(): void {
  try {
    register();
  } catch (error) {
    const status = error instanceof ActivationError ? error.status : ExitStatus.systemCall;
    exit(status, `socket-service/register: ${messageOf(error)}`);
  }
}
