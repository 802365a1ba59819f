"""The tables, as migrations. A released migration is never edited: a change is a new function below the last, which
sets the user_version that relay.store.database.SCHEMA names.

Every index of a mail's tables is written with the mail. Those in order of age cost next to nothing; those in random order
(a Message-ID, a hash, a token) each write another page of a long history for every mail: hence as few as the questions
asked of them allow, and as narrow.

Times are UTC text in one form (relay.clock.stamp), which sorts; booleans are 0 or 1; reasons, spans and details JSON.
"""

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from rules.lifecycle import State

migrations = Migrations("welyb-relay")

_STATES = ", ".join(f"'{state}'" for state in State)


@migrations()
def first(db: Database) -> None:
    for statement in _FIRST.split(";\n"):
        if statement.strip():
            db.execute(statement)
    db.execute("PRAGMA user_version = 1")


_FIRST = f"""
CREATE TABLE message (
    id TEXT PRIMARY KEY,
    received_at TEXT NOT NULL,
    message_id TEXT NOT NULL,          -- as in the header, '' without one
    content_hash TEXT NOT NULL,        -- of all below the leading trace fields
    size INTEGER NOT NULL,             -- bytes
    peer TEXT NOT NULL,
    helo TEXT NOT NULL,
    protocol TEXT NOT NULL,            -- SMTP, ESMTP, ESMTPS, ESMTPSA (RFC 3848)
    sender TEXT NOT NULL,              -- envelope, '' is the null sender
    trusted INTEGER NOT NULL,
    tls TEXT NOT NULL,
    body TEXT NOT NULL CHECK (body IN ('7bit', '8bit')),
    spool TEXT NOT NULL,
    user TEXT NOT NULL DEFAULT '',     -- who gave a password for it
    origin TEXT NOT NULL DEFAULT '',   -- the application's domain it came from, if it did
    authentication TEXT,               -- what SPF, DKIM and DMARC say of it; NULL where nobody asked
    automatic TEXT NOT NULL DEFAULT '',-- why its sender is no person for us alone: auto-submitted, list, bulk, report
    purged_at TEXT                     -- when its bytes were removed
) WITHOUT ROWID;
CREATE INDEX message_by_message_id ON message (message_id);
CREATE INDEX message_by_sender ON message (sender);
CREATE INDEX message_by_spool ON message (spool) WHERE purged_at IS NULL;
CREATE INDEX message_kept ON message (received_at) WHERE purged_at IS NULL;
CREATE TABLE recipient (
    message TEXT NOT NULL REFERENCES message,
    address TEXT NOT NULL,             -- in its one spelling
    typed TEXT NOT NULL,
    route TEXT NOT NULL,               -- relay, file, postmaster, bounce; forwarding: kept, and delivered nowhere
    rule TEXT NOT NULL,
    PRIMARY KEY (message, address)
) WITHOUT ROWID;
CREATE INDEX recipient_of_bounces ON recipient (message) WHERE route = 'bounce';
CREATE INDEX recipient_of_forwardings ON recipient (message) WHERE route = 'forwarding';
CREATE TABLE document (
    id TEXT PRIMARY KEY,
    message TEXT REFERENCES message,
    connection INTEGER REFERENCES connection,
    sha256 TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    size INTEGER NOT NULL,
    spans TEXT NOT NULL,               -- where it lies in the message: [[offset, length, encoding], …]
    path TEXT NOT NULL DEFAULT '',     -- where it lies in the GED
    flags TEXT NOT NULL DEFAULT '',
    skipped TEXT,                      -- the reason why it is not a document
    origin TEXT NOT NULL DEFAULT '',
    deposited_at TEXT NOT NULL
) WITHOUT ROWID;
-- What has a delivery is found by its hash in delivery_document_twins; a bounce brings what has none.
CREATE INDEX document_by_hash ON document (sha256) WHERE skipped IS NOT NULL;
CREATE INDEX document_by_origin ON document (sha256, origin) WHERE origin <> '';
CREATE INDEX document_by_name ON document (name);
CREATE INDEX document_by_path ON document (path) WHERE path <> '';
CREATE INDEX document_by_message ON document (message) WHERE message IS NOT NULL;
CREATE INDEX document_skipped ON document (id) WHERE skipped IS NOT NULL;
CREATE TABLE delivery (
    id TEXT PRIMARY KEY,
    message TEXT REFERENCES message,   -- NULL for a deposit
    kind TEXT NOT NULL CHECK (kind IN ('send', 'file')),
    route TEXT NOT NULL,               -- the rule's name; postmaster, dsn or warning for what is not under a rule
    client TEXT NOT NULL DEFAULT '',
    connection INTEGER REFERENCES connection,
    recipient TEXT NOT NULL DEFAULT '',-- the address it came by
    target TEXT NOT NULL,              -- the collector, or the folder once filed
    domain TEXT NOT NULL,              -- of the target; '' for a filing
    state TEXT NOT NULL CHECK (state IN ({_STATES})),
    reason TEXT,
    created_at TEXT NOT NULL,
    due_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    held_at TEXT,                      -- the give-up clock stops while held
    finished_at TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    claim INTEGER,                     -- the run that took it last
    sender TEXT NOT NULL DEFAULT '',   -- envelope sender as it leaves
    token TEXT NOT NULL DEFAULT '',
    former_token TEXT NOT NULL DEFAULT '', -- of earlier attempts, where the token was renewed
    outbound_message_id TEXT NOT NULL DEFAULT '',
    author TEXT NOT NULL DEFAULT '',   -- From of the message of ours that a mail's documents leave in; '' = as it came
    spool TEXT NOT NULL DEFAULT '',    -- the bytes of a message of ours; a mail's are its message's
    size INTEGER NOT NULL DEFAULT 0,
    reply TEXT NOT NULL DEFAULT '',
    mx TEXT NOT NULL DEFAULT '',
    tls TEXT NOT NULL DEFAULT '',
    uncertain INTEGER NOT NULL DEFAULT 0,
    warned INTEGER NOT NULL DEFAULT 0,
    twin TEXT                          -- of a duplicate: the delivery that took the same document there
) WITHOUT ROWID;
CREATE INDEX delivery_by_twin ON delivery (twin) WHERE twin IS NOT NULL;
CREATE INDEX delivery_waiting ON delivery (kind, domain, target, due_at) WHERE state = 'waiting';
CREATE INDEX delivery_claimed ON delivery (kind, state) WHERE state IN ('sending', 'filing');
CREATE INDEX delivery_by_state ON delivery (state, id);
CREATE INDEX delivery_by_client ON delivery (client, id) WHERE client <> '';
CREATE INDEX delivery_by_target ON delivery (target, id);
CREATE INDEX delivery_by_token ON delivery (token) WHERE token <> '';
CREATE INDEX delivery_by_former_token ON delivery (former_token) WHERE former_token <> '';
CREATE INDEX delivery_by_message ON delivery (message) WHERE message IS NOT NULL;
CREATE INDEX delivery_by_spool ON delivery (spool) WHERE spool <> '';
CREATE INDEX delivery_of_dsn ON delivery (created_at) WHERE route = 'dsn';
CREATE INDEX delivery_kept ON delivery (created_at) WHERE spool <> '';
CREATE TABLE delivery_document (
    delivery TEXT NOT NULL REFERENCES delivery,
    document TEXT NOT NULL REFERENCES document,
    sha256 TEXT NOT NULL,              -- the document's, and the delivery's target: what makes two of them twins
    target TEXT NOT NULL,
    PRIMARY KEY (delivery, document)
) WITHOUT ROWID;
CREATE INDEX delivery_document_twins ON delivery_document (sha256, target);
CREATE INDEX delivery_of_document ON delivery_document (document);
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    event TEXT NOT NULL,
    message TEXT,
    document TEXT,
    delivery TEXT,
    detail TEXT
);
CREATE INDEX event_by_message ON event (message) WHERE message IS NOT NULL;
CREATE INDEX event_by_document ON event (document) WHERE document IS NOT NULL;
CREATE INDEX event_by_delivery ON event (delivery) WHERE delivery IS NOT NULL;
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    signed TEXT NOT NULL DEFAULT '',   -- the selectors of the keys it signs with
    eligible INTEGER NOT NULL DEFAULT 0,
    sent INTEGER NOT NULL DEFAULT 0,
    deferred INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    held INTEGER NOT NULL DEFAULT 0,
    duplicate INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE connection (
    id INTEGER PRIMARY KEY,
    application TEXT NOT NULL,         -- the rule's name
    client TEXT NOT NULL,
    folder TEXT NOT NULL,              -- below the client's folder, '' for all of it
    welyb_address TEXT NOT NULL,
    collector_address TEXT NOT NULL,
    activated_at TEXT NOT NULL,
    removed_at TEXT,
    state TEXT NOT NULL CHECK (state IN ('active', 'error', 'removed')),
    reason TEXT,
    root TEXT NOT NULL,                -- "filesystem:inode" of the connected folder at activation
    accepted INTEGER NOT NULL DEFAULT 0-- the postmaster's word that the tree is right as it is, for one scan
);
CREATE UNIQUE INDEX connection_place ON connection (application, client, folder) WHERE removed_at IS NULL;
CREATE TABLE inventory (
    connection INTEGER NOT NULL REFERENCES connection,
    folder TEXT NOT NULL,
    name TEXT NOT NULL,
    device INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    sha256 TEXT,
    role TEXT NOT NULL CHECK (role IN ('baseline', 'departed', 'empty', 'document')),
    document TEXT,                     -- what it became; its part in the story is its delivery's state
    PRIMARY KEY (connection, folder, name)
) WITHOUT ROWID;
CREATE INDEX inventory_by_inode ON inventory (connection, inode);
CREATE INDEX inventory_aside ON inventory (connection, role) WHERE role IN ('departed', 'empty');
CREATE TABLE client (
    slug TEXT PRIMARY KEY,
    folder TEXT NOT NULL,
    aliases TEXT NOT NULL DEFAULT '[]',
    fiscal_year_end TEXT NOT NULL DEFAULT '',  -- MM-DD
    identity TEXT NOT NULL DEFAULT '', -- device:inode of the folder, by which a renamed one is known again
    state TEXT NOT NULL CHECK (state IN ('listed', 'added', 'ambiguous', 'gone')),
    silent_since TEXT NOT NULL DEFAULT ''      -- the day of its last document, where its silence has been told of
) WITHOUT ROWID;
CREATE TABLE user (
    name TEXT PRIMARY KEY,
    hash TEXT NOT NULL,                -- of the password, with its salt and its cost; '' once removed
    rules TEXT NOT NULL,               -- ["meg", …] that it may use, [] for all
    created_at TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'removed'))
) WITHOUT ROWID;
CREATE TABLE refusal (
    id TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    peer TEXT NOT NULL,
    helo TEXT NOT NULL,
    sender TEXT NOT NULL,
    recipients TEXT NOT NULL,
    message_id TEXT NOT NULL,
    documents TEXT NOT NULL,           -- [{{name, sha256, size, type, reason}}, …]
    reply TEXT NOT NULL,
    authentication TEXT                -- as in message
) WITHOUT ROWID;
CREATE TABLE throttle (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('peer', 'sender_domain', 'client', 'unknown', 'passwords')),
    subject TEXT NOT NULL,             -- an address or its /64, a domain, a slug or a collector
    since TEXT NOT NULL,
    until TEXT NOT NULL,               -- when one more may come, as of the last that was held back
    count INTEGER NOT NULL,            -- recipients answered 450, passwords 454
    cleared INTEGER NOT NULL DEFAULT 0 -- by which order of the postmaster, counted in meta
);
CREATE INDEX throttle_by_subject ON throttle (kind, subject, id);
CREATE INDEX throttle_by_time ON throttle (until);
CREATE TABLE sts (
    domain TEXT PRIMARY KEY,
    id TEXT NOT NULL,                  -- of the record that announced it
    policy TEXT NOT NULL,              -- as it was fetched
    fetched_at TEXT NOT NULL,
    expires_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID
"""
