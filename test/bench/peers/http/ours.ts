import { passedFd, serve } from "../../../../src/activation/index.ts";

serve({ fd: passedFd(), fetch: () => new Response("Hello\n") });
