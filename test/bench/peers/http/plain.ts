// A port of its own, which it prints, or the Unix socket that is its argument.
const fetch = (): Response => new Response("Hello\n");
const unix = process.argv[2];
const server = unix === undefined ? Bun.serve({ port: 0, fetch }) : Bun.serve({ unix, fetch });
console.log(server.port ?? unix);
