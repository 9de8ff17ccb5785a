/* Programs of frameworks, as their own pages have them, with pinned versions. Each answers HELLO on "/". */

/** A program, and its properties. */
export interface Row {
  readonly packages?: readonly string[];
  /** The source of index.ts. */
  readonly index?: string;
  readonly files?: Readonly<Record<string, string>>;
  /** Commands of node_modules/.bin, run by Bun. */
  readonly builds?: readonly (readonly string[])[];
  /** The file that is started. Default: index.ts. */
  readonly program?: string;
  /**
   * - quick: `make test` runs it, which has no time for all.
   * - address: "/address" answers with the client's address.
   * - stream: "/stream" answers with a stream of "one", and 100 ms later "two".
   * - socket: "/socket" is a WebSocket that sends back its messages.
   * - socket.io: the same by Socket.IO.
   * - post: "/" answers a POST with HELLO and the length of its body.
   * - port: it writes the port where it listens to stdout.
   */
  readonly has: readonly (
    "quick" | "address" | "stream" | "socket" | "socket.io" | "post" | "port"
  )[];
  /** The exit status when it is asked to end. Default: 0. */
  readonly status?: number;
}

export const HELLO = "Hello from a framework";

const SVELTEKIT = ["@sveltejs/vite-plugin-svelte@7.3.1", "svelte@5.57.3", "vite@8.3.8"];
const svelteKit = (adapter: string) => ({
  "vite.config.js": `import adapter from "${adapter}";
    import { sveltekit } from "@sveltejs/kit/vite";
    export default { plugins: [sveltekit({ adapter: adapter() })] };`,
  "src/app.html": "%sveltekit.head% %sveltekit.body%",
  "src/routes/+page.svelte": HELLO,
  "src/routes/address/+server.js":
    "export const GET = ({ getClientAddress }) => new Response(getClientAddress());",
  "src/routes/stream/+server.js": `export const GET = () => new Response(new ReadableStream({
    async start(controller) {
      controller.enqueue(new TextEncoder().encode("one"));
      await new Promise((resolve) => setTimeout(resolve, 100));
      controller.enqueue(new TextEncoder().encode("two"));
      controller.close();
    },
  }));`,
});

/** A response of node:http that is a stream. */
const STREAM = `response.write("one"); setTimeout(() => response.end("two"), 100);`;
const ON_PORT = "process.env.PORT ?? 3000";
/** Reports where it listens. */
const SAYS = `() => console.log("listening on", server.address().port)`;

