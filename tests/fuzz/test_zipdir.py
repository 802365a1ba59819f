"""Whatever the bytes, the classifier answers with one of Archive, never raises, and reads no more than its budget.

And whatever the bytes, `examine` sees a document in them: the parsers behind it (ZIP, OLE, XML, libmagic) hold too.
"""

import io
import struct
import time
import zipfile
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay import zipdir, zipkind
from relay.examine import examine_file
from rules.attachment import Archive
from tests.support import documents as d

ARCHIVES = [
    *(d.plain_zip(), d.docx(), d.xlsx(), d.ods(), d.epub(), d.pptx_with_workbook(), d.zip64(d.docx())),
    *(d.spanned_zip(), d.pdf_zip_polyglot(), d.pdfa3_with_xlsx(), d.sfx(), d.empty_zip()),
]
OTHERS = [d.old_xls(), d.encrypted_docx(), d.entity_bomb(), d.cii_xml(), d.encrypted_pdf(), d.html(), d.tar(), d.heic()]


class Counted(io.BytesIO):
    """Counts what is read from it."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def classified(data: bytes) -> tuple[Archive, int]:
    file = Counted(data)
    finding = zipkind.classify(file, head=data[:64], tail=data[-zipdir.TAIL :], size=len(data))
    return finding.archive, file.taken


@st.composite
def mutated(draw: st.DrawFn, sources: list[bytes]) -> bytes:
    """A document with a few bytes changed, numbers driven to their limits, pieces cut out, doubled or joined."""
    data = bytearray(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[at : at + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"]))
            case 2:
                del data[at : at + draw(st.integers(1, 64))]
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 200))]
            case 4:
                data[at:at] = draw(
                    st.sampled_from([b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"<", b"\0"])
                )
    return bytes(data)


@given(st.one_of(mutated(ARCHIVES), st.binary(max_size=500).map(lambda data: b"PK\3\4" + data + d.empty_zip())))
@example(b"")
@example(b"PK\5\6" * 20_000)
@settings(deadline=None)
def test_the_classifier_answers_whatever_the_bytes(data: bytes) -> None:
    archive, taken = classified(data)
    assert archive in Archive
    assert taken <= zipdir.BUDGET


@given(mutated(ARCHIVES + OTHERS))
@settings(deadline=None)
def test_examine_answers_whatever_the_bytes(data: bytes) -> None:
    content = examine_file(io.BytesIO(data))
    assert content.size == len(data)
    assert content.type.count("/") == 1


@given(st.dictionaries(st.text("abcdé/.", min_size=1, max_size=20), st.binary(max_size=300), max_size=8), st.booleans())
@settings(deadline=None)
def test_what_zipfile_writes_is_a_zip_in_front_of_which_nothing_helps(parts: dict[str, bytes], stored: bool) -> None:
    archive = d.zip_of(parts, stored=stored)
    assert zipfile.is_zipfile(io.BytesIO(archive))
    assert classified(archive)[0] is Archive.ZIP
    assert classified(d.pdf() + archive)[0] is Archive.DISGUISED
    assert classified(archive[:-1])[0] is Archive.DAMAGED


@given(
    st.dictionaries(st.text("abcdé/", min_size=1, max_size=20), st.binary(max_size=300), max_size=5),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_an_office_file_is_one_in_any_order_of_its_parts(parts: dict[str, bytes], random: Random) -> None:
    whole = {**{f"x/{name}": b"<a/>" + data for name, data in parts.items()}, **d.docx_parts()}
    names = {name.replace("\\", "/").lower() for name in whole}
    order = random.sample(sorted(whole), len(whole))
    expected = Archive.OFFICE if len(names) == len(whole) else Archive.HOSTILE
    assert classified(d.zip_of({name: whole[name] for name in order}))[0] is expected


def many_entries(count: int) -> bytes:
    """Directory entries alone, all of them of one local header."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entries = (struct.pack("<4s6H3I5H2I", b"PK\1\2", *(0,) * 6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a") * count
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entries), len(local), 0)
    return local + entries + end


def test_a_directory_without_measure_is_a_zip_and_quickly() -> None:
    started = time.process_time()
    for count in (10_001, 60_000, 200_000):
        archive, taken = classified(many_entries(count))
        assert archive is Archive.ZIP and taken <= zipdir.MAX_DIRECTORY + 1000
    assert classified(d.jpeg() + many_entries(60_000))[0] is Archive.DISGUISED
    assert time.process_time() - started < 5


def test_an_office_file_with_ten_thousand_parts_is_taken_within_the_budget() -> None:
    pictures = {f"word/media/{n}.emf": b"\1\0\0\0" * 30 for n in range(9_900)}
    archive, taken = classified(d.zip_of({**d.docx_parts(), **pictures}, stored=True))
    assert archive is Archive.OFFICE and taken <= zipdir.BUDGET


def test_members_that_unpack_beyond_the_budget_are_refused() -> None:
    inside = {
        f"ppt/embeddings/{n}.xlsx": d.zip_of({**d.xlsx_parts(), "a": bytes(11 << 20)}, stored=True) for n in range(4)
    }
    assert classified(d.zip_of({**d.pptx_parts(), **inside}))[0] is Archive.HOSTILE
