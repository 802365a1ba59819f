"""DNS is dead or lies: mail for those domains waits, the rest of the run goes on, and nobody's mail goes elsewhere."""

from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest

from tests.faults.door import NewRelay, letter, post, run, states
from tests.faults.far import Placed
from tests.support import debian
from tests.support.nameserver import NameServer
from tests.support.relay import Relay, toml

HASTE = 4  # a question is given up after five seconds
LIES = ("dead", "otherid", "otherquestion", "garbage", "nothing", "refused", "servfail")


class Liar(NameServer):
    """Answers for NAME.test as NAME says, and points at a host nobody should be sent to. `honest`: it is mended."""

    honest = False

    def answer(self, wire: bytes, limit: int) -> bytes | None:
        query = dns.message.from_wire(wire)
        name = query.question[0].name.to_text().split(".")[-3]
        if self.honest or name not in LIES:
            return super().answer(wire, limit)
        if name == "dead":
            return None
        if name == "garbage":
            return b"\x00" + bytes(range(40))
        if name == "nothing":
            return b""
        return self._lie(query, name).to_wire()

    def _lie(self, query: dns.message.Message, name: str) -> dns.message.Message:
        response = dns.message.make_response(query)
        asked = query.question[0]
        if name in ("refused", "servfail"):
            response.set_rcode(dns.rcode.from_text(name.upper()))
            return response
        text = "10 thief.test." if asked.rdtype == dns.rdatatype.MX else "127.0.0.66"
        rdtype = "MX" if asked.rdtype == dns.rdatatype.MX else "A"
        response.answer.append(dns.rrset.from_text(asked.name, 300, "IN", rdtype, text))
        if name == "otherid":
            response.id = query.id ^ 0x5555
        else:
            response.question[0] = dns.rrset.from_text("elsewhere.test.", 0, "IN", rdtype)
        return response


@pytest.mark.debian("faketime")
def test_dns_that_is_dead_or_lies(
    tmp_path: Path, new_relay: NewRelay, far: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {name: {"address": f"{name}+{{name}}", "relay": f"{{name}}@{name}.test"} for name in (*LIES, "fine")}
    (tmp_path / "rules.toml").write_text(toml({"rule": rules}))
    with Liar("fine.test. MX 10 mx.fine.test.\nmx.fine.test. A 127.0.0.1\n") as server:
        relay = new_relay({"relay": {"rules": str(tmp_path / "rules.toml")}})
        relay.configure({"delivery": {"dns": [server.address], "routes": {"fine.test": far.place}}})
        relay.start()
        messages = {name: letter() for name in (*LIES, "fine")}
        for name, message in messages.items():
            assert post(relay, message, f"{name}+a@welyb.fr").accepted
        with monkeypatch.context() as hurried:
            for key, value in debian.faked_time(f"+0 x{HASTE}").items():
                hurried.setenv(key, value)
            run(relay)
        assert {name: states(relay, message) for name, message in messages.items()} == {
            **{name: ["waiting"] for name in LIES},
            "fine": ["sent"],
        }
        assert not any("thief" in name for name, _ in server.queries), "nobody asked where the thief lives"
        assert all(row["attempts"] == 1 and row["reply"] for row in relay.json("queue", "list", "--state", "waiting"))


def test_a_domain_that_does_not_exist_for_a_moment(tmp_path: Path, new_relay: NewRelay) -> None:
    (tmp_path / "rules.toml").write_text(
        toml({"rule": {"moment": {"address": "moment+{name}", "relay": "{name}@moment.test"}}})
    )
    with NameServer("other.test. A 127.0.0.1") as server:
        relay = new_relay({"relay": {"rules": str(tmp_path / "rules.toml")}, "delivery": {"dns": [server.address]}})
        relay.start()
        message = letter()
        assert post(relay, message, "moment+a@welyb.fr").accepted
        run(relay)
        (row,) = relay.json("queue", "list")
        assert (row["state"], "NXDOMAIN" in row["reply"]) == ("waiting", True)
        server.publish("moment.test. MX 10 mx.moment.test.\nmx.moment.test. A 127.0.0.99")
        run(relay)
        (row,) = relay.json("queue", "list")
        assert row["state"] == "waiting" and "NXDOMAIN" not in row["reply"], "it was looked up again, and found"
        assert ("mx.moment.test.", "A") in server.queries
    assert_no_wrong_end(relay, message)


def assert_no_wrong_end(relay: Relay, message: bytes) -> None:
    assert states(relay, message) == ["waiting"]
