"""Tokens, what is derived from them, and the table that knows them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.access import derived
from kvstore_core.access.derived import Statement
from kvstore_core.access.grants import Grant, GrantSet, Need
from kvstore_core.access.identities import MAX_KEPT_GRANTS, AccessTable, Identity, StoredKey, StoredToken
from kvstore_core.access.tokens import TOKEN_PATTERN, new_token, token_id, without_secrets
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_MOMENT

NOW = 1_800_000_000_000
KEY = b"k" * 32
PUBLIC = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def table(token: str, digest: str, *grants: str, **more: int) -> AccessTable:
    row = Identity("ci", GrantSet(grants), NOW, tokens=(StoredToken(token, digest, NOW, **more),))
    return AccessTable([row, Identity("anonymous", GrantSet(["ro:public/"]), NOW)], KEY)


def test_a_token_has_the_form_that_scanners_look_for() -> None:
    made = {new_token().text for _ in range(100)}
    assert len(made) == 100
    for text in made:
        match = TOKEN_PATTERN.fullmatch(text)
        assert match
        assert token_id(text) == match[1]


@given(st.integers(3, 57), st.sampled_from("0aZ"))
def test_a_mistyped_token_is_known_for_one(at: int, letter: str) -> None:
    text = new_token().text
    changed = text[:at] + letter + text[at + 1 :]
    assert token_id(changed) is None or changed == text


@pytest.mark.parametrize("style", ["%{:02x}", "%{:02X}"])
def test_no_way_to_write_a_credential_shows_its_secret(style: str) -> None:
    """Each character percent-encoded in turn, and all of them."""
    whole = new_token().text
    for text, public in ((whole, 12), (f"kvd_{'Abc-_9' * 8}.{'x_-Y' * 10}", 4)):
        parts, encoded = list(text), [style.format(ord(letter)) for letter in text]
        written = [[*parts[:at], encoded[at], *parts[at + 1 :]] for at in range(len(text))]
        for each in (parts, encoded, *written):
            shown = without_secrets(f"/v1/kv/app%2F{''.join(each)}?x=1")
            assert shown == f"/v1/kv/app%2F{''.join(each[:public])}...?x=1"


def test_a_token_is_good_until_its_end_and_then_told_why() -> None:
    token = new_token()
    access = table(token.id, token.digest, "ro:app/", expires_at=NOW + 10)
    who = access.of_credential(token.text, NOW)
    assert (who.name, who.expires_at) == ("ci", NOW + 10)
    assert access.refreshed(who, NOW + 9) is not None
    assert access.refreshed(who, NOW + 10) is None
    with pytest.raises(KvError, match="of 'ci' has expired"):
        access.of_credential(token.text, NOW + 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kv_",
        "kvd_",
        "kvd_x.y",
        "kv_cjsm8xft_i4c942hvtH8bPZXbSP373kN1xJz69HGxoTxvbC72v2A1fXpDu",
        "Bearer",
        "kvd_é.é",
        "kvd_e30.AA",
    ],
)
def test_what_is_not_known_is_nobody(text: str) -> None:
    token = new_token()
    with pytest.raises(KvError) as caught:
        table(token.id, token.digest, "all:*").of_credential(text, NOW)
    assert caught.value.code == "unauthenticated"


def test_a_wrong_secret_of_a_known_id_says_no_more_than_an_unknown_id() -> None:
    token, other = new_token(), new_token()
    messages = set()
    for digest in (token.digest, other.digest):
        with pytest.raises(KvError) as caught:
            table(token.id, digest, expires_at=1).of_credential(other.text, NOW)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_what_is_derived_ends_with_its_token_and_gives_no_more() -> None:
    token = new_token()
    text = derived.sign(Statement(token.id, NOW + 100, ("ro:app/", "rw:app/x", "admin")), KEY)
    access = table(token.id, token.digest, "ro:app/", "admin")
    who = access.of_credential(text, NOW)
    assert who.grants.texts == ("ro:app/",)
    assert access.refreshed(who, NOW) is not None
    fewer = table(token.id, token.digest, "ro:app/y")
    narrowed = fewer.refreshed(who, NOW)
    assert narrowed is not None
    assert narrowed.grants.texts == ()
    assert table(new_token().id, token.digest).refreshed(who, NOW) is None
    other_key = derived.sign(Statement(token.id, NOW + 1), b"x")
    for bad in (text[:-2] + "AA", text.replace("kvd_", "kvd_A", 1), other_key):
        with pytest.raises(KvError):
            access.of_credential(bad, NOW)


HOUR = 3600 * 1000


def test_what_many_derive_from_long_grants_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of identities has all sessions and streams judged in one turn of a worker."""
    token, parsed = new_token(), []
    parse = Grant.parse
    grants = (*(f"all:team-{number}/" for number in range(98)), "monitor", "admin")
    access = table(token.id, token.digest, *grants)
    parent = access.of_credential(token.text, NOW)
    limit = tuple(f"ro:team-{number}/x/" for number in range(16))
    texts = [
        *(access.derive(parent, NOW, HOUR, half=f"half {number}") for number in range(50)),
        *(access.derive(parent, NOW, HOUR + number, limit) for number in range(50)),
    ]
    monkeypatch.setattr(Grant, "parse", lambda text: parsed.append(text) or parse(text))
    for _ in range(2):
        found = [access.of_credential(text, NOW) for text in texts]
        found = [who for each in found if (who := access.refreshed(each, NOW)) is not None]
    assert [who.grants.texts for who in found] == [grants[:-1]] * 50 + [limit] * 50
    assert len(parsed) <= len(grants) + 2 * len(limit)
    other = table(token.id, token.digest, *grants[:-1])
    assert other.of_credential(texts[0], NOW).grants is other.identities["ci"].grants


