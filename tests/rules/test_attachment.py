"""Which part of a mail is a document, which is set aside, which refuses the mail: facts in, verdict out."""

from dataclasses import replace
from typing import Any

import pytest

from rules import media
from rules.attachment import Archive, Content, Document, Leaf, Refuse, Skip, Verdict, is_text_of_message, judge
from rules.replies import _DOCUMENT, HISTORY
from rules.ruleset import KINDS, Pattern, Rule

RULE = Rule("meg", Pattern("meg+", "name", ""), Pattern("", "name", "@factures-meg.fr"))
BARE = Leaf(path="1", type="text/plain", disposition="", name=None, content_id="", related=False, report=False, depth=0)
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def content(kind: str, **facts: Any) -> Content:
    return Content(**{"size": 50_000, "sha256": "0" * 64, "type": kind, **facts})


def leaf(kind: str, name: str | None = None, **facts: Any) -> Leaf:
    return replace(BARE, type=kind, name=name, **facts)


def said(verdict: Verdict) -> str:
    """ "document", "skip", or the code of the reason."""
    match verdict:
        case Document():
            return "document"
        case Skip(None):
            return "text"
        case Skip(reason):
            return reason.code
        case Refuse(reason):
            return f"refuse {reason.code}"


PDF, PNG, TEXT = content("application/pdf"), content("image/png", size=900), content("text/plain", size=120)
ZIP = content("application/zip", archive=Archive.ZIP)

