"""A small local server that speaks OpenAI's embeddings API.

``with serve(model) as url:`` in a notebook, ``python -m embedkit.server --model …`` in a terminal.
It is meant for learning and testing on one machine. To serve many people, use vLLM or Hugging
Face's Text Embeddings Inference, which speak the same API.
"""

import argparse
import asyncio
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from embedkit._endpoint import Endpoint
from embedkit.encoders.text import TextEncoder

# A connection that for so long has not sent the whole head of a request, or takes nothing of its
# answer, is closed. So is one above the limit, before the operating system runs out of files.
_SECONDS_TO_STALL = 10
_MAX_CONNECTIONS = 128


def _name_of(model: str | os.PathLike[str] | TextEncoder) -> str:
    """Name a model without a path of this machine."""
    name = os.fspath(model.name if isinstance(model, TextEncoder) else model)
    return Path(name).resolve().name if Path(name).is_dir() else name


@contextmanager
def serve(
    model: str | os.PathLike[str] | TextEncoder, *, port: int = 0, api_key: str | None = None
) -> Iterator[str]:
    """Serve a model on this machine, for as long as the ``with`` block lasts.

    Use it to try what talks to OpenAI's embeddings API, without a key and without a network. It
    listens on the loopback, so no other machine can reach it. Its limits, its errors and its
    ``/v1/embeddings`` and ``/v1/models`` are OpenAI's; it reads text only, no token numbers.

    Parameters
    ----------
    model : str, path or TextEncoder
        A bundled name, a folder or a Hub id, which is read as its authors meant; or an encoder
        of yours, as it is. Every vector is scaled to length 1, as OpenAI's are.
    port : int
        Where to listen; 0 takes a port that is free.
    api_key : str, optional
        Asked of everyone who connects.

    Yields
    ------
    str
        The URL to give to a client as ``base_url``.

    Raises
    ------
    OSError
        If the model cannot be had, or the port is taken.

    Examples
    --------
    >>> from openai import OpenAI
    >>> with serve("bundled/all-MiniLM-L6-v2") as url:
    ...     client = OpenAI(base_url=url, api_key="none")
    ...     answer = client.embeddings.create(model="bundled/all-MiniLM-L6-v2", input="a kettle")
    ...     client.close()
    >>> len(answer.data[0].embedding)
    384
    """
    # No logging set-up of its own: it runs in the reader's process.
    quiet = {"log_config": None, "log_level": "critical", "access_log": False}
    with _running(model, "127.0.0.1", port, api_key, **quiet) as url:
        yield url


@contextmanager
def _running(
    model: str | os.PathLike[str] | TextEncoder,
    host: str,
    port: int,
    api_key: str | None,
    **settings: Any,
) -> Iterator[str]:
    """Serve at an address, from a thread of its own."""
    if type(port) is not int or not 0 <= port <= 65535:
        raise ValueError(f"port={port!r}: give a whole number up to 65535, or 0 for a free one")
    if api_key is not None and not (
        isinstance(api_key, str) and api_key and all("!" <= sign <= "~" for sign in api_key)
    ):
        raise ValueError(
            "api_key: the key is empty, or holds a sign that no header can; leave it out to ask "
            "for none, or give letters and digits"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error.strerror}); choose another port, or 0 "
            "for a free one"
        ) from error
    with listening:
        encoder = model if isinstance(model, TextEncoder) else TextEncoder(model)
        hosts = {"localhost", "127.0.0.1", "::1", host} if _is_loopback(host) else None
        endpoint = Endpoint(encoder, _name_of(model), api_key, hosts)
        config = uvicorn.Config(
            endpoint,
            http=_Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            backlog=64,
            timeout_graceful_shutdown=2,
            **settings,
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError(f"the server at {host}, port {port} did not start")
                time.sleep(0.005)
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{listening.getsockname()[1]}/v1"
        finally:
            endpoint.reader.stop()  # everyone who waits has an answer before the server ends
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """A server that does not fill the log while the system has no files left to open."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""

        def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if "socket.accept()" not in context["message"]:  # it is tried again by itself
                loop.default_exception_handler(context)

        asyncio.get_running_loop().set_exception_handler(report)
        await super().startup(sockets)


class _Connection(H11Protocol):
    """A connection that is closed when the other side stalls."""

    _stalling: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Go on waiting until the whole head of a request is there."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_wait()
        elif self._stalling is None:
            self._wait()

    def pause_writing(self) -> None:
        """Begin to wait for the other side to take what is written."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """End the wait: the other side takes what is written."""
        super().resume_writing()
        self._end_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """End every wait."""
        super().connection_lost(exc)
        self._end_wait()

    def _wait(self) -> None:
        self._end_wait()
        self._stalling = self.loop.call_later(_SECONDS_TO_STALL, self.transport.abort)

    def _end_wait(self) -> None:
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None


def main() -> None:
    """Serve from the command line until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m embedkit.server", description=__doc__)
    parser.add_argument("--model", required=True, help="a bundled name, a folder, or a Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="by default this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("EMBEDKIT_API_KEY"),
        help="asked of clients; better set as EMBEDKIT_API_KEY, which no list of processes shows",
    )
    args = parser.parse_args()
    if not _is_loopback(args.host) and not args.api_key:
        parser.error(
            f"--host {args.host} lets other machines in; that needs --api-key, or leave --host out"
        )
    # Ctrl-C and SIGTERM are the usual ways to stop it, not errors.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        try:
            with _running(args.model, args.host, args.port, args.api_key) as url:
                print(f"{_name_of(args.model)} at {url}", flush=True)
                threading.Event().wait()
        except (OSError, ValueError) as error:
            parser.exit(1, f"{error}\n")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
