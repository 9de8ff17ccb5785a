import { acceptedFd } from "../activation/index.ts";
import { greetOne } from "./greet-one.ts";
import { run } from "./run.ts";

await run({
  name: "socket-service-accepted",
  about: "Greets the one connection that systemd accepted and passed (Accept=yes).",
  run: () => greetOne(acceptedFd(), "This socket was already accepted\n"),
});
