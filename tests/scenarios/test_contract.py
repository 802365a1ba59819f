"""What others script against: keys of --json, times, exit codes, and the small verbs, by the real command.

Long because it is the whole outside contract, one table after another.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support import documents as made
from tests.support.clients import mail
from tests.support.desk import SENDER, Desk
from tests.support.firm import AT_ONCE
from tests.support.nameserver import NameServer
from tests.support.program import free_port
from tests.support.relay import Relay, command

# design.md §5: more may be added, none renamed.
KEYS = {
    "queue list": "id message message_id documents kind state reason route client sender recipient target received_at due_at"
    " attempts reply size",
    "queue show ID": "id message message_id documents kind state reason route client sender recipient target received_at"
    " due_at attempts reply size",
    "documents list": "id delivery name type size sha256 client folder collector origin status reason deposited_at"
    " validated_at",
    "runs list": "id started_at finished_at eligible sent deferred refused held duplicate",
    "runs show 1": "id started_at finished_at eligible sent deferred refused held duplicate",
    "runs now --dry-run": "name client target verdict reason",
    "connections list": "id application client folder welyb_address collector_address activated_at state",
    "connections show 1": "id application client folder welyb_address collector_address activated_at state",
    "clients list": "slug folder aliases fiscal_year_end state",
    "users list": "name rules created_at state",
    "trace facture.pdf": "at actor event message document delivery detail",
    "explain meg+x@welyb.fr": "address decision rule target reason",
    "examine MAIL": "file part name type size verdict reason",
    "check": "subject ok finding remedy",
    "keys list": "selector kind active last_signed_at needed_until record",
    "dns": "name type value",
    "dns --verify": "name type ok finding found remedy",
    "runs next": "at",
    "queue summary": "kind state",
}
LISTINGS = (
    *("queue list", "documents list", "runs list", "connections list", "clients list", "forwarding list"),
    "users list",
    *("trace x", "queue summary", "throttles list"),
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Two clients, a connection with one document before it, a mail and a deposit tried in vain, a mail filed."""
    relay = Relay(tmp_path_factory.mktemp("desk"), AT_ONCE)
    away = f"127.0.0.1:{free_port()}"
    domains = ("factures-meg.fr", "achats.factures-meg.fr")
    relay.configure({"delivery": {"routes": dict.fromkeys(domains, away)}})
    for name in ("Maçon & Dupont", "Durand"):
        (relay.client(name) / "Achats").mkdir()
    (relay.ged / "Durand/Achats/ancien.pdf").write_bytes(made.pdf("ancien"))
    relay.start()
    desk = Desk(relay)
    connect(desk, "durand", "durand@factures-meg.fr", code=0)
    (relay.ged / "Durand/Achats/depot.pdf").write_bytes(made.pdf("depot"))
    desk.mail("macon-dupont", ("facture.pdf", "application/pdf", made.pdf()))
    to = "ventes+macon-dupont@welyb.fr"
    assert desk.send(to, mail(SENDER, to, ("vente.pdf", "application/pdf", made.pdf("vente")))).accepted
    assert desk.here("runs", "now").exit_code == 0
    assert desk.here("keys", "create", "s1").exit_code == 0
    for name in ("scanner", "compta"):
        assert desk.here("users", "add", name, "--rule", "meg", text="un mot de passe assez long").exit_code == 0
    with NameServer() as server:  # that knows nothing, whatever this machine asks otherwise
        server.fail(".", "servfail")
        relay.configure({"delivery": {"dns": [server.address]}})
        yield desk
    relay.stop()


def connect(desk: Desk, client: str, address: str, *more: str, code: int, application: str = "meg") -> str:
    """`connections add`: what it said."""
    words = ("--application", application, "--client", client, "--folder", "Achats", "--address", address)
    done = desk.here("connections", "add", *words, *more)
    assert done.exit_code == code, done.output
    return done.output


