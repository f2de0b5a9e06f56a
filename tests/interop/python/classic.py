"""The classic wire in Python's standard library, after the two scripts of the tutorial.

    classic.py server KEY              listens on a free port, prints it, echoes the data of one peer in upper case
    classic.py client HOST PORT KEY    proves KEY, prints the verdict, sends stdin, prints the reply
"""

import hmac
import os
import socket
import sys

ACCEPTED, REFUSED = "验证成功".encode(), "验证失败".encode()


def read_exact(conn, n):
    data = b""
    while len(data) < n:
        chunk = conn.recv(n - len(data))
        if not chunk:
            raise EOFError("closed after %d of %d bytes" % (len(data), n))
        data += chunk
    return data


def server(key):
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    conn, _ = listener.accept()
    with conn:
        nonce = os.urandom(32)
        conn.sendall(nonce)
        expected = hmac.new(key, nonce, "md5").digest()
        if not hmac.compare_digest(read_exact(conn, 16), expected):
            conn.sendall(REFUSED)
            print("refused", flush=True)
            return
        conn.sendall(ACCEPTED)
        print("accepted", flush=True)
        while data := conn.recv(1024):
            conn.sendall(data.upper())


def client(host, port, key):
    with socket.create_connection((host, int(port))) as conn:
        conn.sendall(hmac.new(key, read_exact(conn, 32), "md5").digest())
        verdict = read_exact(conn, 12)
        print(verdict.decode(), flush=True)
        if verdict != ACCEPTED:
            assert conn.recv(1) == b"", "the server closes"
            return
        conn.sendall(sys.stdin.buffer.read())
        conn.shutdown(socket.SHUT_WR)
        while data := conn.recv(1024):
            sys.stdout.write(data.decode())


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    mode, *rest, key = sys.argv[1:]
    {"server": server, "client": client}[mode](*rest, key.encode())