def test_what_is_kept_of_derived_grants_is_bounded() -> None:
    token = new_token()
    access = table(token.id, token.digest, "all:*")
    parent = access.of_credential(token.text, NOW)
    for number in range(2 * MAX_KEPT_GRANTS):
        limit = (f"ro:{number}/",)
        assert access.of_credential(access.derive(parent, NOW, HOUR, limit), NOW).grants.texts == limit
    assert 0 < len(access._kept) <= MAX_KEPT_GRANTS


def test_a_derived_credential_has_what_was_asked_for_and_ends_with_its_token() -> None:
    token = new_token()
    access = table(token.id, token.digest, "rw:app/", "monitor", "admin", expires_at=NOW + 2 * HOUR)
    parent = access.of_credential(token.text, NOW)
    whole = access.of_credential(access.derive(parent, NOW, HOUR), NOW)
    assert (whole.grants.texts, whole.expires_at) == (("rw:app/", "monitor"), NOW + HOUR)
    narrow = access.of_credential(access.derive(parent, NOW, 3 * HOUR, ("ro:app/x/",)), NOW)
    assert (narrow.grants.texts, narrow.expires_at) == (("ro:app/x/",), NOW + 2 * HOUR)
    session = access.derive(narrow, NOW, HOUR, half="half")
    assert access.half_of(session) == derived.half_digest("half")
    who = access.of_credential(session, NOW)
    assert (who.is_session, who.grants.texts) == (True, ("ro:app/x/",))


@pytest.mark.parametrize(
    ("grants", "code"),
    [
        ((), "bad_request"),
        (("nonsense",), "bad_request"),
        (tuple(f"ro:app/{at}/" for at in range(17)), "bad_request"),
        (("admin",), "not_allowed"),
        (("ro:app/x/", "ro:*"), "not_allowed"),
        (("ro:app*",), "not_allowed"),
        (("rw:app/x/",), "not_allowed"),
    ],
)
def test_nobody_hands_on_more_than_they_have(grants: tuple[str, ...], code: str) -> None:
    token = new_token()
    access = table(token.id, token.digest, "ro:app/", "admin")
    parent = access.of_credential(token.text, NOW)
    with pytest.raises(KvError) as caught:
        access.derive(parent, NOW, HOUR, grants)
    assert caught.value.code == code
    child = access.of_credential(access.derive(parent, NOW, HOUR, ("ro:app/x/",)), NOW)
    with pytest.raises(KvError, match="this needs"):
        access.derive(child, NOW, HOUR, ("ro:app/",))


def test_only_tokens_have_credentials_derived_from_them_and_only_for_a_day() -> None:
    token = new_token()
    access = table(token.id, token.digest, "ro:app/")
    parent = access.of_credential(token.text, NOW)
    session = access.of_credential(access.derive(parent, NOW, HOUR, half="half"), NOW)
    for who in (session, access.anonymous):
        with pytest.raises(KvError) as caught:
            access.derive(who, NOW, HOUR)
        assert caught.value.code == "not_allowed"
    for milliseconds in (0, -1, 24 * HOUR + 1):
        with pytest.raises(KvError, match="at most 24 hours"):
            access.derive(parent, NOW, milliseconds)


def test_an_identity_ends_with_its_last_token_or_key_and_not_before_one_that_lasts() -> None:
    def identity(name: str, *ends: int | None, until: int | None = None) -> Identity:
        made = [new_token() for _ in ends]
        kept = [StoredToken(each.id, each.digest, NOW, end) for each, end in zip(made, ends, strict=True)]
        return Identity(name, GrantSet(("ro:*",)), NOW, until, tuple(kept))

    key = StoredKey("k" * 40, NOW, NOW + 7)
    rows = [
        identity("rotated", NOW + 1, None),
        identity("soon", NOW + 1, NOW + 5),
        identity("over", NOW - 1),
        identity("itself", None, until=NOW + 3),
        identity("key", NOW + 2)._replace(keys=(key,)),
        identity("nobody"),
    ]
    ends = {"over": NOW - 1, "itself": NOW + 3, "soon": NOW + 5, "key": NOW + 7}
    assert AccessTable(rows).ends() == ends