# --- JSON and tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", KEYS)
def test_the_keys_of_json(desk: Desk, tmp_path: Path, words: str) -> None:
    (tmp_path / "mail.eml").write_bytes(mail(SENDER, "x@y.fr", ("a.pdf", "application/pdf", made.pdf())))
    some = next(iter(desk.states()))
    given = [{"ID": some, "MAIL": str(tmp_path / "mail.eml")}.get(word, word) for word in words.split()]
    done = desk.here(*given, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    verdicts = [row["ok"] for row in rows if words in ("check", "dns --verify")]
    assert done.exit_code == (1 if verdicts and (False in verdicts or not any(verdicts)) else 0)
    for row in rows:
        assert set(KEYS[words].split()) <= row.keys()
        for key, value in row.items():
            if (key.endswith("_at") or key == "at") and value is not None:
                assert datetime.fromisoformat(value).tzinfo is not None, f"{key}: {value}"
        assert "size" not in row or isinstance(row["size"], int | type(None))


def test_the_counts_of_a_run_now(desk: Desk) -> None:
    (row,) = desk.json("runs", "now")
    assert set(KEYS["runs list"].split()) <= row.keys()
    assert row["eligible"] == sum(row[k] for k in ("sent", "deferred", "refused", "held", "duplicate")) > 0


def test_the_values_others_depend_on(desk: Desk) -> None:
    assert {row["kind"] for row in desk.json("queue", "list")} == {"send", "file"}
    (known,) = desk.json("clients", "list", "--client", "macon-dupont")
    assert known == {
        "slug": "macon-dupont",
        "folder": "Maçon & Dupont",
        "aliases": [],
        "fiscal_year_end": None,
        "state": "listed",
    }
    (link,) = desk.json("connections", "list")
    addresses = (link["welyb_address"], link["collector_address"])
    assert addresses == ("meg+durand@welyb.fr", "durand@factures-meg.fr")
    assert (link["application"], link["client"], link["folder"], link["state"]) == ("meg", "durand", "Achats", "active")


@pytest.mark.parametrize("words", LISTINGS)
def test_every_listing_has_a_table_and_takes_every_filter(desk: Desk, words: str) -> None:
    assert desk.here(*words.split()).exit_code == 0
    if words in ("trace x", "queue summary"):
        return
    for filter_ in ("--client personne", "--collector a@b.fr", "--sender a@b.fr", "--id rien", "--since 2099-01-01"):
        done = desk.here(*words.split(), *filter_.split(), "--json")
        assert (done.exit_code, done.stdout) == (0, ""), filter_
    everything = desk.json(*words.split())
    key = {"documents list": "key", "clients list": "slug", "users list": "name"}.get(words, "id")
    pages: list[dict[str, Any]] = []
    while page := desk.json(*words.split(), "--limit", "1", "--after", str(pages[-1][key]) if pages else ""):
        pages += page
    assert pages == everything


def test_a_table_shows_french_or_english(desk: Desk) -> None:
    assert "En attente d'envoi" in desk.json("queue", "list", "--state", "waiting")[0]["reason"]
    english = {**os.environ, "LC_ALL": "en_GB.UTF-8"}
    words = [*command(), "--config", str(desk.relay.config), "queue", "list", "--state", "waiting", "--json"]
    done = subprocess.run(words, capture_output=True, check=True, env=english)
    assert re.search(rb"Waiting to be sent, next attempt at \d\d:\d\d", done.stdout)


# --- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [w for w in LISTINGS if w != "trace x"] + ["trace x", "queue body x", "queue show x", "forwarding show x"]
)
def test_without_a_store_a_listing_exits_3_and_creates_nothing(tmp_path: Path, words: str) -> None:
    relay = Relay(tmp_path)
    before = sorted(relay.folder.rglob("*"))
    done = Desk(relay).here(*words.split())
    assert (done.exit_code, done.stdout) == (3, "")
    assert re.search(r"no store yet\. Remedy: ", done.stderr)
    assert sorted(relay.folder.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        *("queue hold x", "queue resend x --yes", "runs now", "runs now --dry-run", "clients add dupont"),
        *("clients remove dupont", "connections remove 1", "connections readdress 1 --address meg+x@welyb.fr"),
        *("connections add --application meg --client a --address meg+x@welyb.fr", "throttles clear peer 192.0.2.1"),
        *("users add x", "users passwd x", "users remove x"),
    ],
)
def test_without_a_store_a_change_exits_3_and_creates_nothing(tmp_path: Path, words: str) -> None:
    relay = Relay(tmp_path)
    assert Desk(relay).here(*words.split()).exit_code == 3
    assert not (relay.folder / "var/relay.db").exists()


