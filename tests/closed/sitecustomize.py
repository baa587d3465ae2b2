"""Python imports this first where the folder is on its path: it closes sockets to other machines.

Who tries all the same is refused, and written down in the file `SOCKETS_TRIED`, because what is
refused is often swallowed.
"""

import os
import sys

_HERE = ("127.", "::1", "localhost", "0.0.0.0")


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        host = (
            address[0] if isinstance(address, tuple) else "localhost"
        )  # a path is on this machine
    elif event == "socket.getaddrinfo":
        host = args[0] or "localhost"
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if not host.startswith(_HERE):
        with open(os.environ["SOCKETS_TRIED"], "a") as file:
            file.write(f"{event} {host}\n")
        raise OSError(f"the test lets nothing out, and this asked for {host}")


if "SOCKETS_TRIED" in os.environ:
    sys.addaudithook(_watch)
