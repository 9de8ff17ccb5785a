/*
 * A preload that lists on stderr, one line each, the slow functions that a service used before it
 * greeted its first client: see Start in src/README.md.
 */
let isWatching = true;
const used = new Set<string>();
function use(name: string): void {
  if (isWatching) used.add(name);
}

const { exec } = RegExp.prototype;
Object.defineProperty(RegExp.prototype, "exec", {
  value(this: RegExp, text: string) {
    use(`the regular expression ${this}`);
    return exec.call(this, text);
  },
});
Object.defineProperty(globalThis, "Math", {
  value: new Proxy(Math, {
    get(target, name) {
      use(`Math.${String(name)}`);
      return Reflect.get(target, name);
    },
  }),
});
const { getBuiltinModule } = process;
Object.defineProperty(process, "getBuiltinModule", {
  value(name: string) {
    use(name);
    return Reflect.apply(getBuiltinModule, process, [name]);
  },
});
// The first client is greeted when its `open` handler is over.
for (const name of ["listen", "connect"] as const) {
  const native: Function = Bun[name];
  Object.assign(Bun, {
    [name](options: { socket: { open(socket: object): unknown } }) {
      const { open } = options.socket;
      const socket = Object.create(options.socket, {
        open: {
          value(client: object) {
            open.call(client, client);
            if (isWatching) for (const line of used) console.error(line);
            isWatching = false;
          },
        },
      });
      return native.call(Bun, Object.create(options, { socket: { value: socket } }));
    },
  });
}