LEAVES: list[tuple[str, Leaf, Content, str]] = [
    # what stands in the mail, what its bytes are, what becomes of it
    ("plain body", leaf("text/plain"), TEXT, "text"),
    ("HTML body", leaf("text/html"), content("text/html"), "text"),
    ("inline HTML body", leaf("text/html", disposition="inline"), content("text/html"), "text"),
    ("empty body", leaf("text/plain"), content("application/x-empty", size=0), "text"),
    ("a body too big for a document", leaf("text/plain"), content("text/plain", size=11_000_000), "text"),
    ("a body that libmagic takes for a script", leaf("text/plain"), content("text/x-shellscript"), "text"),
    ("a body that libmagic takes for JSON", leaf("text/plain"), content("application/json"), "text"),
    ("an AMP body", leaf("text/x-amp-html"), content("text/html"), "text"),
    ("a text with a name", leaf("text/plain", "releve.csv"), TEXT, "document"),
    ("a text that is attached", leaf("text/plain", disposition="attachment"), TEXT, "document"),
    ("an HTML page with a name", leaf("text/html", "facture.html"), content("text/html"), "refuse html"),
    ("an HTML page named .pdf", leaf("application/pdf", "facture.pdf"), content("text/html"), "refuse html"),
    ("a PDF without type or name", leaf("text/plain"), PDF, "document"),
    ("a picture without type or name", leaf("text/plain"), content("image/jpeg"), "document"),
    ("a ZIP without type or name", leaf("text/plain"), ZIP, "refuse zip"),
    ("a PDF as octet-stream", leaf("application/octet-stream", "x.bin"), PDF, "document"),
    ("an inline PDF", leaf("application/pdf", disposition="inline"), PDF, "document"),
    ("a PDF in multipart/related", leaf("application/pdf", related=True, content_id="a@b"), PDF, "document"),
    ("a small PDF labelled as a picture", leaf("image/png", content_id="a@b"), replace(PDF, size=900), "document"),
    ("a PDF labelled as a signature", leaf("application/pkcs7-signature", "smime.p7s"), PDF, "document"),
    ("a PDF labelled as a calendar", leaf("text/calendar", "a.ics"), PDF, "document"),
    ("a PDF labelled as S/MIME", leaf("application/pkcs7-mime", "smime.p7m"), PDF, "document"),
    ("a PDF named winmail.dat", leaf("application/octet-stream", "winmail.dat"), PDF, "document"),
    ("an office file labelled as a vcard", leaf("text/vcard"), content(DOCX, archive=Archive.OFFICE), "document"),
    ("a ZIP labelled as a signature", leaf("application/pgp-signature", "a.asc"), ZIP, "refuse zip"),
    ("a ZIP labelled as a calendar", leaf("text/calendar", "a.ics"), ZIP, "refuse zip"),
    ("a ZIP in a report", leaf("application/zip", report=True), ZIP, "refuse zip"),
    ("a program labelled as a vcard", leaf("text/x-vcard"), content("application/x-dosexec"), "refuse executable"),
    ("the text of a report", leaf("text/plain", "details.txt", report=True), TEXT, "skip-report"),
    ("a PDF in a report", leaf("application/pdf", "facture.pdf", report=True), PDF, "skip-report"),
    ("a workbook in a report", leaf(DOCX, report=True), content(DOCX, archive=Archive.OFFICE), "skip-report"),
    ("a delivery status", leaf("message/delivery-status"), TEXT, "skip-report"),
    ("returned headers", leaf("text/rfc822-headers"), TEXT, "skip-report"),
    ("an S/MIME signature", leaf("application/pkcs7-signature"), content("application/octet-stream"), "skip-signature"),
    ("smime.p7s", leaf("application/octet-stream", "smime.p7s"), content("application/octet-stream"), "skip-signature"),
    ("x-pkcs7", leaf("application/x-pkcs7-signature"), content("application/octet-stream"), "skip-signature"),
    ("a PGP signature", leaf("application/pgp-signature", "signature.asc"), TEXT, "skip-signature"),
    ("PGP by its bytes", leaf("text/plain", "a.asc"), content("application/pgp-signature"), "skip-signature"),
    ("a PGP key", leaf("application/pgp-keys", "0x123.asc"), content("application/pgp-keys"), "skip-signature"),
    ("an invitation", leaf("text/calendar"), content("text/calendar"), "skip-calendar"),
    ("an attached invitation", leaf("application/ics", "invite.ics"), content("text/calendar"), "skip-calendar"),
    ("an .ics", leaf("application/octet-stream", "a.ICS"), content("text/plain"), "skip-calendar"),
    ("a card", leaf("text/x-vcard", "jean.vcf"), content("text/vcard"), "skip-vcard"),
    ("a .vcf", leaf("application/octet-stream", "jean.vcf"), content("text/vcard"), "skip-vcard"),
    ("winmail.dat", leaf("application/ms-tnef", "winmail.dat"), content("application/vnd.ms-tnef"), "refuse tnef"),
    ("TNEF by its bytes", leaf("application/octet-stream", "a"), content("application/vnd.ms-tnef"), "refuse tnef"),
    ("opaque S/MIME", leaf("application/pkcs7-mime"), content("application/octet-stream"), "refuse opaque"),
    ("opaque x-S/MIME", leaf("application/x-pkcs7-mime"), content("application/octet-stream"), "refuse opaque"),
    ("smime.p7m", leaf("application/octet-stream", "smime.p7m"), content("application/octet-stream"), "refuse opaque"),
    ("the label of PGP/MIME", leaf("application/pgp-encrypted"), TEXT, "refuse opaque"),
    ("its body", leaf("application/octet-stream", "a.asc"), content("application/pgp-encrypted"), "refuse opaque"),
    ("nested too deeply", leaf("message/rfc822", defects=("nested",)), content("message/rfc822"), "refuse nested"),
    ("a PDF nested too deeply", leaf("application/pdf", defects=("nested",)), PDF, "refuse nested"),
    ("a truncated PDF", leaf("application/pdf", defects=("truncated",)), PDF, "refuse truncated"),
    ("a truncated ZIP", leaf("application/zip", defects=("truncated",)), ZIP, "refuse zip"),
    ("a logo", leaf("image/png", "image001.png", related=True, content_id="a@b"), PNG, "skip-image"),
    ("a logo outside multipart/related", leaf("image/png", content_id="shown@b"), PNG, "skip-image"),
    ("a logo with a false label", leaf("application/pdf", content_id="shown@b"), PNG, "skip-image"),
    ("a picture nobody shows", leaf("image/png", content_id="other@b"), PNG, "document"),
    ("a picture without Content-ID", leaf("image/png", "image001.png", related=True), PNG, "document"),
    ("Facture-LOGOtype", leaf("image/png", "Facture-LOGOtype.png"), PNG, "document"),
    ("a small scan", leaf("image/png", content_id="shown@b"), replace(PNG, size=20_000), "skip-image"),
    ("a scan", leaf("image/png", content_id="shown@b"), replace(PNG, size=20_001), "document"),
    ("a scan in related", leaf("image/png", related=True, content_id="a@b"), replace(PNG, size=20_001), "document"),
    ("a picture with a ZIP behind it", leaf("image/png", content_id="shown@b"), replace(PNG, archive=Archive.DISGUISED),
     "refuse zip-disguised"),
    ("an empty picture", leaf("image/png", content_id="a@b"), content("application/x-empty", size=0), "refuse empty"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "facts", "verdict"), [row[1:] for row in LEAVES], ids=[row[0] for row in LEAVES])
def test_parts_of_a_mail(part: Leaf, facts: Content, verdict: str) -> None:
    assert said(judge(facts, RULE, leaf=part, cids=frozenset({"shown@b"}))) == verdict


