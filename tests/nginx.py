"""A real HTTP server for the tests: nginx from Debian, in the foreground, on a port of its own, with files below one folder.

The machine's own nginx is used where there is one. Elsewhere the package is fetched and unpacked, not installed, so that no
service of the machine is ever started. Where neither can be had, the tests that need it are skipped aloud.
"""

from __future__ import annotations

import atexit
import json
import secrets
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

# Below each of these the same files are served, each time by a server of another temper.
CONFIG = """
daemon off; master_process off; pid {work}/pid; error_log {work}/error.log;
events {{ }}
http {{
  log_format one escape=json '{{"path": "$uri", "status": $status, "range": "$http_range", "sent": $body_bytes_sent}}';
  access_log {work}/access.log one;
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location /           {{ root {root}; }}
    location /slow/      {{ alias {root}/; limit_rate {rate}; }}
    location /stuck/     {{ alias {root}/; }}
    location ~ ^/stuck/(.*[.]tar)$ {{ alias {root}/$1; limit_rate 1; }}
    location /no-ranges/ {{ alias {root}/; max_ranges 0; }}
    location /forbidden/ {{ deny all; }}
    location /unlisted/  {{ alias {root}/; error_page 404 = @refused; }}
    location @refused    {{ return 403; }}
    location /busy/      {{ return 503; }}
    location /secret/    {{ alias {root}/; auth_basic shards; auth_basic_user_file {work}/users; }}
    location /signed/    {{ alias {root}/; if ($arg_sig != "s3cr3t") {{ return 403; }} }}
  }}
}}
"""


@dataclass
class Nginx:
    """A server that runs. `url` is the address of the folder `root`."""

    root: Path
    url: str
    work: Path
    config: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [_program(), "-e", str(self.work / "error.log"), "-p", str(self.work), "-c", str(self.config)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.work / "error.log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def requests(self) -> list[dict[str, Any]]:
        """What was answered so far: path, status, range and bytes sent, in the order of the answers' ends.

        What has arrived may be told a moment later, so one more request, told after all of those, is made and waited for. (What was
        not taken by a client that was killed is told when nginx next tries to send some of it.)
        """
        if self.process is not None:
            last = f"/last-{secrets.token_hex(4)}"
            connection = HTTPConnection("127.0.0.1", int(self.url.rsplit(":", 1)[1]), timeout=10)
            connection.request("GET", last)
            connection.getresponse().close()
            connection.close()
            while last not in self._log():
                time.sleep(0.001)
        said = [json.loads(line) for line in self._log().splitlines()]
        return [answer for answer in said if not answer["path"].startswith("/last-")]

    def _log(self) -> str:
        log = self.work / "access.log"
        return log.read_text() if log.exists() else ""

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", int(self.url.rsplit(":", 1)[1]))) == 0


@contextmanager
def serving(root: Path, work: Path, rate: str = "0") -> Iterator[Nginx]:
    """nginx serves `root`; at most `rate` bytes a second and connection below /slow/. Its files are below `work`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    work.mkdir(parents=True, exist_ok=True)
    (work / "users").write_text("anna:{PLAIN}s3cr3t\n")
    config = work / "nginx.conf"
    config.write_text(CONFIG.format(root=root, work=work, port=port, rate=rate))
    server = Nginx(root, f"http://127.0.0.1:{port}", work, config)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@cache
def _program() -> str:
    """The path of an nginx that runs."""
    installed = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if installed:
        return installed
    try:
        return _unpacked()
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"no nginx here, and its Debian package cannot be had ({error}): reading shards from afar is not tested"
        warnings.warn(reason, stacklevel=2)
        pytest.skip(reason)


def _unpacked() -> str:
    folder = Path(mkdtemp(prefix="nginx-"))
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o777)  # apt fetches as a user of its own
    options: dict[str, Any] = {"cwd": folder, "check": True, "timeout": 120, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        subprocess.run(["apt-get", "download", "nginx"], **options)
    except subprocess.CalledProcessError:  # a new machine has no list of packages yet
        subprocess.run(["apt-get", "update"], **options)
        subprocess.run(["apt-get", "download", "nginx"], **options)
    subprocess.run(["dpkg-deb", "--extract", *map(str, folder.glob("*.deb")), str(folder)], **options)
    program = str(folder / "usr" / "sbin" / "nginx")
    subprocess.run([program, "-e", "stderr", "-v"], **options)  # all the libraries it needs are there
    return program
