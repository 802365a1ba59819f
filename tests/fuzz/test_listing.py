"""What a listing says in SQL's JSON is what Python's JSON says, whatever stands in the store."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlite_utils import Database

from relay.store import intake, listing
from relay.store.database import open_for_writing, transaction
from relay.store.listing import Filter
from tests.support.records import COLLECTOR, mail

stored = st.text(st.characters(exclude_categories=("Cs",)))  # SQLite keeps no lone surrogate


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    db = open_for_writing(tmp_path_factory.mktemp("listing") / "relay.db")
    with transaction(db):
        intake.commit(db, mail("m1", COLLECTOR), spool="s/seg/0/1")
    yield db
    db.close()


@given(sender=stored, reply=stored, reason=stored | st.none(), attempts=st.integers(0, 2**62), uncertain=st.booleans())
@example(sender='"\\/\x00\x1f\x7f\n%s', reply="", reason=None, attempts=0, uncertain=True)
@example(sender="é\u2028\U0001f9fe", reply="%", reason='{"code": "held"}', attempts=1, uncertain=False)
def test_a_line_stands_if_and_only_if_it_is_what_python_would_write(
    db: Database, sender: str, reply: str, reason: str | None, attempts: int, uncertain: bool
) -> None:
    changes = (reply, reason, attempts, int(uncertain))
    db.conn.execute("UPDATE message SET sender = ?", (sender,))
    db.conn.execute("UPDATE delivery SET reply = ?, reason = ?, attempts = ?, uncertain = ?", changes)
    ((line, stands),) = listing.queue_as_text(db, Filter())
    record = json.loads(line)
    assert (record["sender"], record["reply"], record["reason"]) == (sender, reply, reason or "")
    assert (record["attempts"], record["uncertain"]) == (attempts, uncertain)
    assert [record] == list(listing.queue(db, Filter()))
    assert stands == (reason is None and (sender + reply).isascii() and "\x7f" not in sender + reply)
    assert not stands or line == json.dumps(record)
