// On the port or the Unix socket that is its argument. It prints its port.
const fetch = (): Response => new Response("Hello\n");
const [at = "0"] = process.argv.slice(2);
const server = at.startsWith("/") ? Bun.serve({ unix: at, fetch }) : Bun.serve({ port: at, fetch });
console.log(server.port ?? at);
