/* Starts each service under systemd-socket-activate, is its client, and shows what came. */
import { activate, Client, freePort, SERVICES } from "./support/daemon.ts";

if (Bun.which("systemd-socket-activate") === null) {
  console.error("systemd-socket-activate is missing: install the package systemd, which holds it");
  process.exit(1);
}

for (const { name, flags, greeting } of SERVICES) {
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
  console.log(`$ ${command}`);
  console.log(`  received ${JSON.stringify(received)}, the first byte after ${milliseconds} ms\n`);
  if (received !== greeting) {
    console.error(`That is not ${JSON.stringify(greeting)}. The service said:\n${service.stderr}`);
    process.exit(1);
  }
}
