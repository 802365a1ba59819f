"""Exim from Debian as a peer."""

import subprocess
from collections.abc import Sequence

from tests.bench.server import SIZE_LIMIT, Mode, Packaged

_SETTINGS = """\
primary_hostname = relay.example
keep_environment =
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
message_size_limit = {limit}
smtp_accept_max = 500
smtp_connect_backlog = 500
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
queue_run_max = 20
tls_advertise_hosts =
rfc1413_query_timeout = 0s
acl_smtp_rcpt = accept
acl_smtp_data = accept

begin routers
out:
  driver = manualroute
  route_list = * 127.0.0.1
  transport = sink
  self = send

begin transports
sink:
  driver = smtp
  port = {sink}
  hosts_avoid_tls = *
  hosts_try_dane =

begin retry
* * F,2h,15m
"""
RUNNERS = 4  # queue runners at once


class Exim(Packaged):
    """Keeps what comes by -odq."""

    name = "exim"
    can = frozenset({"accept", "drain", "list"})
    packages = ("exim4-daemon-light",)
    queue = "/var/spool/exim4"

    def version(self) -> str:
        return self.root.run("exim4", "-bV").split("\n")[0].partition(" #")[0]

    def configured(self, mode: Mode) -> Sequence[str]:
        text = _SETTINGS.format(port=self.port, limit=SIZE_LIMIT, sink=self.place.sink_port)
        self.root.write("/etc/exim4/exim4.conf", text)
        self.root.run("sh", "-c", "mkdir -p /run/exim4 && chown Debian-exim: /run/exim4")
        self.lay_queue()
        return self.root.command("exim4", "-bdf", "-odq" if mode == "hold" else "-odb")

    def flush(self) -> None:
        for _ in range(RUNNERS):
            subprocess.Popen(
                [*self.group.prefix, *self.root.command("exim4", "-qff")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def listing(self) -> Sequence[str]:
        return self.root.command("exim4", "-bp")
