"""A plain HTTP client on blocking sockets: one connection, one request at a time."""

import select
import socket
from types import TracebackType

from lib.failure import Failure

TIMEOUT_S = 120.0


class Connection:
    """A connection that is kept open between requests."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def get(self, path: str) -> str:
        """Sends a request, waits for its answer, gives the body."""
        self.send(path)
        return self.receive()

    def send(self, path: str) -> None:
        """Sends a request and does not wait."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())

    def is_answered(self) -> bool:
        """Whether bytes have come that nobody read yet. Never waits."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def receive(self) -> str:
        """Waits for the answer to what was sent. A status other than 200 is a failure."""
        received = b""
        while (body := _complete(received)) is None:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise Failure("the server closed the connection")
            received += chunk
        status = received.split(b" ", 2)[1].decode()
        if status != "200":
            raise Failure(f"status {status}: {body.strip()}")
        return body


def _complete(received: bytes) -> str | None:
    """The body, once all of it is there."""
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank:
        return None
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        return _dechunked(body).decode() if body.endswith(b"0\r\n\r\n") else None
    return body.decode() if len(body) >= int(headers.get(b"content-length", b"0")) else None


def _dechunked(body: bytes) -> bytes:
    content = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return content
        content += rest[:length]
        body = rest[length + 2 :]
