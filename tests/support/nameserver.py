"""A real DNS server on loopback: UDP and TCP on one port, records given as zone text, trouble on demand.

    with NameServer("meg.test. 300 IN MX 10 mx.meg.test.\\nmx.meg.test. 300 IN A 127.0.0.1") as dns:
        Resolver([dns.address])

It answers with authority for every name; a name below which nothing stands is NXDOMAIN. UDP answers over 512 octets are
truncated, so that the client comes back by TCP (RFC 1035 §4.2.1).
"""

import socketserver
import struct
import threading
from typing import Literal, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.zone
import dns.zonefile

Trouble = Literal["servfail", "silent", "refused"]
_RCODES = {"servfail": dns.rcode.SERVFAIL, "refused": dns.rcode.REFUSED}


def _both() -> tuple[socketserver.ThreadingUDPServer, socketserver.ThreadingTCPServer]:
    """One port that is free for UDP and for TCP: the first that is free for one may be taken for the other."""
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    while True:
        udp = socketserver.ThreadingUDPServer(("127.0.0.1", 0), _Datagram)
        try:
            return udp, socketserver.ThreadingTCPServer(("127.0.0.1", udp.server_address[1]), _Stream)
        except OSError:
            udp.server_close()


class NameServer:
    """`queries` lists what was asked, as ("mx.meg.test.", "A"), in order; it may be cleared."""

    def __init__(self, zone: str = "") -> None:
        self.queries: list[tuple[str, str]] = []
        self.trouble: dict[dns.name.Name, Trouble] = {}
        self.signed: set[dns.name.Name] = set()
        self.publish(zone)
        self._udp, self._tcp = _both()
        self.port: int = self._udp.server_address[1]
        for server in (self._udp, self._tcp):
            server.daemon_threads = True
            server.names = self  # type: ignore[union-attr]  # how a socketserver handler reaches its data

    def publish(self, zone: str) -> None:
        """Replaces all records. Names without a final dot are below the root."""
        rrsets = dns.zonefile.read_rrsets(zone, rdclass=None, default_ttl=300)
        self._records = {(rrset.name, rrset.rdtype): rrset for rrset in rrsets}

    def fail(self, name: str, trouble: Trouble) -> None:
        """From now on `name` and all below it get SERVFAIL, REFUSED, or no answer at all; "." is every name."""
        self.trouble[dns.name.from_text(name)] = trouble

    def sign(self, *names: str) -> None:
        """What is said of these names and all below them is vouched for from now on, as by a resolver that validated it."""
        self.signed |= set(map(dns.name.from_text, names))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, wire: bytes, limit: int) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        self.queries.append((question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA | dns.flags.RA
        trouble = next((self.trouble[zone] for zone in self.trouble if question.name.is_subdomain(zone)), None)
        if trouble == "silent":
            return None
        if trouble:
            response.set_rcode(_RCODES[trouble])
        else:
            self._fill(response, question.name, question.rdtype)
        names = {question.name, *(rrset.name for rrset in response.answer)}
        if not trouble and all(any(name.is_subdomain(zone) for zone in self.signed) for name in names):
            response.flags |= dns.flags.AD
        if len(response.to_wire()) > limit:
            response.answer = []
            response.flags |= dns.flags.TC
        return response.to_wire()

    def _fill(self, response: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> None:
        for _ in range(10):  # RFC 1034 §3.6.2: the server follows aliases
            alias = self._records.get((name, dns.rdatatype.CNAME))
            if alias is None or rdtype == dns.rdatatype.CNAME:
                break
            response.answer.append(alias)
            name = alias[0].target
        found = self._records.get((name, rdtype))
        if found is not None:
            response.answer.append(found)
            return
        if soa := self._records.get((dns.name.root, dns.rdatatype.SOA)):
            response.authority.append(soa)  # RFC 2308 §3: that there is nothing may be remembered
        if not any(known.is_subdomain(name) for known, _ in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)

    def __enter__(self) -> Self:
        for server in (self._udp, self._tcp):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()


class _Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        wire, socket = self.request
        answer = self.server.names.answer(wire, 512)  # type: ignore[attr-defined]
        if answer is not None:
            socket.sendto(answer, self.client_address)


class _Stream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while len(head := self.rfile.read(2)) == 2:
            (length,) = struct.unpack("!H", head)
            answer = self.server.names.answer(self.rfile.read(length), 65535)  # type: ignore[attr-defined]
            if answer is None:
                return
            self.wfile.write(struct.pack("!H", len(answer)) + answer)
