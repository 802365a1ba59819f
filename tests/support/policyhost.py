"""A web server that gives an MTA-STS policy (RFC 8461 §3.3), or whatever else it is told to say.

    with PolicyHost(context, policy("enforce", "mx.meg.test")) as host:
        ...

Limits: one answer for every request; it closes the line after each, with no word of TLS if it is to be `cut`.
"""

import contextlib
import socket
import socketserver
import ssl
import threading
from typing import Self


def policy(mode: str, *mx: str, max_age: int = 86400) -> bytes:
    """An HTTP answer with this policy."""
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {name}" for name in mx), f"max_age: {max_age}", ""]
    return answer("\r\n".join(lines).encode())


def answer(body: bytes, *, status: str = "200 OK", kind: str = "text/plain", more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body


class PolicyHost(socketserver.ThreadingTCPServer):
    """`requests` are the heads of what was asked, in order; `says` may be changed."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext, says: bytes, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.context, self.says, self.cut = context, says, False
        self.requests: list[str] = []
        super().__init__((address, port), _Request)
        self.port: int = self.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Request(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        host = self.server
        assert isinstance(host, PolicyHost)
        with contextlib.suppress(OSError):  # a handshake that fails is the client's refusal
            self.request.settimeout(10)
            with host.context.wrap_socket(self.request, server_side=True) as line:
                host.requests.append(_head(line))
                line.sendall(host.says)
                if not host.cut:
                    line.unwrap()


def _head(line: socket.socket) -> str:
    read = b""
    while b"\r\n\r\n" not in read and (chunk := line.recv(4096)):
        read += chunk
    return read.decode()
