/* Starts each service under systemd-socket-activate, is its client, and shows the answer. */
import { activate, Client, executable, freePort } from "./support/daemon.ts";
import { SERVICES } from "./support/services.ts";
import { lacks, report } from "./support/needs.ts";

/** Shows a command and its answer, and ends the demo if that is not the greeting. */
function show(command: string, received: string, greeting: string, stderr: string, when = "") {
  console.log(`$ ${command}\n  received ${JSON.stringify(received)}${when}\n`);
  if (received === greeting) return;
  console.error(`That is not ${JSON.stringify(greeting)}. The service said:\n${stderr}`);
  process.exit(1);
}

const skip = lacks("systemd-socket-activate");
for (const { name, flags, greeting } of skip ? [] : SERVICES) {
  const port = freePort();
  const listen = `127.0.0.1:${port}`;
  await using service = await activate(name, { flags, listen: [listen] });
  const began = performance.now();
  const client = await Client.connect(port);
  const firstByte = client.firstByte().then(() => performance.now() - began);
  const received = await client.received();
  const milliseconds = (await firstByte).toFixed(1);
  client.close();
  const command = ["systemd-socket-activate", ...flags, "-l", listen, `dist/${name}`].join(" ");
  show(command, received, greeting, service.stderr, `, the first byte after ${milliseconds} ms`);
}

// The one that needs no socket.
const { name, greeting } = SERVICES[2];
const { stdout, stderr } = Bun.spawnSync([executable(name)]);
show(`dist/${name} | cat`, stdout.toString(), greeting, stderr.toString());

process.stdout.write(report("demo"));
