"""Whatever a user's program says to AUTH, every line has exactly one well formed reply, and no mail is taken before the
right password was given to the right name.

The listener and TLS are real; the cost of a comparison is made small.
"""

import base64
import contextlib
from collections.abc import Iterator

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import passwords
from relay.smtp import session
from relay.smtp.authentication import Credentials, Exchange
from relay.store import directory, users
from relay.store.database import open_existing, transaction
from rules.replies import Reply
from tests.support.clients import Dialogue, encoded
from tests.support.door import Door, doors, issue
from tests.support.effort import examples

NAME, PASSWORD = "scanner", "un mot de passe"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    issue(trustme.CA(), folder)
    with pytest.MonkeyPatch.context() as patch, doors(folder) as open_:
        patch.setattr(session, "FAILURE_DELAY", 0.0)
        patch.setattr(passwords, "LOG2_N", 1)
        patch.setattr(passwords, "P", 1)
        patch.setattr(passwords, "_NOBODY", passwords.hashed("personne"))
        door = open_('certificate = "chain.pem"', 'key = "key.pem"', 'submission = ["127.0.0.1:0 tls"]')
        with contextlib.closing(open_existing(folder / "var/relay.db")) as db, transaction(db):
            users.put(db, users.User(NAME, passwords.hashed(PASSWORD), (), "2026-11-24T00:00:00.000Z", "active"))
            directory.touch(db)
        yield door


words = st.sampled_from(["", NAME, PASSWORD, "personne", "\0", "é", "x" * 300])
plain = st.lists(words, max_size=4).map(lambda parts: encoded("\0".join(parts)))
answers = (
    st.sampled_from(["*", "=", "", "!", "Zm9", "QUIT", "NOOP", encoded(NAME), encoded(PASSWORD)])
    | plain
    | words.map(encoded)
    | st.binary(max_size=30).map(lambda data: base64.b64encode(data).decode())
)
right = st.sampled_from([f"AUTH PLAIN {encoded(f'{chr(0)}{NAME}{chr(0)}{PASSWORD}')}"])
begins = st.tuples(st.sampled_from(["AUTH PLAIN", "AUTH LOGIN", "auth plain", "AUTH X", "AUTH"]), answers)
auths = begins.map(" ".join) | st.sampled_from(["AUTH PLAIN", "AUTH LOGIN", "AUTH  PLAIN ", "AUTH"])
mails = st.sampled_from(
    ["EHLO x", "HELO x", "MAIL FROM:<a@b.fr>", "MAIL FROM:<a@b.fr> AUTH=<>", "RSET", "NOOP", "STARTTLS"]
)


def given_(name: str, password: str) -> bool:
    return (name.lower(), password) == (NAME, PASSWORD)


@given(st.lists(auths | answers | mails | right, max_size=10))
@settings(max_examples=examples(60))
def test_every_line_has_one_reply_and_mail_is_for_whoever_gave_the_password(door: Door, lines: list[str]) -> None:
    known = False
    exchange: Exchange | None = None  # what the line should mean, told by a second one
    with Dialogue(door.ports[1], authority=door.folder / "authority.pem") as dialogue:
        dialogue.hello()
        for line in lines:
            reply = dialogue.say(line)
            assert 200 <= reply.code < 600
            said: Reply | Credentials | None = None
            if exchange is not None:
                said = exchange.hear(line.encode())
            elif line.upper().startswith("AUTH") and reply.code != 503:
                exchange = Exchange()
                said = exchange.begin(line[5:].encode())
            if isinstance(said, Credentials):
                assert reply.code in ((235,) if given_(said.name, said.password) else (535, 421)), line
                known |= reply.code == 235
            elif said is not None:
                assert reply.code in (said.code, 421), line
            if said is not None and not exchange.goes_on(said):  # type: ignore[union-attr]
                exchange = None
            if said is None and line.startswith("MAIL"):
                assert known or reply.code in (503, 530)
            if reply.code in (221, 421):
                break


@given(st.lists(st.binary(max_size=60) | answers.map(str.encode), min_size=1, max_size=4))
def test_the_words_of_auth_raise_nothing(lines: list[bytes]) -> None:
    for mechanism in (b"PLAIN ", b"LOGIN ", b""):
        exchange = Exchange()
        said = exchange.begin(mechanism + lines[0])
        for line in lines[1:]:
            if exchange.goes_on(said):
                said = exchange.hear(line)
        assert isinstance(said, Reply | Credentials)


@given(st.text(max_size=300))
def test_a_password_has_one_spelling_or_is_none(text: str) -> None:
    spelled = passwords.prepared(text)
    assert spelled is None or passwords.prepared(spelled) == spelled
    assert spelled is None or spelled.encode()
