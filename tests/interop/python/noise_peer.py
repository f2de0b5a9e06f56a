"""Independent reference implementation of the `noise` wire (version 1), on the package `noiseprotocol` from PyPI.

It talks to another implementation, or prints test vectors:

    noise_peer.py vectors                                    > vectors.json
    noise_peer.py connect HOST:PORT KEY_ID KEY_HEX AUDIENCE   prove, check the server's proof, copy stdin -> stream -> stdout
    noise_peer.py listen  HOST:PORT KEY_ID KEY_HEX AUDIENCE   accept one peer after the other, echo what an accepted peer sends

`--help` lists the flags, among them faults for tests.

The pattern is Noise_NNpsk0_25519_AESGCM_SHA256 (suite 1) or Noise_NNpsk0_25519_ChaChaPoly_SHA256 (suite 2), Noise revision 34.
Every message of the handshake is one frame, u16 big-endian length (at most 1024) and that many bytes.

    1  client -> server  HELLO   u8 version = 1, u8 suite, u8 n (1..=255), key id [n], Noise message 1 [48]
    2  server -> client  ANSWER  u8 1, Noise message 2 [48]   the server holds the key
                                 u8 0                         refused; the server then closes
    3  client -> server  FINISH  the first record, of type 0 and without data

    psk      = HKDF-SHA-256(salt = PROTOCOL, ikm = key, info = "psk", 32 bytes)
    prologue = lp(PROTOCOL) suite lp(key id) lp(audience) lp(binding type) lp(binding)   lp: u16 length in front

The server accepts the client at FINISH: message 1 can be a replay. The client sends FINISH as soon as message 2 has opened, and
nothing before.

After the handshake both directions are records: u16 big-endian length of the sealed record (17..=65535), then the sealed
record, a Noise transport message without associated data. Its plaintext is a type and the data of that type:

    0 FINISH  no data; the client's first record and no other
    1 DATA    bytes of the application, possibly none
    2 CLOSE   no data; the sender sends nothing more, then shuts down its direction of the transport

CLOSE is the end of the stream for its reader, which reads nothing after it. The reader fails if the transport ends without a
CLOSE, and for an unknown type, a length below 17 and a record that does not open. Such an error ends the connection in both
directions, and no CLOSE is sent after it. Before its record number k * 2^20 (k = 1, 2, ...; FINISH is record 0) a sender rekeys
its direction (Noise revision 34, section 4.2, REKEY; the nonce runs on), and so does the reader.

A frame that is too long or truncated is a protocol error: the receiver closes without an answer. A well-framed HELLO that is
malformed, has an unknown version, suite or key id, or is wrong in any other way is refused, always with the same bytes. The
refusal is not authenticated. Limits: key at least 16 bytes, key id 1 to 255 bytes, audience 0 to 255 bytes (empty only if
configured explicitly).
"""

import argparse
import hashlib
import hmac
import json
import os
import socket
import struct
import sys
import threading
import warnings

from noise.connection import Keypair, NoiseConnection

PROTOCOL = b"tower-challenge noise v1"
SUITES = {1: b"Noise_NNpsk0_25519_AESGCM_SHA256", 2: b"Noise_NNpsk0_25519_ChaChaPoly_SHA256"}
FINISH, DATA, CLOSE = 0, 1, 2
MAX_DATA = 16 * 1024 - 17
REKEY_EVERY = 1 << 20


def lp(field: bytes) -> bytes:
    return struct.pack(">H", len(field)) + field


def psk_of(key: bytes) -> bytes:  # RFC 5869, one block
    prk = hmac.digest(PROTOCOL, key, "sha256")
    return hmac.digest(prk, b"psk\x01", "sha256")


def state(initiator, suite, key, key_id, audience, binding_type=b"", binding=b"", ephemeral=None):
    noise = NoiseConnection.from_name(SUITES[suite])
    (noise.set_as_initiator if initiator else noise.set_as_responder)()
    noise.set_psks(psk_of(key))
    noise.set_prologue(lp(PROTOCOL) + bytes([suite]) + lp(key_id) + lp(audience) + lp(binding_type) + lp(binding))
    if ephemeral:
        noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    noise.start_handshake()
    return noise


def read_exact(sock, n):
    data = b""
    while len(data) < n:
        chunk = sock.recv(n - len(data))
        if not chunk:
            raise EOFError("ended without a CLOSE")
        data += chunk
    return data


