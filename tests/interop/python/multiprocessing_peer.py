"""A peer that uses CPython's multiprocessing.connection. Runs on 2.7 and newer.

    multiprocessing_peer.py client PORT KEY      connects, sends messages of several sizes, expects each back
    multiprocessing_peer.py listener KEY         prints its port, accepts one client, echoes its messages
    multiprocessing_peer.py rogue                prints its port; without a key, it relays the challenge of its first
                                                 client to the second, and the answer back to the first
"""

from __future__ import print_function

import os
import socket
import struct
import sys
from multiprocessing.connection import Client, Listener


def say(*words):
    print(*words)
    sys.stdout.flush()


def client(port, key):
    try:
        conn = Client(("127.0.0.1", int(port)), authkey=key)
    except Exception as error:
        return say("failed", type(error).__name__)
    say("accepted")
    for message in (b"hello", b"", b"x" * 100000, bytes(bytearray(range(256)))):
        conn.send_bytes(message)
        assert conn.recv_bytes() == message
    conn.send({"pickled": [1, 2.5, None]})
    assert conn.recv() == {"pickled": [1, 2.5, None]}
    conn.close()
    say("done")


def listener(key):
    server = Listener(("127.0.0.1", 0), authkey=key)
    say(server.address[1])
    try:
        conn = server.accept()
    except Exception as error:
        return say("failed", type(error).__name__)
    say("accepted")
    try:
        while True:
            conn.send_bytes(conn.recv_bytes())
    except EOFError:
        say("done")


def send(conn, message):
    conn.sendall(struct.pack("!i", len(message)) + message)


def read_exact(conn, n):
    data = b""
    while len(data) < n:
        chunk = conn.recv(n - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def receive(conn):
    return read_exact(conn, struct.unpack("!i", read_exact(conn, 4))[0])


def rogue():
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(2)
    say(server.getsockname()[1])
    first, _ = server.accept()
    send(first, b"#CHALLENGE#{sha256}" + os.urandom(40))
    receive(first)
    send(first, b"#WELCOME#")
    challenge = receive(first)
    say("challenged")
    second, _ = server.accept()
    send(second, challenge)
    try:
        answer = receive(second)
    except (EOFError, socket.error):
        return say("not answered")
    send(first, answer)
    say("fooled" if receive(first) == b"#WELCOME#" else "not fooled")


if __name__ == "__main__":
    mode, rest = sys.argv[1], sys.argv[2:]
    if mode == "client":
        client(rest[0], rest[1].encode())
    elif mode == "listener":
        listener(rest[0].encode())
    else:
        rogue()
