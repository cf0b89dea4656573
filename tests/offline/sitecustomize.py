"""Closes every socket beyond loopback in each Python process that has this folder on PYTHONPATH.

Python imports a module of this name by itself when it starts, so children are closed too. The
audit hook cannot be removed again, and sees what libraries in C do through Python's sockets. Each
attempt raises and, if OFFLINE_LOG names a file, is written there, so that one that is caught
and hidden by a library is seen all the same.
"""

import ipaddress
import os
import socket
import sys
import traceback

CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
LOOKING_UP = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
# A name of this machine leads nowhere else, and Jupyter asks for it.
OWN_NAMES = {None, "", "localhost", socket.gethostname()}


def stays_here(host: object) -> bool:
    """Whether a host is this machine: one of its names, loopback, or the wildcard address."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in OWN_NAMES:
        return True
    try:
        address = ipaddress.ip_address(str(host).split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse_the_network(event: str, arguments: tuple) -> None:
    if event in CONNECTING:
        sock, address = arguments[0], arguments[-1]
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or address is None:
            return
        host = address[0]
    elif event in LOOKING_UP:
        host = arguments[0]
    else:
        return
    if stays_here(host):
        return
    if log := os.environ.get("OFFLINE_LOG"):
        with open(log, "a") as file:
            stack = "".join(traceback.format_stack(limit=6)[:-1])
            file.write(f"{event} {host} in {sys.argv}\n{stack}")
    raise OSError(f"the network is closed in this process: {event} {host}")


sys.addaudithook(refuse_the_network)
