"""Objects between two of our own processes over a socket pair: what is said in one turn of the loop goes as one frame.

Knows alone: the framing. Limits: pickled, so only ever between processes of one installation that one started.
"""

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

_SIZE = struct.Struct("!I")


class Channel(asyncio.Protocol):
    """`receive` is given what the other side said, in order; `lost` is called once it is gone."""

    def __init__(self, receive: Callable[[Sequence[Any]], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._said: list[Any] = []

    @classmethod
    async def open(
        cls, sock: socket.socket, receive: Callable[[Sequence[Any]], None], lost: Callable[[], None]
    ) -> "Channel":
        channel = cls(receive, lost)
        await channel._loop.create_unix_connection(lambda: channel, sock=sock)
        return channel

    def say(self, thing: object) -> None:
        """To a side that is gone it says nothing: `lost` tells."""
        if not self._said:
            self._loop.call_soon(self._send)
        self._said.append(thing)

    def close(self) -> None:
        """Says first what is still to be said."""
        self._send()
        if self._transport is not None:
            self._transport.close()

    def _send(self) -> None:
        said, self._said = self._said, []
        if said and self._transport is not None and not self._transport.is_closing():
            frame = pickle.dumps(said, pickle.HIGHEST_PROTOCOL)
            self._transport.write(_SIZE.pack(len(frame)) + frame)

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._input += data
        while len(self._input) >= _SIZE.size:
            end = _SIZE.size + _SIZE.unpack_from(self._input)[0]
            if len(self._input) < end:
                return
            frame = bytes(self._input[_SIZE.size : end])
            del self._input[:end]
            self._receive(pickle.loads(frame))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost()
