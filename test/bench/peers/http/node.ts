// node:http in Bun, which ignores a descriptor: node:net takes it.
import { createServer as createHttpServer } from "node:http";
import { createServer } from "node:net";

const http = createHttpServer((_, response) => response.end("Hello\n"));
createServer((socket) => void http.emit("connection", socket)).listen({ fd: 3 });
