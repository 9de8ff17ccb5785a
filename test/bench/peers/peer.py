"""The greeting in Python with its standard library:  peer.py listen|accepted|inet"""

import socket
import sys
import threading
import time

DEADLINE = 5


def serve(connection, line):
    end = time.monotonic() + DEADLINE
    with connection:
        try:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                connection.settimeout(left)
                if not connection.recv(65536):
                    break
        except OSError:
            pass  # a client that has gone away, or time is up


if sys.argv[1] == "accepted":
    serve(socket.socket(fileno=3), b"This socket was already accepted\n")
elif sys.argv[1] == "inet":
    serve(socket.socket(fileno=0), b"This socket was passed on stdin/stdout\n")
else:
    listener = socket.socket(fileno=3)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, b"This is a test\n"), daemon=True).start()
