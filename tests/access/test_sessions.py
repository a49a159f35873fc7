"""The two halves of a page's session: what makes one, and what is taken for one."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore_core.access.grants import GrantSet
from kvstore_core.access.identities import AccessTable, Identity, StoredToken
from kvstore_core.access.tokens import new_token
from kvstore_core.errors import KvError
from kvstore_http.access import sessions
from kvstore_http.access.sessions import Place

NOW = 1_800_000_000_000
KEY = b"k" * 32
TOKEN = new_token()


def table(*grants: str, expires_at: int | None = None, key: bytes = KEY) -> AccessTable:
    token = StoredToken(TOKEN.id, TOKEN.digest, NOW, expires_at)
    return AccessTable([Identity("ann", GrantSet(grants), NOW, tokens=(token,))], key)


TABLE = table("rw:app/", "admin")
SESSION = sessions.begin(TABLE, TOKEN.text, NOW)
OTHER = sessions.begin(TABLE, TOKEN.text, NOW)


def environ(cookie: str | None, half: str | None = None, **more: str) -> dict[str, Any]:
    headers = {"HTTP_COOKIE": cookie, "HTTP_X_KVSTORE_PAGE": half, "HTTP_HOST": "localhost:5000", **more}
    return {name: text for name, text in headers.items() if text is not None}


def refused(environ: dict[str, Any], access: AccessTable = TABLE, now: int = NOW) -> str:
    with pytest.raises(KvError) as caught:
        sessions.session_of(environ, access, now)
    assert caught.value.code == "unauthenticated"
    return str(caught.value)


@pytest.mark.parametrize("name", ["__Host-kvstore", "__Secure-kvstore", "kvstore_5000", "kvstore_80"])
def test_both_halves_together_are_a_session(name: str) -> None:
    others = f"a=b; kvstore_5001={OTHER.cookie}; kvstore_1; ="
    who = sessions.session_of(environ(f"{others}; {name}={SESSION.cookie}", SESSION.half), TABLE, NOW)
    assert who is not None
    assert (who.name, who.grants.texts, who.is_session) == ("ann", ("rw:app/",), True)


@pytest.mark.parametrize(
    ("cookie", "half"),
    [
        (None, SESSION.half),
        (None, ""),
        (f"kvstore_5000={SESSION.cookie}", ""),
        (f"kvstore_5000={SESSION.cookie}", OTHER.half),
        (f"kvstore_5000={SESSION.cookie}x", SESSION.half),
        (f"other={SESSION.cookie}", SESSION.half),
        (f"kvstore_5000={TOKEN.text}", SESSION.half),
        (f"kvstore_5000={TABLE.derive(TABLE.of_credential(TOKEN.text, NOW), NOW, 1000)}", ""),
        (f"kvstore_5000={SESSION.half}", SESSION.cookie),
    ],
    ids=range(9),
)
def test_one_half_or_a_wrong_one_is_nobody(cookie: str | None, half: str) -> None:
    refused(environ(cookie, half))
    with pytest.raises(KvError):
        sessions.session_of(environ(cookie, half), TABLE, NOW, is_public=True)


@pytest.mark.parametrize("name", ["__Host-kvstore", "__Secure-kvstore", "kvstore_5000"])
def test_a_cookie_alone_is_refused_where_it_matters_who_asks(name: str) -> None:
    alone = environ(f"{name}={SESSION.cookie}")
    assert "only good with the page's X-Kvstore-Page" in refused(alone)
    assert sessions.session_of(alone, TABLE, NOW, is_public=True) is None


def test_a_cookie_of_another_port_is_nothing_to_this_one() -> None:
    assert sessions.session_of(environ(f"kvstore_5001={SESSION.cookie}; x=y"), TABLE, NOW) is None
    assert sessions.session_of(environ(None), TABLE, NOW) is None


@pytest.mark.parametrize("site", ["same-site", "cross-site", "nonsense"])
def test_a_page_of_elsewhere_has_no_session(site: str) -> None:
    both = environ(f"kvstore_5000={SESSION.cookie}", SESSION.half, HTTP_SEC_FETCH_SITE=site)
    assert "the page that began it" in refused(both)


def test_a_session_ends_after_twelve_hours_with_its_token_and_with_the_key() -> None:
    both = environ(f"kvstore_5000={SESSION.cookie}", SESSION.half)
    end = NOW + 12 * 3600 * 1000
    assert SESSION.who.expires_at == end
    assert sessions.session_of(both, TABLE, end - 1) is not None
    assert "expired" in refused(both, now=end)
    assert "log in again" in refused(both, table("rw:app/", key=b"other"))
    assert "revoked" in refused(both, AccessTable([], KEY))
    short = sessions.begin(table("ro:*", expires_at=NOW + 5), TOKEN.text, NOW)
    assert short.who.expires_at == NOW + 5


def test_a_session_begins_with_a_token_and_not_with_another_session() -> None:
    with pytest.raises(KvError, match="no token"):
        sessions.begin(TABLE, SESSION.cookie, NOW)
    narrow = TABLE.derive(TABLE.of_credential(TOKEN.text, NOW), NOW, 1000, ("ro:app/x/",))
    session = sessions.begin(TABLE, narrow, NOW)
    assert (session.who.grants.texts, session.who.expires_at) == (("ro:app/x/",), NOW + 1000)
    long = [f"ro:{at:0500d}" for at in range(16)]
    wide = table(*long)
    narrow = wide.derive(wide.of_credential(TOKEN.text, NOW), NOW, 1000, tuple(long))
    with pytest.raises(KvError, match="too long for a cookie"):
        sessions.begin(wide, narrow, NOW)


@pytest.mark.parametrize(
    ("origin", "scheme", "host", "place"),
    [
        ("https://kv.example", "http", "10.0.0.1:5000", Place(True, "kv.example", 443)),
        ("http://localhost:5000", "http", "localhost:5000", Place(False, "localhost", 5000)),
        ("http://[::1]:80", "http", "x", Place(False, "::1", 80)),
        (None, "https", "kv.example", Place(True, "kv.example", 443)),
        (None, "http", "kv.example:5000", Place(False, "kv.example", 5000)),
        ("null", "https", "kv.example", Place(True, "kv.example", 443)),
    ],
)
def test_where_a_page_is_says_its_origin(origin: str | None, scheme: str, host: str, place: Place) -> None:
    asked = environ(None, HTTP_HOST=host, **{"wsgi.url_scheme": scheme})
    assert sessions.place_of(asked | ({} if origin is None else {"HTTP_ORIGIN": origin})) == place


@pytest.mark.parametrize(
    ("place", "is_root", "line"),
    [
        (
            Place(True, "kv.example", 443),
            True,
            "__Host-kvstore=C; Max-Age=9; HttpOnly; SameSite=Strict; Secure; Path=/",
        ),
        (
            Place(True, "kv.example", 443),
            False,
            "__Secure-kvstore=C; Max-Age=9; HttpOnly; SameSite=Strict; Secure",
        ),
        (Place(False, "localhost", 5000), True, "kvstore_5000=C; Max-Age=9; HttpOnly; SameSite=Strict"),
        (Place(False, "localhost", 5000), False, "kvstore_5000=C; Max-Age=9; HttpOnly; SameSite=Strict"),
    ],
)
def test_the_cookie_is_as_strict_as_its_place_allows(place: Place, is_root: bool, line: str) -> None:
    assert sessions.set_cookie(place, "C", 9, is_root=is_root) == line
    dropped = [each.partition("=")[0] for each in sessions.drop_cookies(place)]
    assert line.partition("=")[0] in dropped


@pytest.mark.parametrize("host", ["kv.example", "10.0.0.1", "", "0.0.0.0", "localhost.evil.example"])
def test_nobody_logs_in_over_an_open_network(host: str) -> None:
    with pytest.raises(KvError, match="plain http") as caught:
        sessions.refuse_open_network(Place(False, host, 80))
    assert caught.value.code == "not_allowed"
    sessions.refuse_open_network(Place(True, host, 443))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_is_no_open_network(host: str) -> None:
    sessions.refuse_open_network(Place(False, host, 80))
