/*
 * Ends a run whose event loop stands still: a test's own time limit is looked at by that loop, and so
 * never comes for a call that blocks or a loop with no end. A child that a test waits for blocks it,
 * too: `make deb` takes a minute on a busy machine, and no test may take longer than three.
 */
const LIMIT = 200;

const watch = (limit: number) => {
  let beat = performance.now();
  addEventListener("message", () => (beat = performance.now()));
  setInterval(() => {
    if (performance.now() - beat < 1000 * limit) return;
    console.error(`The test that runs now has blocked the event loop for ${limit} seconds.`);
    process.kill(process.pid, "SIGKILL");
  }, 1000);
};

const source = new Blob([`(${watch})(${LIMIT})`], { type: "text/javascript" });
const watcher = new Worker(URL.createObjectURL(source));
watcher.unref();
setInterval(() => watcher.postMessage("beat"), 1000).unref();
