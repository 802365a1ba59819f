"""python -m tests.bench: measures, prints the tables, and leaves figures, tables and chart in build/bench.

Servers take turns at every case, and that in several rounds: whatever else the machine does hits all of them alike, and
it is their ratio that counts.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import chart, roots, scale, tables
from tests.bench.cases import Case, Facts, cases
from tests.bench.exim import Exim
from tests.bench.haraka import Haraka
from tests.bench.opensmtpd import OpenSmtpd
from tests.bench.ours import Ours, Pair, Verifying
from tests.bench.plain import Plain
from tests.bench.postfix import Behind, Postfix, Signing
from tests.bench.server import Place, Server
from tests.bench.traffic import BenchError, Sink

SERVERS: dict[str, type[Server]] = {
    kind.name: kind for kind in (Postfix, Signing, Behind, OpenSmtpd, Exim, Haraka, Plain, Ours, Pair, Verifying)
}
WHAT = ("accept", "drain", "through", "list", "memory", "verify", "milter", "scan", "growth")
OUT = Path(__file__).resolve().parents[2] / "build" / "bench"
CALM = 0.3  # cores in other hands; a run beside more than that is repeated
TRIES = 3


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes: one round of the cases that decide")
    parser.add_argument("--what", default=",".join(WHAT), help="some of " + ",".join(WHAT))
    parser.add_argument("--peers", default="", help="some of " + ",".join(SERVERS))
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--json", type=Path, default=OUT / "bench.json")
    parser.add_argument("--spool", type=Path, default=OUT / "spool", help="a folder on the file system to measure")
    parser.add_argument("--ext4", type=int, default=0, metavar="GB", help="measure on a journaled ext4 of this size")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.peers = given.peers or ("postfix,ours,ours-verify" if given.quick else ",".join(SERVERS))
    given.what = given.what.split(",")
    return given


def chosen(given: argparse.Namespace) -> list[Case]:
    return [case for case in cases(quick=given.quick) if case.what in given.what and given.only in case.label]


def prepared(given: argparse.Namespace, place: Place) -> list[Server]:
    """Those of the servers asked for that have a part in it and can be had here."""
    needed = {case.needs for case in chosen(given)}
    servers = []
    for name in given.peers.split(","):
        if name != "ours" and not needed & SERVERS[name].can:  # it alone is measured by `scale`
            continue
        server = SERVERS[name](place)
        try:
            if not roots.may_mount() and name not in ("ours", "ours-verify", "aiosmtpd", "haraka"):
                raise BenchError("needs root, and mount namespaces")
            server.prepare()
            print(f"{name}: {server.version()}", flush=True)
            servers.append(server)
        except (BenchError, OSError) as error:
            server.group.remove()
            print(f"{name}: not measured: {error}", file=sys.stderr)
    return servers


def measured(case: Case, server: Server, sink: Sink) -> Facts:
    """One run; again, while something else kept the machine busy."""
    best: Facts = {}
    for _ in range(TRIES):
        try:
            facts = case.measure(server, sink)
        finally:
            server.stop()
        if not best or facts["others"] < best["others"]:
            best = facts
        if best["others"] <= CALM:
            break
    return best


def rounds(given: argparse.Namespace, servers: list[Server], sink: Sink, found: list[Facts]) -> None:
    """Adds one row to `found` for every run, so that what was measured is kept whatever happens next."""
    for number in range(given.rounds):
        for case in chosen(given):
            for server in servers:
                if case.needs not in server.can:
                    continue
                head = {"what": case.what, "case": case.label, "server": server.name, "round": number}
                try:
                    facts = measured(case, server, sink)
                except BenchError as error:
                    print(f"{server.name}, {case.what} {case.label}: {error}", file=sys.stderr, flush=True)
                    continue
                found.append({**head, "unit": case.unit, **facts})
                print(
                    f"{number} {case.what:8} {case.label:36} {server.name:17} {facts['value']:9.2f} "
                    f"{facts['cpu_ms']:8.2f} ms CPU, {facts['pss_mb']:.0f} MB, others {facts['others']:.2f}",
                    flush=True,
                )


def machine(given: argparse.Namespace, servers: list[Server]) -> dict[str, Any]:
    return {
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": roots.run("findmnt", "-no", "FSTYPE,OPTIONS", "-T", given.spool).strip(),
        "versions": {server.name: server.version() for server in servers},
        "rounds": given.rounds,
    }


def main() -> None:
    given = options()
    roots.enter_private_mounts("tests.bench")
    roots.alone()
    # So that a bench that is stopped stops its servers too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    given.spool.mkdir(parents=True, exist_ok=True)
    if given.ext4:
        roots.journaled(given.spool, given.ext4)
    sink = Sink(given.spool / "sink")
    servers: list[Server] = []
    results: dict[str, Any] = {"machine": {}, "runs": []}
    try:
        servers += prepared(given, Place(given.spool, sink.port))
        results["machine"] = machine(given, servers)
        rounds(given, servers, sink, results["runs"])
        ours = next((server for server in servers if isinstance(server, Ours)), None)
        if ours is not None:
            results["runs"] += scale.measure(ours, sink, given.what, quick=given.quick)
    finally:
        for server in servers:
            server.stop()
            server.group.remove()
        if results["runs"]:
            _leave(given, results)


def _leave(given: argparse.Namespace, results: dict[str, Any]) -> None:
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(results, indent=1))
    text = tables.markdown(results)
    given.json.with_suffix(".md").write_text(text)
    given.json.with_suffix(".svg").write_text(chart.svg(results))
    print(f"\n{text}\n{given.json.parent}")


if __name__ == "__main__":
    main()