def read_frame(sock):
    (n,) = struct.unpack(">H", read_exact(sock, 2))
    if n > 1024:
        raise ValueError("frame of %d bytes" % n)
    return read_exact(sock, n)


class Records:
    """Both directions after message 2."""

    def __init__(self, sock, noise, rekey_every=REKEY_EVERY):
        self.sock, self.noise, self.rekey_every = sock, noise, rekey_every
        self.sent = self.received = 0

    def seal(self, kind, data=b""):
        cipher = self.noise.noise_protocol.cipher_state_encrypt
        if self.sent and self.sent % self.rekey_every == 0:
            cipher.rekey()
        self.sent += 1
        return lp(cipher.encrypt_with_ad(b"", bytes([kind]) + data))

    def send(self, kind, data=b""):
        self.sock.sendall(self.seal(kind, data))

    def write(self, data):
        for i in range(0, len(data), MAX_DATA):
            self.send(DATA, data[i : i + MAX_DATA])

    def close(self):
        self.send(CLOSE)
        self.sock.shutdown(socket.SHUT_WR)

    def receive(self):
        (n,) = struct.unpack(">H", read_exact(self.sock, 2))
        if n < 17:
            raise ValueError("record of %d bytes" % n)
        sealed = read_exact(self.sock, n)
        cipher = self.noise.noise_protocol.cipher_state_decrypt
        if self.received and self.received % self.rekey_every == 0:
            cipher.rekey()
        self.received += 1
        plain = cipher.decrypt_with_ad(b"", sealed)
        kind, data = plain[0], plain[1:]
        if kind > CLOSE or (kind != DATA and data):
            raise ValueError("record of type %d with %d bytes" % (kind, len(data)))
        return kind, data

    def read(self):
        """The next bytes of the application; empty at the authenticated end."""
        while True:
            kind, data = self.receive()
            if kind == FINISH:
                raise ValueError("a second FINISH")
            if kind == CLOSE:
                return b""
            if data:
                return data


def connect(args):
    sock = socket.create_connection(args.addr)
    noise = state(True, args.suite, args.key, args.key_id, args.audience, *args.binding)
    sock.sendall(lp(bytes([1, args.suite, len(args.key_id)]) + args.key_id + bytes(noise.write_message())))
    answer = read_frame(sock)
    if answer == b"\x00":
        raise PermissionError("refused")
    if answer[:1] != b"\x01" or len(answer) != 49:
        raise ValueError("malformed answer")
    noise.read_message(answer[1:])  # InvalidTag if the server does not hold the key
    records = Records(sock, noise)
    finish = bytearray(records.seal(FINISH))
    if args.fault == "finish":
        finish[-1] ^= 1
    sock.sendall(finish)
    return records


def accept(sock, args):
    hello = read_frame(sock)
    try:
        version, suite, n = hello[0], hello[1], hello[2]
        key_id, message = hello[3 : 3 + n], hello[3 + n :]
        if version != 1 or suite not in SUITES or len(message) != 48 or key_id != args.key_id:
            raise ValueError("malformed, or an unknown suite or key id")
        noise = state(False, suite, args.key, key_id, args.audience, *args.binding)
        noise.read_message(message)
    except Exception as error:
        sock.sendall(lp(b"\x00"))
        raise PermissionError("refused: %r" % error)
    sock.sendall(lp(b"\x01" + bytes(noise.write_message())))
    records = Records(sock, noise)
    if records.receive() != (FINISH, b""):
        raise PermissionError("no FINISH")
    return records


