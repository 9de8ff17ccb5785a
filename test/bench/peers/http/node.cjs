const { createServer } = require("node:http");

createServer((_, response) => response.end("Hello\n")).listen({ fd: 3 });
