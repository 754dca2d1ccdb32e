"""CurveZMQ, the server's half: only holders of admitted keys get through, and nobody else can read along.

Owns the handshake and the boxes of one connection (RFC 26: https://rfc.zeromq.org/spec/26). Invariant: before
the peer has proven that it holds the secret of an admitted key there is no message of it; a box that does not
open, or whose nonce does not grow, ends the connection. No nonce is used twice. One thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from nacl import bindings
from nacl.exceptions import CryptoError

from thor_policy.protocol.zmtp import COMMAND, MORE, Violation, frame_of

_KEY_BYTES, _COOKIE_BYTES, _VOUCH_BYTES = 32, 96, 96
#: What a box is longer than its content, in bytes.
_BOX_BYTES = 16
_HELLO_BYTES = 200
#: `\x08INITIATE`, the cookie, a short nonce.
_INITIATE_HEAD_BYTES = 9 + _COOKIE_BYTES + 8
_MESSAGE = b"\x07MESSAGE"
_MOST_NONCES = 2**64 - 1
#: What a peer reads whose key is refused; libzmq knows it as a refusal by the handler of keys.
_REFUSED = b"\x05ERROR\x03400"


class Curve:
    """A connection to the holder of `secret` (32 bytes). `admit` says whether a public key may come in."""

    name = b"CURVE"

    def __init__(self, secret: bytes, admit: Callable[[bytes], bool]) -> None:
        self.metadata: bytes | None = None
        #: The public key of the peer, once it has proven that it has the secret one.
        self.public: bytes | None = None
        self._secret = secret
        self._admit = admit
        self._own = b""
        self._peer_key = b""
        self._session_secret = b""
        self._cookie = b""
        #: The key of all boxes after WELCOME.
        self._shared = b""
        self._sent = self._received = 0

    def greet(self, own: bytes) -> bytes:
        self._own = own
        return b""

    def shake(self, command: bytes) -> bytes:
        try:
            return self._initiate(command) if self._cookie else self._hello(command)
        except CryptoError as error:
            raise Violation("a box of the handshake does not open") from error

    def open(self, flags: int, body: bytes) -> tuple[int, bytes]:
        if flags & (MORE | COMMAND) or body[:8] != _MESSAGE or len(body) <= 16 + _BOX_BYTES:
            raise Violation("no MESSAGE")
        nonce = self._grown(body[8:16])
        try:
            content = bindings.crypto_box_open_afternm(body[16:], b"CurveZMQMESSAGEC" + nonce, self._shared)
        except CryptoError as error:
            raise Violation("a box does not open") from error
        return (MORE if content[0] & 1 else 0) | (COMMAND if content[0] & 2 else 0), content[1:]

    def seal(self, flags: int, body: bytes) -> bytes:
        nonce = self._next()
        content = bytes(((1 if flags & MORE else 0) | (2 if flags & COMMAND else 0),)) + body
        box = bindings.crypto_box_afternm(content, b"CurveZMQMESSAGES" + nonce, self._shared)
        return frame_of(_MESSAGE + nonce + box)

    # ------------------------------------------------------------ the handshake

    def _hello(self, command: bytes) -> bytes:
        if len(command) != _HELLO_BYTES or command[:8] != b"\x05HELLO\x01\x00":
            raise Violation("no HELLO")
        self._peer_key, nonce, box = command[80:112], command[112:120], command[120:]
        self._received = int.from_bytes(nonce, "big")
        bindings.crypto_box_open(box, b"CurveZMQHELLO---" + nonce, self._peer_key, self._secret)
        public, self._session_secret = bindings.crypto_box_keypair()
        self._cookie, nonce = os.urandom(_COOKIE_BYTES), os.urandom(16)
        welcome = bindings.crypto_box(
            public + self._cookie, b"WELCOME-" + nonce, self._peer_key, self._secret
        )
        self._shared = bindings.crypto_box_beforenm(self._peer_key, self._session_secret)
        return b"\x07WELCOME" + nonce + welcome

    def _initiate(self, command: bytes) -> bytes:
        least_bytes = _INITIATE_HEAD_BYTES + _BOX_BYTES + _KEY_BYTES + _VOUCH_BYTES
        if len(command) < least_bytes or command[:9] != b"\x08INITIATE":
            raise Violation("no INITIATE")
        if command[9:105] != self._cookie:
            raise Violation("another cookie")
        nonce = self._grown(command[105:113])
        content = bindings.crypto_box_open_afternm(command[113:], b"CurveZMQINITIATE" + nonce, self._shared)
        public, vouch = content[:_KEY_BYTES], content[_KEY_BYTES : _KEY_BYTES + _VOUCH_BYTES]
        vouched = bindings.crypto_box_open(vouch[16:], b"VOUCH---" + vouch[:16], public, self._session_secret)
        if vouched != self._peer_key + bindings.crypto_scalarmult_base(self._secret):
            raise Violation("the peer vouches for another connection")
        if not self._admit(public):
            raise Violation("a key that is not admitted", frame_of(_REFUSED, COMMAND))
        self.public, self.metadata = public, content[_KEY_BYTES + _VOUCH_BYTES :]
        nonce = self._next()
        box = bindings.crypto_box_afternm(self._own, b"CurveZMQREADY---" + nonce, self._shared)
        return b"\x05READY" + nonce + box

    def _grown(self, nonce: bytes) -> bytes:
        """The peer's nonce, which must be above all before. Raises Violation."""
        value = int.from_bytes(nonce, "big")
        if value <= self._received:
            raise Violation("a nonce that does not grow")
        self._received = value
        return nonce

    def _next(self) -> bytes:
        """A nonce that was never used."""
        if self._sent == _MOST_NONCES:
            raise Violation("no nonce is left")
        self._sent += 1
        return self._sent.to_bytes(8, "big")
