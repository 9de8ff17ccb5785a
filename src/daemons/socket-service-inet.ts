import { greetOne } from "./greet-one.ts";
import { run } from "./run.ts";

/** inetd(8) style: the connection is stdin and stdout, and stderr with systemd's defaults. */
const STDOUT = 1;

await run({
  name: "socket-service-inet",
  about: "Greets the connection that systemd passes on stdin and stdout (inetd style).",
  run: () => greetOne(STDOUT, "This socket was passed on stdin/stdout\n"),
});
