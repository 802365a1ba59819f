"""What people read: the replies as they go on the wire, and the sentences of the history."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules import replies
from rules.replies import HISTORY, MAX_FILES, MAX_LINE, Reason, Reply, history, refused_documents, to_ascii

FIXED = [value for value in vars(replies).values() if isinstance(value, Reply)]
REFUSALS = sorted(replies._DOCUMENT)
NUMBERS = {"size": 11_000_000, "limit": 10_000_000}


def facts_of(template: str) -> dict[str, str | int]:
    """Facts for every field of a sentence: numbers for what is derived from a size, a word for the rest."""
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field}
    names = {field.partition("_")[0] if field.startswith(("size", "limit")) else field for field in fields}
    return {name: NUMBERS.get(name, "mot") for name in names}


def lines_of(reply: Reply) -> list[bytes]:
    wire = reply.render()
    assert wire.endswith(b"\r\n")
    return wire.split(b"\r\n")[:-1]


# --- on the wire ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", FIXED, ids=lambda reply: reply.text())
def test_a_fixed_reply_is_one_ascii_line_in_french_with_an_english_tail(reply: Reply) -> None:
    (line,) = lines_of(reply)
    assert line.isascii() and line.decode().isprintable() and len(line) + 2 <= MAX_LINE
    assert line.startswith(b"%d %s " % (reply.code, reply.enhanced.encode()))
    assert reply.enhanced[0] == str(reply.code)[0]  # RFC 3463 §2: the classes agree
    assert line.endswith(b")") and b" (" in line


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        (replies.UNREADABLE, b"501 5.1.3 Adresse illisible (bad address syntax)\r\n"),
        (replies.MALFORMED, b"553 5.1.3 Adresse de collecte mal formee (malformed address)\r\n"),
        (replies.UNKNOWN, b"550 5.1.1 Adresse de collecte inconnue (unknown address)\r\n"),
        (replies.NOT_ALLOWED, b"550 5.7.1 Envoi non autorise vers cette adresse (not permitted)\r\n"),
        (replies.NO_DOCUMENT, b"554 5.6.0 Aucun document joint (no document attached)\r\n"),
        (replies.BARE_NEWLINE, b"550 5.5.2 Fin de ligne incorrecte (bare CR or LF)\r\n"),
        (replies.TROUBLE, b"451 4.3.0 Incident temporaire (temporary failure)\r\n"),
        (
            refused_documents([("releve.zip", Reason("zip"))]),
            b"554 5.6.1 releve.zip : archive ZIP non prise en charge, joignez les documents separement (ZIP refused)"
            b"\r\n",
        ),
        (
            refused_documents([("scan.pdf", Reason("too-big", {"size": 11_000_000, "limit": 10_000_000}))]),
            b"552 5.3.4 scan.pdf : document trop volumineux, 11,0 Mo, limite 10 Mo (over 10 MB)\r\n",
        ),
    ],
    ids=lambda value: value.text() if isinstance(value, Reply) else "",
)
def test_the_texts_of_the_contract(reply: Reply, wire: bytes) -> None:
    assert reply.render() == wire


def test_the_250_ends_with_our_id() -> None:
    assert replies.accepted("m-0231").render() == b"250 2.0.0 Message accepte (accepted) m-0231\r\n"


# --- refused documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", REFUSALS)
def test_every_refusal_has_its_words_in_both_tables_and_its_facts_in_them(code: str) -> None:
    facts = facts_of(replies._DOCUMENT[code][3])
    (line,) = lines_of(refused_documents([("facture.pdf", Reason(code, facts))]))
    assert b"?" not in line and b"{" not in line and line.endswith(b")")
    assert set(facts_of(HISTORY[code][0])) == set(facts)  # one set of facts serves the reply and the history


@given(st.lists(st.tuples(st.text(max_size=300), st.sampled_from(REFUSALS)), min_size=1, max_size=30))
def test_whatever_the_names_lines_are_short_ascii_and_at_most_eleven(refused: list[tuple[str, str]]) -> None:
    found = [(name, Reason(code, facts_of(replies._DOCUMENT[code][3]))) for name, code in refused]
    lines = lines_of(refused_documents(found))
    assert len(lines) == min(len(refused), MAX_FILES) + (len(refused) > MAX_FILES)
    code = lines[0][:3]
    for line in lines:
        assert len(line) + 2 <= MAX_LINE and line.isascii() and line.decode().isprintable()
        assert line[:3] == code and line[3:4] == (b" " if line is lines[-1] else b"-")


def test_ten_files_then_a_count() -> None:
    lines = lines_of(refused_documents([(f"{n:02}.zip", Reason("zip")) for n in range(12)]))
    assert [line[10:16] for line in lines[:10]] == [b"%02d.zip" % n for n in range(10)]
    assert lines[10] == b"554 5.6.1 et 2 autres fichiers (and 2 more)"
    eleven = refused_documents([(f"{n:02}.zip", Reason("zip")) for n in range(11)])
    assert lines_of(eleven)[10] == b"554 5.6.1 et 1 autre fichier (and 1 more)"


def test_type_before_size_and_the_code_is_that_of_the_first_line() -> None:
    big = Reason("too-big", {"size": 11_000_000, "limit": 10_000_000})
    first, second = lines_of(refused_documents([("scan.pdf", big), ("releve.zip", Reason("zip"))]))
    assert first.startswith(b"554-5.6.1 releve.zip : archive ZIP")
    assert second.startswith(b"554 5.6.1 scan.pdf : document trop volumineux, 11,0 Mo")


def test_a_file_without_a_name_is_still_named() -> None:
    assert refused_documents([("", Reason("zip"))]).lines[0].startswith("(sans nom) : ")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Reçu d'août – n°3.pdf", "Recu d'aout - n?3.pdf"),
        ("cœur ‘à’ 12 €.zip", "coeur 'a' 12 EUR.zip"),
        ("fact\u202efdp.exe", "fact?fdp.exe"),
        ("a\r\n550 forged.zip", "a??550 forged.zip"),
        ("facture\u0301.pdf", "facture.pdf"),
        ("请求.pdf", "??.pdf"),
    ],
)
def test_names_are_transliterated(name: str, shown: str) -> None:
    assert to_ascii(name) == shown


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limit", "shown"),
    [
        (11_000_000, 10_000_000, "11,0 Mo, limite 10 Mo (over 10 MB)"),
        (10_000_001, 10_000_000, "10,000001 Mo, limite 10 Mo (over 10 MB)"),
        (10_049_999, 10_000_000, "10,049999 Mo, limite 10 Mo (over 10 MB)"),
        (10_060_000, 10_000_000, "10,1 Mo, limite 10 Mo (over 10 MB)"),
        (20_000_001, 20_000_000, "20,000001 Mo, limite 20 Mo (over 20 MB)"),
        (10_485_761, 10_485_760, "10,5 Mo, limite 10,48576 Mo (over 10.48576 MB)"),
        (600_000, 500_000, "0,6 Mo, limite 0,5 Mo (over 0.5 MB)"),
    ],
)
def test_a_size_is_never_rounded_to_the_wrong_side_of_its_limit(size: int, limit: int, shown: str) -> None:
    reply = refused_documents([("a.pdf", Reason("too-big", {"size": size, "limit": limit}))])
    assert reply.lines[0].endswith(shown)


@given(st.integers(1, 60_000_000), st.integers(1, 60_000_000))
def test_what_is_over_its_limit_reads_so(size: int, excess: int) -> None:
    reason = Reason("too-big", {"size": size + excess, "limit": size})
    words = history(reason, "en").replace("(", "").split()
    assert float(words[4]) > float(words[7])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Win.Test.EICAR_HDB-1", "Win.Test.EICAR_HDB-1"),
        ("Essai.Welyb.UNOFFICIAL", "Essai.Welyb.UNOFFICIAL"),
        ("x\r\n250 2.0.0 ok (y)\x1b[31m", "x2502.0.0oky31m"),
        ("é" * 200, "e" * 60),
        ("\u202e", "?"),
        ("", "?"),
    ],
)
def test_the_name_of_a_virus_is_one_clean_word(name: str, told: str) -> None:
    line = f"554 5.7.1 Message refuse : virus detecte, {told} (virus found)".encode()
    assert lines_of(replies.infected(name)) == [line]


# --- the history ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(HISTORY))
@pytest.mark.parametrize("language", ["fr", "en"])
def test_every_reason_reads_whole_with_its_facts(code: str, language: str) -> None:
    template = HISTORY[code][language == "en"]
    sentence = history(Reason(code, facts_of(template)), language)
    assert sentence and not set("?{}") & set(sentence)


@pytest.mark.parametrize("code", sorted(HISTORY))
def test_both_languages_tell_the_same_facts(code: str) -> None:
    french, english = HISTORY[code]
    assert set(facts_of(french)) == set(facts_of(english))


def test_the_sentences_of_the_contract() -> None:
    assert history(Reason("zip")) == (
        "Non pris en compte : archive ZIP. Déposez séparément les documents qu'elle contient."
    )
    size = Reason("too-big", {"size": 11_000_000, "limit": 10_000_000})
    assert history(size) == "Trop volumineux : 11\u202f000\u202f000 octets (11,0 Mo), limite 10 Mo."
    assert history(Reason("waiting", {"at": "14 h 30"})) == "En attente d'envoi, nouvel essai à 14 h 30."
    assert history(Reason("address")) == (
        "Adresse incorrecte : saisissez meg+nomsociete@welyb.fr ou meg+achats+nomsociete@welyb.fr."
    )


def test_an_old_row_without_its_facts_stays_readable() -> None:
    assert history(Reason("too-big")) == "Trop volumineux : ? octets (? Mo), limite ? Mo."
