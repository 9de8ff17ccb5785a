// On the port that is its argument. It prints its port.
import { createServer } from "node:http";

const server = createServer((_, response) => void response.end("Hello\n"));
server.listen(Number(process.argv[2] ?? 0), () => {
  const address = server.address();
  if (typeof address === "object") console.log(address?.port);
});