@pytest.mark.parametrize("grants", [None, ("ro:app/",)])
@pytest.mark.parametrize("half", ["", "h"])
def test_a_derived_credential_stays_one_when_it_is_looked_at_again(
    grants: tuple[str, ...] | None, half: str
) -> None:
    """Or it would be its token after a change of the table, with all that the token may, for ever."""
    token = new_token()
    access = table(token.id, token.digest, "rw:app/", "admin")
    text = derived.sign(Statement(token.id, NOW + 100, grants, half and derived.half_digest(half)), KEY)
    who = access.of_credential(text, NOW)
    for now in (NOW, NOW + 50, NOW + 99):
        again = access.refreshed(who, now)
        assert again is not None
        assert not again.may(Need("admin"))
        assert (again.expires_at, again.grants.texts, again.is_session) == (
            NOW + 100,
            grants or ("rw:app/",),
            bool(half),
        )
        who = again
    assert access.refreshed(who, NOW + 100) is None


def test_a_session_is_never_admin() -> None:
    token = new_token()
    access = table(token.id, token.digest, "rw:app/", "admin")
    half = derived.half_digest("secret half")
    text = derived.sign(Statement(token.id, NOW + 100, None, half), KEY)
    who = access.of_credential(text, NOW)
    assert who.is_session
    assert who.grants.texts == ("rw:app/",)
    assert access.half_of(text) == half
    again = access.refreshed(who, NOW + 99)
    assert again is not None
    assert again.is_session
    assert again.grants.texts == ("rw:app/",)


def test_anonymous_has_its_grants_and_is_told_to_send_a_token() -> None:
    token = new_token()
    who = table(token.id, token.digest).anonymous
    who.check([Need("read", "public/x"), Need("known")])
    with pytest.raises(KvError, match="send a token") as caught:
        who.check([Need("read", "app/x")])
    assert caught.value.code == "unauthenticated"


def test_a_refusal_says_what_was_needed_and_what_one_has() -> None:
    token = new_token()
    who = table(token.id, token.digest, "ro:app/").of_credential(token.text, NOW)
    with pytest.raises(KvError) as caught:
        who.check([Need("read", "app/x"), Need("write", "app/x")], op=3)
    assert caught.value.code == "not_allowed"
    assert caught.value.details == {"needs": "write", "on": "app/x", "grants": ["ro:app/"], "op": 3}


times = st.integers(0, MAX_MOMENT)
ends = st.none() | times


@given(times, ends, ends, st.sampled_from([(), ("ro:a/",), ("rw:*", "monitor", "admin")]))
def test_a_table_is_what_was_written(
    created: int, end: int | None, other: int | None, texts: tuple[str, ...]
) -> None:
    token = new_token()
    tokens = (StoredToken(token.id, token.digest, created, other),)
    keys = (StoredKey(PUBLIC, created, end),)
    written = AccessTable([Identity("a.b@c", GrantSet(texts), created, end, tokens, keys)], KEY)
    read = AccessTable.decode(written.encode(), KEY)
    assert read.encode() == written.encode()
    assert read.tag == written.tag
    found = read.identities["a.b@c"]
    assert (found.created_at, found.expires_at, found.tokens, found.keys) == (created, end, tokens, keys)


def row(**fields: object) -> dict[str, object]:
    return {"name": "a", "created_at": "2027-01-31T12:00:00Z", **fields}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "must be a JSON object"),
        ({}, "lacks 'identities', 'version'"),
        ({"version": 2, "identities": []}, "its version is 2"),
        ({"version": 1, "identities": {}}, "must be a list"),
        ({"version": 1, "identities": [], "x": 1}, "unknown 'x'"),
        ([1], "identities[0] must be a JSON object"),
        ([row(), row()], "the name 'a' is there twice"),
        ([row(), row(name="facade")], "identities[1]: the name 'facade' is kvstore's own"),
        ([row(name=5)], "5 is not the name"),
        ([row(name="a:b")], "'a:b' is not the name"),
        ([row(grants=["x"])], "'x' is not a grant"),
        ([row(grants="ro:x/")], "'grants' must be a list"),
        ([row(expires_at="soon")], "must be a time"),
        ([row(expires_at=5)], "must be a time"),
        ([row(expires_at="2027-01-31T12:00:00")], "must be a time"),
        ([row(tokens=[{}])], "tokens[0] lacks"),
        ([row(tokens=[{"id": "short", "sha256": "x", "created_at": "2027-01-31"}])], "must have an id"),
        ([row(keys=[{"public": "short", "created_at": "2027-01-31T12:00:00Z"}])], "40 characters of Z85"),
        ([row(name="anonymous", grants=["admin"])], "never admin"),
        ([row(roles="kv_")], "unknown 'roles'"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(document: Any, said: str) -> None:
    if type(document) is list and document:
        document = {"version": 1, "identities": document}
    with pytest.raises(ValueError, match=re.escape(said)):
        AccessTable.decode(json.dumps(document).encode())


@pytest.mark.parametrize("text", ["", "{", "\ufeff{}", "kv_"])
def test_a_file_cut_short_is_no_table(text: str) -> None:
    with pytest.raises(ValueError, match="it is not JSON"):
        AccessTable.decode(text.encode())
