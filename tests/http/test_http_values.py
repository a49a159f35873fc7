"""Values come back byte for byte, with the type they were stored with."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.session import Session, assert_problem, path_of

MIB = 1024 * 1024
FORM = "application/x-www-form-urlencoded"


@given(value=st.binary(max_size=4096))
def test_any_bytes_come_back(session: Session, value: bytes) -> None:
    target = path_of("any-bytes")
    session.put(target, value)
    got = session.get(target)
    assert got.body == value
    assert got.headers["content-length"] == str(len(value))
    record = session.get(f"{target}?format=json").json
    if "value" in record:
        assert record["value"].encode() == value
    else:
        assert base64.b64decode(record["value_b64"]) == value
        with pytest.raises(UnicodeDecodeError):
            value.decode()


@given(text=st.text(st.characters(codec="utf-8"), max_size=500))
def test_text_is_text_in_json(session: Session, text: str) -> None:
    session.put(path_of("text"), text.encode())
    record = session.get(path_of("text") + "?format=json").json
    assert record["value"] == text
    assert "value_b64" not in record


@pytest.mark.parametrize(
    "value", [b"", bytes(range(256)), b"\0", b"x" * MIB, bytes(range(256)) * (MIB // 256)], ids=len
)
def test_values_of_all_sizes_come_back(session: Session, key: str, value: bytes) -> None:
    assert session.put(path_of(key), value).status == 201
    assert session.get(path_of(key)).body == value


def test_a_body_may_be_left_out(session: Session, key: str) -> None:
    assert session.request("PUT", path_of(key)).status == 201
    assert session.get(path_of(key)).body == b""


def test_a_value_over_a_limit_is_refused_and_nothing_is_stored(session: Session, key: str) -> None:
    problem = assert_problem(session.put(path_of(key), b"x" * (MIB + 1)), "value_too_large")
    assert problem["limit"] == MIB
    assert_problem(session.put(path_of(key), b"x" * (18 * MIB)), "request_too_large")
    session.close()
    assert_problem(session.get(path_of(key)), "not_found")


def test_a_chunked_body_is_a_value_too(session: Session, key: str) -> None:
    chunks = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    connection = session._connection
    connection.putrequest("PUT", path_of(key))
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders(chunks)
    assert connection.getresponse().read()
    assert session.get(path_of(key)).body == b"hello world"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("text/html", "text/html"),
        ("image/png", "image/png"),
        ('text/plain; charset="utf-8"; x=y', 'text/plain; charset="utf-8"; x=y'),
        ("application/json", "application/json"),
        ("no type at all", "no type at all"),
        ("multipart/form-data; boundary=x", "multipart/form-data; boundary=x"),
        (FORM, "text/plain; charset=utf-8"),
        (FORM.upper() + "; charset=utf-8", "text/plain; charset=utf-8"),
        (None, "application/octet-stream"),
    ],
)
def test_the_media_type_is_kept(session: Session, key: str, sent: str | None, kept: str) -> None:
    session.request("PUT", path_of(key), b"x", {} if sent is None else {"Content-Type": sent})
    assert session.get(path_of(key)).headers["content-type"] == kept
    assert session.get(path_of(key) + "?format=json").json["content_type"] == kept


@pytest.mark.parametrize("sent", ["x" * 256, "text/plain\x7f", "text/\xe9"])
def test_a_media_type_that_cannot_be_kept_is_refused(session: Session, key: str, sent: str) -> None:
    assert_problem(session.put(path_of(key), b"x", content_type=sent), "bad_request")


def test_an_encoded_body_is_refused(session: Session, key: str) -> None:
    answer = session.put(path_of(key), b"x", content_encoding="gzip")
    assert_problem(answer, "unsupported_media_type")
    assert answer.headers["accept-encoding"] == "identity"


def test_a_part_of_a_body_is_refused(session: Session, key: str) -> None:
    assert_problem(session.put(path_of(key), b"x", content_range="bytes 0-0/5"), "bad_request")


# ── ranges ───────────────────────────────────────────────────────────────────────────────────────


@given(value=st.binary(min_size=1, max_size=30), first=st.integers(0, 40), last=st.integers(0, 40))
def test_a_range_is_what_a_slice_is(session: Session, value: bytes, first: int, last: int) -> None:
    target = path_of("ranges")
    session.put(target, value)
    part = session.get(target, range=f"bytes={first}-{last}")
    if first <= last and first < len(value):
        assert (part.status, part.body) == (206, value[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{min(last, len(value) - 1)}/{len(value)}"
    else:
        assert (part.status, part.body) == (200, value)


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("bytes=2-", 206, b"23456789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-99", 206, b"0123456789"),
        ("bytes=-0", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=10-", 200, b"0123456789"),
    ],
)
def test_one_range_is_answered_and_others_are_ignored(
    session: Session, key: str, wanted: str, status: int, body: bytes
) -> None:
    session.put(path_of(key), b"0123456789")
    part = session.get(path_of(key), range=wanted)
    assert (part.status, part.body) == (status, body)


def test_a_range_of_another_revision_is_answered_with_the_whole(session: Session, key: str) -> None:
    tag = session.put(path_of(key), b"0123456789").headers["etag"]
    assert session.get(path_of(key), range="bytes=1-2", if_range=tag).status == 206
    session.put(path_of(key), b"9876543210")
    assert session.get(path_of(key), range="bytes=1-2", if_range=tag).body == b"9876543210"