export const ROWS: Readonly<Record<string, Row>> = {
  "Bun.serve": {
    has: ["quick", "address", "stream", "socket", "port"],
    index: `const server = Bun.serve({
      routes: {
        "/": new Response("${HELLO}"),
        "/address": (request, server) => new Response(server.requestIP(request).address),
        "/stream": () => new Response(async function* () { yield "one"; await Bun.sleep(100); yield "two"; }),
        "/socket": (request, server) => server.upgrade(request) ? undefined : new Response("none", { status: 400 }),
      },
      websocket: { message: (socket, message) => void socket.send(message) },
    });
    console.log("listening on", server.port);`,
  },
  "export default": {
    has: ["quick", "address"],
    index: `export default {
      fetch: (request, server) => new Response(
        new URL(request.url).pathname === "/address" ? server.requestIP(request).address : "${HELLO}"),
    };`,
  },
  "node:http": {
    has: ["quick", "address", "stream", "port"],
    index: `import { createServer } from "node:http";
      const server = createServer((request, response) => {
        if (request.url === "/stream") { ${STREAM} }
        else response.end(request.url === "/address" ? request.socket.remoteAddress : "${HELLO}");
      }).listen(${ON_PORT}, ${SAYS});`,
  },
  "Express 5": {
    has: ["quick", "address", "stream", "post", "port"],
    packages: ["express@5.3.0"],
    index: `import express from "express";
      const app = express();
      app.get("/", (request, response) => response.send("${HELLO}"));
      app.post("/", express.text({ type: () => true }), (request, response) =>
        response.send("${HELLO}" + request.body.length));
      app.get("/address", (request, response) => response.send(request.ip));
      app.get("/stream", (request, response) => { ${STREAM} });
      const server = app.listen(${ON_PORT}, ${SAYS});`,
  },
  "Fastify 5": {
    has: ["address", "stream", "port"],
    packages: ["fastify@5.12.8"],
    index: `import { Readable } from "node:stream";
      import fastify from "fastify";
      const app = fastify();
      app.get("/", () => "${HELLO}");
      app.get("/address", (request) => request.ip);
      app.get("/stream", (request, reply) => reply.send(Readable.from((async function* () {
        yield "one"; await new Promise((resolve) => setTimeout(resolve, 100)); yield "two";
      })())));
      console.log("listening on", await app.listen({ port: Number(${ON_PORT}) }));
      process.on("SIGTERM", () => app.close());`,
  },
  Koa: {
    has: ["address", "port"],
    packages: ["koa@3.2.1"],
    index: `import Koa from "koa";
      const app = new Koa();
      app.use((context) => (context.body = context.path === "/address" ? context.ip : "${HELLO}"));
      const server = app.listen(${ON_PORT}, ${SAYS});`,
  },
  ws: {
    has: ["address", "socket", "port"],
    packages: ["ws@8.23.0"],
    index: `import { createServer } from "node:http";
      import { WebSocketServer } from "ws";
      const server = createServer((request, response) =>
        response.end(request.url === "/address" ? request.socket.remoteAddress : "${HELLO}"));
      new WebSocketServer({ server }).on("connection", (socket) =>
        socket.on("message", (message) => socket.send(String(message))));
      server.listen(${ON_PORT}, ${SAYS});`,
  },
  "Socket.IO": {
    has: ["address", "socket.io", "port"],
    packages: ["socket.io@4.8.4", "socket.io-client@4.8.4"],
    files: {
      "index.ts": `import { createServer } from "node:http";
        import { Server } from "socket.io";
        const server = createServer((request, response) =>
          response.end(request.url === "/address" ? request.socket.remoteAddress : "${HELLO}"));
        new Server(server).on("connection", (socket) =>
          socket.on("message", (message) => socket.emit("message", message)));
        server.listen(${ON_PORT}, ${SAYS});`,
      "client.ts": `import { io } from "socket.io-client";
        const socket = io(process.argv[2], { transports: [process.argv[3]], reconnection: false });
        socket.on("connect", () => socket.emit("message", "echo"));
        socket.on("message", (message) => { console.log(message); process.exit(); });
        socket.on("connect_error", (error) => { console.log(error); process.exit(1); });`,
    },
  },
  "Hono, export default": {
    has: ["quick", "address", "stream"],
    packages: ["hono@4.13.19"],
    index: `import { Hono } from "hono";
      import { getConnInfo } from "hono/bun";
      import { streamText } from "hono/streaming";
      const app = new Hono();
      app.get("/", (context) => context.text("${HELLO}"));
      app.get("/address", (context) => context.text(getConnInfo(context).remote.address ?? ""));
      app.get("/stream", (context) => streamText(context, async (stream) => {
        await stream.write("one"); await stream.sleep(100); await stream.write("two");
      }));
      export default app;`,
  },
  "Hono, WebSockets": {
    has: ["socket"],
    packages: ["hono@4.13.19"],
    index: `import { Hono } from "hono";
      import { upgradeWebSocket, websocket } from "hono/bun";
      const app = new Hono();
      app.get("/", (context) => context.text("${HELLO}"));
      app.get("/socket", upgradeWebSocket(() => ({
        onMessage: (event, socket) => socket.send(String(event.data)),
      })));
      export default { fetch: app.fetch, websocket };`,
  },
  "Hono, @hono/node-server": {
    has: ["address", "post", "port"],
    packages: ["hono@4.13.19", "@hono/node-server@2.1.8"],
    index: `import { serve } from "@hono/node-server";
      import { getConnInfo } from "@hono/node-server/conninfo";
      import { Hono } from "hono";
      const app = new Hono();
      app.get("/", (context) => context.text("${HELLO}"));
      app.post("/", async (context) => context.text("${HELLO}" + (await context.req.text()).length));
      app.get("/address", (context) => context.text(getConnInfo(context).remote.address ?? ""));
      serve({ fetch: app.fetch, port: 3000 }, (info) => console.log("listening on", info.port));`,
  },
  Elysia: {
    has: ["address", "stream", "socket", "port"],
    packages: ["elysia@1.4.30"],
    index: `import { Elysia } from "elysia";
      const app = new Elysia()
        .get("/", "${HELLO}")
        .get("/address", ({ server, request }) => server?.requestIP(request)?.address)
        .get("/stream", async function* () { yield "one"; await Bun.sleep(100); yield "two"; })
        .ws("/socket", { message: (socket, message) => void socket.send(message) })
        .listen(3000);
      console.log("listening on", app.server?.port);`,
  },
  h3: {
    has: ["address"],
    packages: ["h3@2.0.8"],
    index: `import { getRequestIP, H3, serve } from "h3";
      const app = new H3();
      app.get("/", () => "${HELLO}");
      app.get("/address", (event) => getRequestIP(event));
      serve(app, { port: 3000 });`,
  },
  "SvelteKit, adapter-bun": {
    has: ["quick", "address", "stream"],
    packages: ["@sveltejs/kit@3.0.0-next.23", "@sveltejs/adapter-bun@1.0.0-next.1", ...SVELTEKIT],
    builds: [["vite", "build"]],
    program: "build/index.js",
    files: svelteKit("@sveltejs/adapter-bun"),
  },
  "SvelteKit, adapter-node": {
    has: ["address", "stream"],
    packages: ["@sveltejs/kit@3.2.0", "@sveltejs/adapter-node@6.0.1", ...SVELTEKIT],
    builds: [["vite", "build"]],
    program: "build/index.js",
    files: svelteKit("@sveltejs/adapter-node"),
  },
  "Nitro, preset bun": {
    has: ["address"],
    packages: ["nitro@3.0.0"],
    builds: [["nitro", "build", "--preset", "bun"]],
    program: ".output/server/index.mjs",
    files: {
      "routes/index.ts": `import { defineEventHandler } from "nitro/h3";
        export default defineEventHandler(() => "${HELLO}");`,
      "routes/address.ts": `import { defineEventHandler } from "nitro/h3";
        export default defineEventHandler(({ req }) => req.runtime.bun.server.requestIP(req).address);`,
    },
  },
  "Next, standalone": {
    has: ["address", "stream"],
    packages: ["next@16.4.6", "react@19.3.1", "react-dom@19.3.1"],
    builds: [["next", "build"]],
    program: ".next/standalone/server.js",
    status: 143,
    files: {
      "next.config.mjs": `export default { output: "standalone" };`,
      "app/layout.js":
        "export default function Layout({ children }) { return <html><body>{children}</body></html>; }",
      "app/page.js": `export const dynamic = "force-dynamic";
        export default function Page() { return <p>${HELLO}</p>; }`,
      "app/address/route.js": `export const dynamic = "force-dynamic";
        export const GET = ({ headers }) => new Response(headers.get("x-forwarded-for"));`,
      "app/stream/route.js": svelteKit("")["src/routes/stream/+server.js"],
    },
  },
  "Astro, adapter node": {
    has: ["address"],
    packages: ["astro@7.3.5", "@astrojs/node@11.1.6"],
    builds: [["astro", "build"]],
    program: "dist/server/entry.mjs",
    files: {
      "astro.config.mjs": `import node from "@astrojs/node";
        import { defineConfig } from "astro/config";
        export default defineConfig({ output: "server", adapter: node({ mode: "standalone" }) });`,
      "src/pages/index.astro": HELLO,
      "src/pages/address.js":
        "export const GET = ({ clientAddress }) => new Response(clientAddress);",
    },
  },
};