CONTENTS: list[tuple[Content, str]] = [
    (PDF, "document"),
    (content("application/pdf", size=10_000_000), "document"),
    (content("application/pdf", size=10_000_001), "refuse too-big"),
    (ZIP, "refuse zip"),
    (replace(ZIP, size=11_000_000), "refuse zip"),
    (content("application/zip", archive=Archive.DAMAGED), "refuse zip-damaged"),
    (content("application/pdf", archive=Archive.DISGUISED), "refuse zip-disguised"),
    (content("application/x-dosexec", archive=Archive.DISGUISED), "refuse zip-disguised"),
    (content(DOCX, archive=Archive.HOSTILE), "refuse office-hostile"),
    (content(DOCX, archive=Archive.OFFICE), "document"),
    (content("application/msword"), "document"),
    (content("application/x-ole-storage"), "document"),
    (content("application/octet-stream"), "document"),
    (content("application/xml"), "document"),
    (content("application/xml", entities=True), "refuse entities"),
    (content("image/svg+xml"), "document"),
    (content("text/html"), "refuse html"),
    (content("application/x-empty", size=0), "refuse empty"),
    (content("text/x-shellscript"), "refuse executable"),
    (content("text/calendar"), "document"),  # deposited in a folder: somebody put it there
    *((content(kind), "refuse archive") for kind in sorted(media.ARCHIVES)),
    *((content(kind), "refuse executable") for kind in sorted(media.EXECUTABLES)),
]


@pytest.mark.parametrize(("facts", "verdict"), CONTENTS, ids=[f"{c.type} {c.archive.value}" for c, _ in CONTENTS])
def test_deposited_files(facts: Content, verdict: str) -> None:
    assert said(judge(facts, RULE)) == verdict


@pytest.mark.parametrize(("facts", "verdict"), CONTENTS, ids=[f"{c.type} {c.archive.value}" for c, _ in CONTENTS])
def test_an_attached_file_is_judged_as_a_deposited_one(facts: Content, verdict: str) -> None:
    if facts.type != "text/calendar":
        assert said(judge(facts, RULE, leaf=leaf("application/octet-stream", "piece.bin"))) == verdict


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("zip", ZIP),
        ("zip", content("application/pdf", archive=Archive.DISGUISED)),
        ("zip", content("application/zip", archive=Archive.DAMAGED)),
        ("zip", content(DOCX, archive=Archive.HOSTILE)),
        ("archive", content("application/x-7z-compressed")),
        ("executable", content("application/x-dosexec")),
        ("html", content("text/html")),
        ("empty", content("application/x-empty", size=0)),
    ],
)
def test_a_rule_that_does_not_refuse_a_kind_takes_it(kind: str, facts: Content) -> None:
    assert isinstance(judge(facts, RULE), Refuse)
    assert judge(facts, replace(RULE, refuse=frozenset(KINDS) - {kind})) == Document()


def test_the_allow_list() -> None:
    only = replace(RULE, accept=frozenset({"application/pdf", "text/xml"}))
    assert judge(PDF, only) == Document()
    assert judge(content("application/xml"), only) == Document()
    assert said(judge(content("image/png"), only)) == "refuse type"
    assert said(judge(content("image/png", size=11_000_000), only)) == "refuse type"  # type before size
    assert said(judge(ZIP, only)) == "refuse zip"
    allowed = replace(RULE, accept=frozenset({"application/zip"}))
    assert said(judge(ZIP, allowed)) == "refuse zip"  # an allow-list takes nothing off the refusals


def test_flags() -> None:
    assert judge(replace(PDF, encrypted=True), RULE) == Document(("encrypted",))
    mended = leaf("application/pdf", "a.pdf", defects=("bad-base64",))
    assert judge(PDF, RULE, leaf=mended) == Document(("recovered",))
    assert judge(replace(PDF, encrypted=True), RULE, leaf=mended) == Document(("encrypted", "recovered"))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (content("application/pdf", size=11_000_000), {"size": 11_000_000, "limit": 10_000_000}),
        (content("application/x-7z-compressed"), {"type": "7z"}),
        (content("application/pdf", archive=Archive.DISGUISED), {"type": "PDF"}),
        (content("image/webp", archive=Archive.DISGUISED), {"type": "image/webp"}),
        (content("text/html"), {"type": "text/html"}),
        (ZIP, None),
    ],
)
def test_the_facts_of_a_refusal(facts: Content, expected: dict[str, str | int] | None) -> None:
    verdict = judge(facts, RULE)
    assert isinstance(verdict, Refuse) and verdict.reason.facts == expected


def test_every_reason_given_has_its_words() -> None:
    verdicts = [judge(facts, RULE, leaf=part, cids=frozenset({"shown@b"})) for _, part, facts, _ in LEAVES]
    verdicts += [judge(facts, RULE) for facts, _ in CONTENTS]
    for verdict in verdicts:
        if isinstance(verdict, Refuse):
            assert verdict.reason.code in _DOCUMENT and verdict.reason.code in HISTORY
        elif isinstance(verdict, Skip) and verdict.reason:
            assert verdict.reason.code in HISTORY


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        (leaf("text/plain"), True),
        (leaf("text/html", disposition="inline"), True),
        (leaf("text/html", content_id="body@x", related=True), True),
        (leaf("text/plain", ""), True),
        (leaf("text/plain", "note.txt"), False),
        (leaf("text/html", disposition="attachment"), False),
        (leaf("application/pdf"), False),
        (leaf("text/csv"), False),
    ],
)
def test_text_of_the_message(part: Leaf, answer: bool) -> None:
    assert is_text_of_message(part) is answer