def vectors():
    warnings.simplefilter("ignore")  # of fixed ephemeral keys
    rows = []
    for name, suite, key, key_id, audience, bt, b in [
        ("plain", 1, bytes(range(32)), b"k1", b"", b"", b""),
        ("plain, ChaChaPoly", 2, bytes(range(32)), b"k1", b"", b"", b""),
        ("audience", 1, bytes(range(32)), b"k1", b"orders", b"", b""),
        ("tls exporter", 1, bytes(range(32)), b"k1", b"orders", b"tls-exporter", bytes([7] * 32)),
        ("longest key id", 2, b"\xff" * 64, b"i" * 255, b"", b"", b""),
        ("long key, hashed by HMAC", 1, bytes(i % 251 for i in range(200)), "设备-1".encode(), "订单".encode(), b"", b""),
    ]:
        ce, se = hashlib.sha256(b"client " + name.encode()).digest(), hashlib.sha256(b"server " + name.encode()).digest()
        client = state(True, suite, key, key_id, audience, bt, b, ce)
        server = state(False, suite, key, key_id, audience, bt, b, se)
        one = bytes(client.write_message())
        server.read_message(one)
        two = bytes(server.write_message())
        client.read_message(two)
        handshake_hash = client.get_handshake_hash().hex()
        up, down = Records(None, client), Records(None, server)
        rows.append({
            "name": name, "suite": suite, "key": key.hex(), "psk": psk_of(key).hex(), "key_id": key_id.hex(), "audience": audience.hex(),
            "binding_type": bt.hex(), "binding": b.hex(), "client_ephemeral_private": ce.hex(), "server_ephemeral_private": se.hex(),
            "hello_frame": lp(bytes([1, suite, len(key_id)]) + key_id + one).hex(),
            "answer_frame": lp(b"\x01" + two).hex(), "refused_frame": lp(b"\x00").hex(), "handshake_hash": handshake_hash,
            "client_records": [up.seal(FINISH).hex(), up.seal(DATA, b"hello").hex(), up.seal(DATA).hex(), up.seal(CLOSE).hex()],
            "server_records": [down.seal(DATA, b"welcome").hex(), down.seal(CLOSE).hex()],
        })
    # Rekeyed every two records instead of every 2^20, to show when and how.
    row = dict(rows[0], name="as plain, rekeyed before records 2 and 4")
    client = state(True, 1, bytes(range(32)), b"k1", b"", ephemeral=bytes.fromhex(row["client_ephemeral_private"]))
    server = state(False, 1, bytes(range(32)), b"k1", b"", ephemeral=bytes.fromhex(row["server_ephemeral_private"]))
    server.read_message(client.write_message())
    client.read_message(server.write_message())
    up = Records(None, client, rekey_every=2)
    row["client_records"] = [up.seal(FINISH).hex()] + [up.seal(DATA, b"%d" % i).hex() for i in range(1, 5)]
    del row["server_records"]
    rows.append(row)
    print(json.dumps(rows, indent=1))


def run_client(args):
    records = connect(args)
    print("the server holds the key", flush=True)

    def send():
        records.write(sys.stdin.buffer.read())
        if args.fault == "tamper":
            sealed = bytearray(records.seal(DATA, b"changed on the way"))
            sealed[10] ^= 1
            records.sock.sendall(sealed)
        if args.fault == "drop":
            records.sock.shutdown(socket.SHUT_WR)
        else:
            records.close()

    # Reads meanwhile: the echo may be longer than all buffers.
    sender = threading.Thread(target=send)
    sender.start()
    while data := records.read():
        sys.stdout.buffer.write(data)
    sender.join()


def run_server(args):
    listener = socket.create_server(args.addr)
    print("listening on %s:%d" % listener.getsockname(), flush=True)
    while True:
        sock, _ = listener.accept()
        with sock:
            try:
                records = accept(sock, args)
                print("accepted", flush=True)
                while data := records.read():
                    records.write(data)
                if args.fault != "drop":
                    records.close()
                print("closed", flush=True)
            except Exception as error:
                print("failed: %s: %s" % (type(error).__name__, error), flush=True)


def binding(text):
    kind, _, data = text.partition(":")
    return kind.encode(), bytes.fromhex(data)


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def main():
    if sys.argv[1:] == ["vectors"]:
        return vectors()
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["connect", "listen"])
    parser.add_argument("addr", type=address)
    parser.add_argument("key_id", type=os.fsencode)
    parser.add_argument("key", type=bytes.fromhex)
    parser.add_argument("audience", type=os.fsencode)
    parser.add_argument("--suite", type=int, default=1, help="of the client")
    parser.add_argument("--binding", type=binding, default=(b"", b""), metavar="TYPE:HEX", help="the channel binding")
    parser.add_argument("--fault", choices=["finish", "tamper", "drop"], help="a wrong FINISH, a changed record, no CLOSE")
    args = parser.parse_args()
    (run_client if args.mode == "connect" else run_server)(args)


if __name__ == "__main__":
    sys.exit(main())
