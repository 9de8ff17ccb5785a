/*
 * Silent clients: `bun flood.ts PORT RATE SECONDS` opens RATE connections a second to a port of the
 * loopback, sends nothing on them, and never closes one. Prints how many it began, and ends.
 */
const [port = 0, rate = 0, seconds = 0] = process.argv.slice(2).map(Number);
const socket = { open() {}, data() {}, end() {}, error() {} };

let begun = 0;
const start = performance.now();
const timer = setInterval(() => {
  const elapsed = Math.min((performance.now() - start) / 1000, seconds);
  for (; begun < elapsed * rate; begun++)
    // Refused, or out of ports or descriptors: a flood does not care.
    Bun.connect({ hostname: "127.0.0.1", port, allowHalfOpen: true, socket }).catch(() => {});
  if (elapsed < seconds) return;
  clearInterval(timer);
  console.log(begun);
  process.exit();
}, 5);