@pytest.mark.parametrize(
    "words",
    [
        *("", "nonsense", "queue nonsense", "queue list --limit 0", "queue list --nonsense", "runs show x"),
        *(
            "connections add",
            "clients add",
            "users add",
            "users add é",
            "users add a --rule b",
            "users add court",
            "explain",
            "examine",
            "examine /nowhere",
            "queue list --state perdu",
        ),
    ],
)
def test_usage_exits_2(desk: Desk, words: str) -> None:
    done = desk.here(*words.split())
    assert done.exit_code == 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    "words",
    [
        *("runs show 9999", "connections show 9999", "queue show x", "clients remove durand", "connections remove 99"),
        *("users add scanner", "users passwd personne", "users remove personne"),
    ],
)
def test_nothing_matched_exits_1(desk: Desk, words: str) -> None:
    done = desk.here(*words.split())
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")


def test_bad_settings_exit_2_with_file_line_key_and_remedy(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.config.write_text('[relay]\nhostnme = "x"\n')
    for verb in ("serve", "check", "queue list", "explain x"):
        done = subprocess.run([*command(), "--config", str(relay.config), *verb.split()], capture_output=True)
        assert done.returncode == 2
        assert f"{relay.config}:2: [relay] hostnme: unknown key. Remedy: one of" in done.stderr.decode()


def test_the_command_starts_and_says_what_it_is() -> None:
    done = subprocess.run([*command(), "--help"], capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"})
    verbs = "serve check dns explain examine queue trace clients connections documents runs keys demo"
    assert all(re.search(rf"(?m)^  {verb} ", done.stdout.decode()) for verb in verbs.split())
    assert subprocess.run([*command(), "queue", "--help"], capture_output=True).returncode == 0


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    tree = str(Path(__file__).resolve().parents[2])  # it calls itself, installed or not
    env = {**os.environ, "TMPDIR": str(tmp_path), "LC_ALL": "C", "PYTHONPATH": tree}
    told = subprocess.run(
        [*command(), "demo"], capture_output=True, check=True, env=env, text=True, cwd=tmp_path
    ).stdout
    for word in ("validated", "filed", "baseline", "554 5.6.1 releve.zip", "Le collecteur a reçu 3 messages"):
        assert word in told
    (folder,) = tmp_path.iterdir()  # left for whoever wants to look around
    look = re.findall(r"welyb-relay (--config .*)", told)
    assert look
    for words in look:
        subprocess.run([*command(), *words.split()], check=True, capture_output=True)
    assert str(folder) in told


def test_a_listing_loads_nothing_heavy(desk: Desk) -> None:
    """Process start included, a page must come at once: what a listing does not need, it does not import."""
    code = "import sys; from relay.cli import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    words = [sys.executable, "-c", code, "--config", str(desk.relay.config), "queue", "list", "--json"]
    tree = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(words, capture_output=True, check=True, env={**os.environ, "PYTHONPATH": tree}, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded & {"aiosmtpd", "asyncio", "dns", "magic", "dkim", "cryptography", "email.parser", "tabulate"} == set()


# --- explain and examine ----------------------------------------------------------------------------------------------

EXPLAINED: list[tuple[str, str, str, str, str]] = [
    # address, decision, rule, target, what the reason begins with
    ("meg+macon-dupont@welyb.fr", "relay", "meg", "macon-dupont@factures-meg.fr", "forme"),
    ("MEG+Macon-Dupont@WELYB.fr", "relay", "meg", "macon-dupont@factures-meg.fr", "forme"),
    ('"meg+macon"@welyb.fr', "relay", "meg", "macon@factures-meg.fr", "forme"),
    ("@relais.example:meg+macon@welyb.fr", "relay", "meg", "macon@factures-meg.fr", "forme"),
    ("meg+achats+macon@welyb.fr", "relay", "meg-achats", "macon@achats.factures-meg.fr", "forme"),
    ("meg+durand@welyb.fr", "relay", "meg", "durand@factures-meg.fr", "connexion du client durand"),
    ("ventes+macon-dupont@welyb.fr", "file", "ventes", "Maçon & Dupont/Ventes/{year}/{month}", "dossier client connu"),
    ("ventes+personne@welyb.fr", "refuse", "ventes", "", "client inconnu"),
    ("postmaster@welyb.fr", "postmaster", "", "(gardé ici)", "RFC 5321"),
    ("postmaster", "postmaster", "", "(gardé ici)", "RFC 5321"),
    ("abuse@welyb.fr", "postmaster", "", "(gardé ici)", "RFC 5321"),
    ("retours+abcdefghijklmnopqrstuvwx@welyb.fr", "bounce", "", "", "retour d'un envoi"),
    ("retours+x@welyb.fr", "refuse", "", "", "550 5.1.1"),
    ("meg+achats@welyb.fr", "refuse", "", "", "553 5.1.3"),
    ("meg+@welyb.fr", "refuse", "", "", "553 5.1.3"),
    ("meg+a+b@welyb.fr", "refuse", "", "", "553 5.1.3"),
    ("meg+a..b@welyb.fr", "refuse", "", "", "553 5.1.3"),
    ("meg+a%b@welyb.fr", "refuse", "", "", "553 5.1.3"),
    ("meg+ma\u00e7on@welyb.fr", "refuse", "", "", "553 5.6.7"),
    ("meg+ſ@welyb.fr", "refuse", "", "", "553 5.6.7"),
    ("nobody@welyb.fr", "refuse", "", "", "553 5.1.3"),
    ("meg+x@ailleurs.example", "refuse", "", "", "550 5.7.1"),
    ("meg+x@", "refuse", "", "", "553 5.1.3"),
    ("", "refuse", "", "", "5"),
]


@pytest.mark.parametrize(("address", "decision", "rule", "target", "reason"), EXPLAINED)
def test_explain(desk: Desk, address: str, decision: str, rule: str, target: str, reason: str) -> None:
    (row,) = desk.json("explain", "--", address) if address.startswith("-") else desk.json("explain", address)
    assert (row["address"], row["decision"], row["rule"], row["target"]) == (address, decision, rule, target)
    assert row["reason"].startswith(reason)


def test_explain_judges_the_peer_and_the_sender(desk: Desk) -> None:
    def told(*words: str) -> tuple[str, str]:
        (row,) = desk.json("explain", "meg+x@welyb.fr", *words)
        return row["decision"], row["reason"]

    assert told("--peer", "127.0.0.1")[0] == told("--peer", "::ffff:127.0.0.1")[0] == "relay"
    assert told("--peer", "192.0.2.1") == ("refuse", "550 5.7.1 Envoi non autorise vers cette adresse (not permitted)")
    assert told("--sender", "a b@x")[0] == "refuse"
    (open_to_all,) = desk.json("explain", "ventes+durand@welyb.fr", "--peer", "192.0.2.1")
    assert open_to_all["decision"] == "file"


def test_explain_needs_no_store(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    (row,) = Desk(relay).json("explain", "meg+x@welyb.fr")
    assert row["decision"] == "relay"
    assert not (relay.folder / "var").exists()


def test_examine_files_and_mails(desk: Desk, tmp_path: Path) -> None:
    from email.message import EmailMessage

    letter = EmailMessage(policy=SMTP)
    letter["From"] = SENDER
    letter.set_content("Bonjour")
    letter.add_attachment(made.pdf(), maintype="application", subtype="pdf", filename="facture.pdf")
    letter.add_attachment(made.plain_zip(), maintype="application", subtype="pdf", filename="pas-un.pdf")
    files = {
        "mail.eml": letter.as_bytes(),
        "unix.eml": letter.as_bytes().replace(b"\r\n", b"\n"),
        "facture.pdf": made.pdf(),
        "lot.zip": made.plain_zip(),
        "bureau.docx": made.docx(),
        "vide.pdf": b"",
        "grand.pdf": made.pdf_of_size(10_000_001),
        "cii.xml": made.cii_xml(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    rows = desk.json("examine", *(str(tmp_path / name) for name in files))
    found = {(Path(row["file"]).name, row["name"]): (row["verdict"], row["reason_code"]) for row in rows if row["name"]}
    for letter_ in ("mail.eml", "unix.eml"):
        assert found[letter_, "facture.pdf"] == ("document", None)
        assert found[letter_, "pas-un.pdf"] == ("refuse", "zip")
    assert found["facture.pdf", "facture.pdf"] == found["bureau.docx", "bureau.docx"] == ("document", None)
    assert found["cii.xml", "cii.xml"] == ("document", None)
    assert found["lot.zip", "lot.zip"] == ("refuse", "zip")
    assert found["vide.pdf", "vide.pdf"] == ("refuse", "empty")
    assert found["grand.pdf", "grand.pdf"] == ("refuse", "too-big")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert desk.here("examine", str(tmp_path / "facture.pdf"), "--rule", "inconnue").exit_code == 2


# --- check, dns, keys -------------------------------------------------------------------------------------------------


def findings(relay: Relay) -> tuple[int, dict[str, dict[str, Any]]]:
    done = Desk(relay).here("check", "--json")
    return done.exit_code, {row["subject"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.debian("root")
def test_check_advises_against_serving_as_root(desk: Desk) -> None:
    found = findings(desk.relay)[1]["identity"]
    assert found["ok"] and "useradd" in found["remedy"]


def test_check_finds_nothing_where_all_is_well(desk: Desk) -> None:
    code, found = findings(desk.relay)
    assert [row for row in found.values() if not row["ok"]] == []
    assert code == 0
    assert {"settings", "rules", "data", "disk", "ged", "store", "dns factures-meg.fr"} <= found.keys()


def test_check_tells_of_a_rule_that_asks_for_what_nobody_looks_at(tmp_path: Path) -> None:
    relay = Relay(tmp_path, {"relay": {"rules": "rules.toml"}})
    rule = '[rule.x]\naddress = "x+{name}"\nrelay = "{name}@far.example"\nsenders = ["cabinet.example"]\n'
    (relay.folder / "rules.toml").write_text(rule)
    found = findings(relay)[1]["authentication"]
    assert not found["ok"] and "strangers" in found["remedy"]
    relay.configure({"authentication": {"verify": "strangers"}})
    assert findings(relay)[1]["authentication"]["ok"]


def test_check_tells_each_fault_with_its_remedy(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    with NameServer("factures-meg.fr. MX 10 mx.factures-meg.fr.\nmx.factures-meg.fr. A 127.0.0.1") as server:
        relay.configure({"delivery": {"dns": [server.address]}, "dkim": {"selector": "absent"}})
        relay.configure({"smtp": {"certificate": "none.pem", "key": "none.key"}})
        relay.configure({"milter": {"listen": ["unix:nowhere/milter.sock"]}})
        (relay.folder / "var").mkdir(mode=0o755)
        for name in ("Dupont", "DUPONT"):
            relay.client(name)
        code, found = findings(relay)
        relay.configure({"ged": {"root": "nowhere"}})
        assert not findings(relay)[1]["ged"]["ok"]
    faults = {subject for subject, row in found.items() if not row["ok"]}
    ours = {subject for subject in faults if subject.startswith("published ")}
    assert "published MX welyb.fr." in ours  # and all the others: the name server knows nothing of us
    assert faults - ours == {"data", "dkim", "certificate", "clients", "milter", "dns achats.factures-meg.fr"}
    assert all(found[subject]["remedy"] for subject in faults)
    relay.configure({"milter": {"listen": ["inet:0.0.0.0:8891"]}})
    assert not findings(relay)[1]["milter"]["ok"]
    assert found["dns factures-meg.fr"]["finding"] == "mx.factures-meg.fr[127.0.0.1]:25"
    assert code == 1


def test_check_takes_a_good_certificate(tmp_path: Path, authority: trustme.CA, certificate: tuple[Path, Path]) -> None:
    relay = Relay(tmp_path, {"smtp": {"certificate": str(certificate[0]), "key": str(certificate[1])}})
    assert findings(relay)[1]["certificate"]["ok"]


def test_keys_are_made_once_and_published(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    desk = Desk(relay)
    created = desk.here("keys", "create", "s1")
    assert created.exit_code == 0
    assert "s1._domainkey.welyb.fr." in created.stdout
    path = relay.folder / "var/dkim/s1.pem"
    before = path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    assert desk.here("keys", "create", "s1").exit_code == 1
    assert path.read_bytes() == before
    for bad in ("../s2", "S3", "", "a.b"):
        assert desk.here("keys", "create", bad).exit_code == 2
    relay.configure({"dkim": {"selector": "s1"}})
    rotated = desk.here("keys", "rotate", "s2")
    assert (rotated.exit_code, "s1._domainkey.welyb.fr" in rotated.stdout) == (0, True)
    assert desk.here("keys", "create", "s3", "--kind", "ed25519").exit_code == 0
    assert [(row["selector"], row["active"]) for row in desk.json("keys", "list")] == [
        ("s1", True),
        ("s2", False),
        ("s3", False),
    ]
    records = {row["name"]: row["value"] for row in desk.json("dns")}
    assert records["welyb.fr."] in ("10 mx.welyb.fr.", '"v=spf1 mx -all"')
    assert re.match(r'"v=DKIM1; k=rsa; p=', records["s1._domainkey.welyb.fr."])
    assert "k=ed25519" in records["s3._domainkey.welyb.fr."]
    assert records["_dmarc.welyb.fr."].startswith('"v=DMARC1;')
    assert all(len(text) <= 255 for value in records.values() for text in re.findall(r'"([^"]*)"', value))
    printed = [line for line in desk.here("dns").stdout.splitlines() if not line.startswith(";")]
    assert len(printed) == len([row for row in desk.json("dns") if row["type"] != "FILE"])


# --- clients and connections ------------------------------------------------------------------------------------------


def test_clients_added_and_forgotten(desk: Desk) -> None:
    assert desk.here("clients", "add", "leroy", "--folder", "Leroy SARL", "--fiscal-year-end", "06-30").exit_code == 0
    (row,) = desk.json("clients", "list", "--id", "leroy")
    assert (row["folder"], row["fiscal_year_end"], row["state"]) == ("Leroy SARL", "06-30", "added")
    for bad in (("Leroy",), ("le+roy",), ("leroy", "--fiscal-year-end", "31-12"), ("é",)):
        assert desk.here("clients", "add", *bad).exit_code == 2
    assert desk.here("clients", "remove", "leroy").exit_code == 0
    assert desk.json("clients", "list", "--id", "leroy") == []
    assert desk.here("clients", "remove", "leroy").exit_code == 1
    assert desk.here("clients", "remove", "durand").exit_code == 1  # it has a connection, and its folder


@pytest.mark.parametrize(
    ("client", "address", "application", "code", "told"),
    [
        ("durand", "x@factures-meg.fr", "sage", 2, "application inconnue : sage (meg-achats, meg)"),
        ("durand", "x@factures-meg.fr", "ventes", 2, "application inconnue : ventes"),
        ("personne", "x@factures-meg.fr", "meg", 1, "client inconnu ou ambigu : personne"),
        ("macon-dupont", "x@ailleurs.example", "meg", 2, "Adresse incorrecte : saisissez meg+nomsociete@welyb.fr"),
        ("macon-dupont", "x@achats.factures-meg.fr", "meg", 2, "Vouliez-vous dire meg+achats+x@welyb.fr ?"),
        ("macon-dupont", "meg+achats+x@welyb.fr", "meg", 2, "Adresse incorrecte"),
        ("macon-dupont", "", "meg", 2, "Adresse incorrecte"),
        (
            "macon-dupont",
            "durand@factures-meg.fr",
            "meg",
            1,
            "est déjà le collecteur de durand (--force pour partager)",
        ),
        ("durand", "durand2@factures-meg.fr", "meg", 1, "déjà connecté : connexion 1"),
    ],
)
def test_a_connection_that_cannot_be_stores_nothing(
    desk: Desk, client: str, address: str, application: str, code: int, told: str
) -> None:
    before = desk.json("connections", "list")
    assert told in connect(desk, client, address, code=code, application=application)
    assert desk.json("connections", "list") == before
    assert desk.json("explain", "meg+x@welyb.fr")[0]["reason"] == "forme"


@pytest.mark.parametrize("folder", ["../Durand", "/etc", "Achats/../../Durand", "N'existe pas"])
def test_a_folder_that_is_not_the_clients_is_refused(desk: Desk, folder: str) -> None:
    words = ("--application", "meg", "--client", "macon-dupont", "--folder", folder, "--address", "x@factures-meg.fr")
    assert desk.here("connections", "add", *words).exit_code in (1, 2)
    assert len(desk.json("connections", "list")) == 1


def test_a_raw_address_is_converted_and_echoed_and_a_collector_shared_by_force(desk: Desk) -> None:
    said = connect(desk, "macon-dupont", "Durand@Factures-MEG.fr", "--force", code=0)
    assert "meg+durand@welyb.fr" in said
    assert re.search(r"(?i)durand@factures-meg\.fr", said)
    (link,) = desk.json("connections", "list", "--client", "macon-dupont")
    number = str(link["id"])
    moved = desk.here("connections", "readdress", number, "--address", "meg+macon-dupont@welyb.fr")
    assert (moved.exit_code, "macon-dupont@factures-meg.fr" in moved.stdout) == (0, True)
    again = desk.here("connections", "readdress", number, "--address", "durand@factures-meg.fr")
    assert (again.exit_code, "--force" in again.stderr) == (1, True)
    assert desk.here("connections", "readdress", number, "--address", "x@y.fr").exit_code == 2
    assert desk.here("connections", "remove", number, "--reason", "fin").exit_code == 0
    assert desk.here("connections", "show", number).exit_code == 1
