"""Independent reference implementation of the `mutual` wire (version 1), in Python's standard library.

It talks to another implementation, or prints test vectors:

    mutual.py vectors                                    > vectors.json
    mutual.py connect HOST:PORT KEY_ID KEY_HEX AUDIENCE   prove, check the server's proof, copy stdin -> socket -> stdout
    mutual.py listen  HOST:PORT KEY_ID KEY_HEX AUDIENCE   challenge one peer after the other, echo what an accepted peer sends

Wire: every message is one frame, u16 big-endian length (at most 1024) and that many bytes.

    1  server -> client  CHALLENGE  u8 version = 1, server nonce [32]
    2  client -> server  PROOF      client nonce [32], u8 n (1..=255), key id [n], client tag [32]
    3  server -> client  VERDICT    u8 1, server tag [32]   accepted
                                    u8 0                    refused; the server then closes

A frame that is too long or truncated is a protocol error: the receiver closes without an answer. A well-framed PROOF that is
malformed, has an unknown key id, or is wrong in any other way is refused, always with the same bytes. The refusal is not
authenticated: anyone on the path can send it. Limits: key at least 16 bytes (32 random bytes are recommended), key id 1 to 255
bytes, audience 0 to 255 bytes (empty only if configured explicitly: the audience prevents an attacker from connecting a host
to itself), exported keying material at most 8,160 bytes.

ISO/IEC 9798-4 three-pass mutual authentication, with the repairs of Basin, Cremers and Meier: every tag is bound to the
protocol, its version, the position of the message and the role of the sender (each role has its own key), both nonces, both
identities (key id and audience), and the channel below; each field is length-prefixed.
"""

import hashlib
import hmac
import json
import os
import socket
import struct
import sys

PROTOCOL = b"tower-challenge mutual v1"
DECOY = os.urandom(32)


def lp(field: bytes) -> bytes:
    return struct.pack(">H", len(field)) + field


def extract(salt: bytes, ikm: bytes) -> bytes:  # RFC 5869
    return hmac.digest(salt, ikm, "sha256")


def expand(prk: bytes, info: bytes, length: int) -> bytes:  # RFC 5869
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        out, counter = out + block, counter + 1
    return out[:length]


class Schedule:
    """What both sides compute from the key and the messages."""

    def __init__(self, key, server_nonce, client_nonce, key_id, audience=b"", binding_type=b"", binding=b""):
        prk = extract(PROTOCOL, key)
        self.transcript = hashlib.sha256(
            lp(PROTOCOL) + lp(server_nonce) + lp(client_nonce) + lp(key_id) + lp(audience) + lp(binding_type) + lp(binding)
        ).digest()
        self.client_tag = hmac.digest(expand(prk, b"client proof", 32), self.transcript, "sha256")
        self.server_tag = hmac.digest(expand(prk, b"server proof", 32), self.transcript + self.client_tag, "sha256")
        self.exporter = expand(prk, b"exporter" + self.transcript, 32)

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        return expand(self.exporter, lp(label) + lp(context), length)


def read_exact(sock, n):
    data = b""
    while len(data) < n:
        chunk = sock.recv(n - len(data))
        if not chunk:
            raise EOFError("closed in the middle of a frame")
        data += chunk
    return data


def read_frame(sock):
    (n,) = struct.unpack(">H", read_exact(sock, 2))
    if n > 1024:
        raise ValueError("frame of %d bytes" % n)
    return read_exact(sock, n)


def connect(addr, key_id, key, audience):
    sock = socket.create_connection(addr)
    challenge = read_frame(sock)
    assert challenge[0] == 1 and len(challenge) == 33, challenge
    nonce = os.urandom(32)
    s = Schedule(key, challenge[1:], nonce, key_id, audience)
    sock.sendall(lp(nonce + bytes([len(key_id)]) + key_id + s.client_tag))
    verdict = read_frame(sock)
    if verdict == b"\x00":
        raise PermissionError("refused")
    if verdict[0] != 1 or not hmac.compare_digest(verdict[1:], s.server_tag):
        raise PermissionError("the server does not hold the key")
    return sock, s


def accept(sock, keys, audience):
    nonce = os.urandom(32)
    sock.sendall(lp(b"\x01" + nonce))
    proof = read_frame(sock)
    n = proof[32] if len(proof) > 32 else 0
    key_id, tag = proof[33 : 33 + n], proof[33 + n :]
    s = Schedule(keys.get(key_id, DECOY), nonce, proof[:32], key_id, audience)
    if not hmac.compare_digest(tag, s.client_tag) or key_id not in keys or n == 0:
        sock.sendall(lp(b"\x00"))
        raise PermissionError("refused")
    sock.sendall(lp(b"\x01" + s.server_tag))
    return s


def vectors():
    rows = []
    for name, key, key_id, audience, bt, b in [
        ("plain", bytes(range(32)), b"k1", b"", b"", b""),
        ("audience", bytes(range(32)), b"k1", b"orders", b"", b""),
        ("tls exporter", bytes(range(32)), b"k1", b"orders", b"tls-exporter", bytes([7] * 32)),
        ("longest key id", b"\xff" * 64, b"i" * 255, b"", b"", b""),
        ("long key, hashed by HMAC", bytes(i % 251 for i in range(200)), "设备-1".encode(), "订单".encode(), b"", b""),
    ]:
        sn, cn = hashlib.sha256(b"server " + name.encode()).digest(), hashlib.sha256(b"client " + name.encode()).digest()
        s = Schedule(key, sn, cn, key_id, audience, bt, b)
        rows.append({
            "name": name, "key": key.hex(), "key_id": key_id.hex(), "audience": audience.hex(),
            "binding_type": bt.hex(), "binding": b.hex(), "server_nonce": sn.hex(), "client_nonce": cn.hex(),
            "transcript": s.transcript.hex(),
            "challenge_frame": lp(b"\x01" + sn).hex(),
            "proof_frame": lp(cn + bytes([len(key_id)]) + key_id + s.client_tag).hex(),
            "accepted_frame": lp(b"\x01" + s.server_tag).hex(), "refused_frame": lp(b"\x00").hex(),
            "export(label='test',context='ctx',48)": s.export(b"test", b"ctx", 48).hex(),
        })
    print(json.dumps(rows, indent=1))


def main(argv):
    if argv[1:] == ["vectors"]:
        return vectors()
    mode, where, key_id, key = argv[1], argv[2].rsplit(":", 1), argv[3].encode(), bytes.fromhex(argv[4])
    audience = argv[5].encode()
    addr = (where[0], int(where[1]))
    if mode == "connect":
        sock, s = connect(addr, key_id, key, audience)
        print("accepted; export:", s.export(b"test", b"ctx", 32).hex(), flush=True)
        sock.sendall(sys.stdin.buffer.read())
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(65536):
            sys.stdout.buffer.write(data)
        return
    listener = socket.create_server(addr)
    while True:
        sock, _ = listener.accept()
        with sock:
            try:
                s = accept(sock, {key_id: key}, audience)
                print("accepted; export:", s.export(b"test", b"ctx", 32).hex(), flush=True)
                while data := sock.recv(65536):
                    sock.sendall(data)
            except (PermissionError, EOFError, OSError, ValueError) as e:
                print("refused:", e, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
