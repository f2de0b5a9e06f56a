"""The peer of multiprocessing_peer.py, in the dialect of RHEL's own Python 3.6 and 3.9.

That Python is patched for FIPS: its challenge has 20 random bytes and no name of a digest, as in all versions up to 3.11,
and the answer is a bare HMAC-SHA-256 instead of a bare HMAC-MD5. This script patches the Python that runs it likewise.

    multiprocessing_rhel.py client PORT KEY
    multiprocessing_rhel.py listener KEY
"""

import hmac
import multiprocessing.connection as connection
import os
import sys
from multiprocessing import AuthenticationError

import multiprocessing_peer

CHALLENGE, WELCOME, FAILURE = b"#CHALLENGE#", b"#WELCOME#", b"#FAILURE#"


def deliver_challenge(conn, authkey):
    message = os.urandom(20)
    conn.send_bytes(CHALLENGE + message)
    digest = hmac.new(authkey, message, "sha256").digest()
    if conn.recv_bytes(256) != digest:
        conn.send_bytes(FAILURE)
        raise AuthenticationError("digest received was wrong")
    conn.send_bytes(WELCOME)


def answer_challenge(conn, authkey):
    message = conn.recv_bytes(256)
    assert message.startswith(CHALLENGE), message
    conn.send_bytes(hmac.new(authkey, message[len(CHALLENGE) :], "sha256").digest())
    if conn.recv_bytes(256) != WELCOME:
        raise AuthenticationError("digest sent was rejected")


connection.deliver_challenge = deliver_challenge
connection.answer_challenge = answer_challenge

if __name__ == "__main__":
    mode, rest = sys.argv[1], sys.argv[2:]
    if mode == "client":
        multiprocessing_peer.client(rest[0], rest[1].encode())
    else:
        multiprocessing_peer.listener(rest[0].encode())
