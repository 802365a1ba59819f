"""What is judged without libmagic is what libmagic, which is the authority, would have made of it."""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay import examine as examining
from rules import media
from tests.support import documents as d
from tests.support.effort import examples

PDF, JPEG, EXIF = b"%PDF-1.7\n", b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"\xff\xd8\xff\xe1\x12\x34Exif\0\0"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# What libmagic looks for behind the beginning of a file, most of it in the name of archives and programs.
MARKS = [
    *((252, b"Must have DOS version"), (369, b"MICROSOFT PIFEX\0"), (60, b"W Collis\0\0"), (7, b"**ACE**")),
    *((257, b"ustar\x0000"), (257, b"ustar  \0"), (37633, b"CD001"), (32769, b"CD001"), (20, b"\xdc\xa7\xc4\xfd")),
    *((56, b"USE LYNX TO DISSOLVE THIS FILE"), (79, b"Tue Jan 22 14:32:44 MET 1991"), (1024, b"BD"), (18, b"\xcd!")),
    *((14, b"MIT-MAGIC-COOKIE-1"), (18, b"MIT-MAGIC-COOKIE-1"), (11, b"MIT-MAGIC-COOKIE-1"), (4, b"__.SYMDEF")),
    *((30, b"Copyright 1989-1990 PKWARE Inc."), (2, b"-lh5-"), (10, b"# This is a shell archive"), (8, b"WEBP")),
    *(
        (16, b"PK\3\4"),
        (9, b"\x1f\x8b\x08"),
        (12, b"MZ"),
        (40, b"#!/bin/sh\n"),
        (9, b'"use strict"\n'),
        (9, b"1,2\n" * 20),
    ),
]
fillings = st.sampled_from([b"", bytes(40_000), b" " * 40_000, b"a,b,c\n" * 500]) | st.binary(max_size=1000)


def _with(data: bytes, at: int, mark: bytes) -> bytes:
    return data[:at].ljust(at, b"\0") + mark + data[at + len(mark) :]


def _as_tar(data: bytes) -> bytes:
    """The same with the checksum of a tar's first header where it should be."""
    data = _with(data.ljust(512, b"\0"), 148, b" " * 8)
    return _with(data, 148, b"%06o\0 " % sum(data[:512]))


@given(
    st.sampled_from([PDF, b"%PDF-1.4,x\r", JPEG, EXIF, PNG]),
    fillings,
    st.lists(
        st.sampled_from(MARKS) | st.tuples(st.integers(9, 600), st.sampled_from([m for _, m in MARKS])), max_size=3
    ),
    st.booleans(),
)
@example(PDF, b"", [], True)
@example(JPEG, bytes(600), [], True)
@example(PNG, b"", [(252, b"Must have DOS version")], False)
@settings(max_examples=examples(400), suppress_health_check=[HealthCheck.too_slow])
def test_a_type_known_by_its_beginning_is_the_one_libmagic_says(
    beginning: bytes, filling: bytes, marks: list[tuple[int, bytes]], tar: bool
) -> None:
    data = beginning + filling
    for at, mark in marks:
        data = _with(data, at, mark)
    data = beginning + data[len(beginning) :]
    head = (_as_tar(data) if tar else data)[: examining.HEAD]
    known, said = examining._unmistakable(head), examining._libmagic(head)
    if known == "application/pdf":  # whatever else libmagic says, the header makes it a PDF
        assert said not in media.ARCHIVES and said not in media.EXECUTABLES
    elif known is not None:
        assert known == said


def test_ordinary_documents_are_known_by_their_beginning() -> None:
    for data in (d.pdf(), d.factur_x(), d.encrypted_pdf(), d.jpeg(20_000), d.png(), EXIF + bytes(100)):
        assert examining._unmistakable(data) == examining._libmagic(data)
    for data in (d.text(), d.gif(), d.tar_gz(), d.plain_zip(), b"%PDF-", b"", PNG[:12]):
        assert examining._unmistakable(data) is None


shards = st.sampled_from(
    [
        *(
            b"<",
            b">",
            b"<Invoice>",
            b"<html>",
            b"</a>",
            b"<?xml version='1.0'?>",
            b"%PDF",
            b"PDF-1.7",
            b"%FDF-1.2",
            b"\n",
        ),
        *(b"#!/bin/sh\n", b"\0", b"%\0P\0D\0F\0", b"\xff\xfe", b"\xfe\xff", b"@echo off\r\n", b"MZ", b"endobj", b"PK"),
    ]
)


@given(st.sampled_from([b"<", b"\xef\xbb\xbf<", b"\xff\xfe<\0", b""]), st.lists(shards, max_size=12).map(b"".join))
@settings(max_examples=examples(300))
def test_what_never_speaks_of_pdf_is_no_pdf_to_libmagic(beginning: bytes, rest: bytes) -> None:
    head = beginning + rest
    if not examining._speaks_of_pdf(head):
        assert examining._libmagic(head or b" ") != "application/pdf"
