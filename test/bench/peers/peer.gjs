// The greeting in GJS (SpiderMonkey with GLib) with its Gio:  gjs -m peer.gjs listen|accepted|inet
import Gio from "gi://Gio";
import GLib from "gi://GLib";

const DEADLINE = 5;
const loop = new GLib.MainLoop(null, false);

/** Calls `done` when the client has closed, or its time is up. */
function serve(connection, line, done) {
  const timeUp = new Gio.Cancellable();
  const timer = GLib.timeout_add_seconds(GLib.PRIORITY_DEFAULT, DEADLINE, () => timeUp.cancel());
  const finish = () => {
    if (!timeUp.is_cancelled()) GLib.source_remove(timer);
    connection.close(null);
    done();
  };
  const discard = () =>
    connection.get_input_stream().read_bytes_async(65536, 0, timeUp, (input, result) => {
      try {
        if (input.read_bytes_finish(result).get_size() > 0) discard();
        else finish();
      } catch {
        finish(); // a client that has gone away, or time is up
      }
    });
  connection.get_output_stream().write_all(line, null);
  connection.socket.shutdown(false, true);
  discard();
}

function serveOne(fd, line) {
  const connection = Gio.Socket.new_from_fd(fd).connection_factory_create_connection();
  serve(connection, line, () => loop.quit());
}

switch (ARGV[0]) {
  case "accepted":
    serveOne(3, "This socket was already accepted\n");
    break;
  case "inet":
    serveOne(0, "This socket was passed on stdin/stdout\n");
    break;
  default: {
    const service = new Gio.SocketService();
    service.add_socket(Gio.Socket.new_from_fd(3), null);
    service.connect("incoming", (_, connection) => {
      serve(connection, "This is a test\n", () => {});
      return true;
    });
    service.start();
  }
}
loop.run();
