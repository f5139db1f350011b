"""An nginx with the configuration that we ship, before servers on ports of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.storms.postgresql import NotInstalled
from bench.storms.server_process import free_port, seconds_until

CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "nginx.conf"
# nginx would make these in folders of the system's.
_TEMPORARY = "".join(f"    {name}_temp_path {name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


def find_nginx() -> str:
    """The program; raises NotInstalled."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise NotInstalled("nginx is not installed: apt-get install nginx")
    return program


@contextmanager
def running_nginx(program: str, folder: Path, servers: Sequence[str]) -> Iterator[str]:
    """Its address, for the time of a block; ``servers`` are the two addresses behind it."""
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    text = CONF.read_text().replace("http {\n", "http {\n" + _TEMPORARY)
    known = ("127.0.0.1:50050", "127.0.0.1:50051", "127.0.0.1:50052")
    for shipped, actual in zip(known, (address, *servers), strict=True):
        if text.count(shipped) != 1:
            raise RuntimeError(f"{CONF} should name {shipped} once")
        text = text.replace(shipped, actual)
    (folder / "nginx.conf").write_text(text)
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        seconds_until(lambda: _is_listening(address), 30.0)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_listening(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
