"""Whatever a domain publishes or its web server says, MTA-STS is a policy within its bounds, or none."""

from hypothesis import example, given
from hypothesis import strategies as st

from relay.mtasts import MAX_POLICY, Unfetched, _text
from rules.sts import MOST_AGE, Mode, allows, announced, parse

LINES = st.lists(
    st.one_of(
        st.sampled_from(
            ["version: STSv1", "mode: enforce", "mode: none", "max_age: 86400", "mx: *.meg.test", "mx:", ""]
        ),
        st.text(max_size=40),
    ),
    max_size=12,
)
HEADS = st.lists(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 100 Continue\r\n",
            b"Content-Type: text/plain\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: -1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n",
            b"5\r\nhello\r\n",
            b"version: STSv1\nmode: none\nmax_age: 1\n",
        ]
    ),
    max_size=8,
)


@given(st.lists(st.one_of(st.binary(max_size=60), st.just(b"v=STSv1; id=1;")), max_size=3))
def test_an_id_is_one(texts: list[bytes]) -> None:
    id_ = announced(texts)
    assert id_ is None or (id_.isascii() and id_.isalnum() and len(id_) <= 32)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.text(max_size=30))
@example(["version: STSv1", "mode: enforce", "max_age: 99999999999", "mx: *.meg.test"], "\n", "mx.meg.test")
@example(["version: STSv1", "mode: enforce", "max_age: ٣", "mx: *.meg.test"], "\n", "mx.meg.test")
def test_a_policy_is_within_its_bounds(lines: list[str], end: str, host: str) -> None:
    policy = parse(end.join(lines))
    if policy is not None:
        assert 0 <= policy.max_age <= MOST_AGE
        assert policy.mx or policy.mode is Mode.NONE
        assert not allows(policy, host) or host.lower().rstrip(".").endswith(tuple(mx.lstrip("*") for mx in policy.mx))


@given(st.one_of(st.binary(max_size=300), HEADS.map(b"".join)))
def test_an_answer_is_a_text_or_says_why_not(answer: bytes) -> None:
    found = _text(answer)
    assert isinstance(found, Unfetched) or len(found) <= MAX_POLICY
