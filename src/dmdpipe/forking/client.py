"""What Snakemake starts for a step: asks the server to run the step's script, and ends as the script ends.

    python client.py PYTHON SCRIPT [ARGUMENT ...]

Without a server, or for any other command, it becomes that command. Only the standard library, and little of it: this
is started for every step.
"""

import json
import os
import signal
import socket
import struct
import sys

ADDRESS = "DMDPIPE_FORK_SERVER"
LENGTH = struct.Struct("!Q")
STATUS = struct.Struct("!i")


def main(command: list[str]) -> int:
    """Run ``command``; return its exit status."""
    address = os.environ.get(ADDRESS)
    connection = connect_to(address) if address and len(command) > 1 and command[1].endswith(".py") else None
    if connection is None:
        os.execvp(command[0], command)
    with connection:
        facts = {"command": command[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
        request = json.dumps(facts).encode()
        socket.send_fds(connection, [LENGTH.pack(len(request))], [1, 2])
        connection.sendall(request)
        answer = connection.recv(STATUS.size, socket.MSG_WAITALL)
    if len(answer) < STATUS.size:
        print("dmdpipe: the server that starts steps has died; run again", file=sys.stderr)
        return 1
    (status,) = STATUS.unpack(answer)
    if status < 0:
        os.kill(os.getpid(), -status)
    return int(status)


def connect_to(address: str) -> socket.socket | None:
    """Return a connection to the server at a Unix socket, or None if there is none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        return None
    return connection


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
