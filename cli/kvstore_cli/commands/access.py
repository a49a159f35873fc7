"""``kvstore token`` and ``kvstore key``: identities, their grants, and what they come in by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvstore_cli.access.identity_store import NEVER
from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import KindType, client_of, given_flags, subcommand
from kvstore_cli.config.options import DURATION_OR_ZERO, FOLDER
from kvstore_cli.terminal import output
from kvstore_cli.terminal.humanize import NOTHING
from kvstore_core.access.grants import PLAIN_VERBS, Grant, GrantSet, KeyRange, Need
from kvstore_core.access.identities import ME
from kvstore_core.errors import ERRORS, EXIT_DONE
from kvstore_core.media_types import JSON

if TYPE_CHECKING:
    from kvstore_cli.access.identity_store import Description, IdentityStore

_Function = TypeVar("_Function", bound=Callable[..., Any])

_VERBS = ("read", "list", "watch", "write", "delete", *PLAIN_VERBS)


class GrantType(click.ParamType[str]):
    """A grant; what is none is a usage error."""

    name = "grant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = parameters.TEXT.convert(value, param, ctx)
        try:
            Grant.parse(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return text


class TimeOrNeverType(click.ParamType[int]):
    """A time in milliseconds, or ``never``, which is :data:`NEVER`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return NEVER if value in ("never", NEVER) else parameters.TIME.convert(value, param, ctx)


_GRANT = GrantType()

_name_argument = click.argument("name", type=parameters.TEXT, shell_complete=parameters.complete_identity)
_grants_argument = click.argument("grants", type=_GRANT, nargs=-1, required=True, metavar="GRANT...")
_data_option = click.option(
    "--data",
    type=KindType(FOLDER),
    metavar="DIR",
    help="Change the files in the data folder DIR instead of asking the service, which may be down.",
)


_WAYS_IN = {"token": "id", "key": "public_key"}
"""By what an identity comes in, and what of each is shown."""

_last_admin_option = click.option(
    "--force", is_flag=True, help="Also if nobody is left who may manage identities."
)


def _grant_option(help_text: str, *, required: bool = True) -> Callable[[_Function], _Function]:
    return click.option(
        "--grant", "grants", type=_GRANT, multiple=True, required=required, metavar="GRANT", help=help_text
    )


def _for_option(help_text: str, *, required: bool = False) -> Callable[[_Function], _Function]:
    return click.option(
        "--for", "ends_in", type=parameters.TIME, metavar="TIME", required=required, help=help_text
    )


_issued_json_option = parameters.json_option("The identity with the token and its id, as one JSON object.")


def _output_options(help_text: str) -> Callable[[_Function], _Function]:
    def add(function: _Function) -> _Function:
        to_file = click.option(
            "--output",
            "file",
            default="-",
            metavar="FILE",
            shell_complete=parameters.complete_file,
            help=help_text,
        )
        return to_file(click.option("--force", is_flag=True, help="Replace FILE if it exists.")(function))

    return add


@subcommand("client")
@_name_argument
@_grant_option("What it may do, as ro:app/ or monitor; may be repeated.")
@_for_option("When the token ends.  [default: never]")
@_output_options("Where the token is written; - is standard output.")
@_issued_json_option
@_data_option
def create(
    context: click.Context,
    name: str,
    grants: tuple[str, ...],
    ends_in: int | None,
    file: str,
    force: bool,
    as_json: bool,
    data: str | None,
) -> None:
    """Make the identity NAME with a token, and print the token, which nobody can be shown again.

    A grant is VERBS:SCOPE: read, list, watch, write or delete, with commas between, or ro (the first three)
    or rw (all); on all keys below app/, on all that begin with app with app*, on one key with app/x, or on
    everything with *. monitor and admin have no scope.

    With --output only you can read the file; without it the token is printed alone.

    Exit status: 0; 4 if there is such an identity.

    \b
    Examples:
      kvstore token create ci --grant rw:app/ --grant ro:shared/ --for 90d
      kvstore token create prometheus --grant monitor --output kvstore.token
      kvstore token create ann --grant rw:app/ --json | jq -r '.id, .token'
      kvstore token create jo --grant admin --grant 'all:*' --data /var/lib/kvstore
    """
    _say_single_keys(grants, name)
    with _secret_file(file, force=force) as write, _identities(context, data) as identities:
        _write_token(write, identities.create(name, grants, ends_in), file, as_json=as_json)
        if data is not None and "admin" in grants:
            _say_other_admins(identities, name)


def _say_other_admins(identities: IdentityStore, name: str) -> None:
    """Whoever makes an admin because the other's token is lost should see that it still opens everything."""
    admins = [
        row["name"] for row in identities.everybody() if "admin" in row["grants"] and row["name"] != name
    ]
    if admins:
        output.talk(f"other admins: {', '.join(admins)}; 'kvstore token revoke' ends one that is not needed")


@subcommand("client")
@parameters.json_option("One JSON object a line.")
@_data_option
def list_identities(context: click.Context, as_json: bool, data: str | None) -> None:
    """Print all identities: the name, the grants, the ids of tokens, the public keys, and the next end.

    \b
    Examples:
      kvstore token list
      kvstore token list --json | jq -r 'select(.grants | index("admin")) | .name'
    """
    with _identities(context, data) as identities:
        rows = identities.everybody()
    if as_json:
        for row in rows:
            output.write_json(row)
    else:
        output.write_table(("NAME", "GRANTS", "TOKENS", "KEYS", "MADE", "NEXT END"), list(map(_row, rows)))


def _row(row: Description) -> tuple[str, ...]:
    tokens, keys = row["tokens"], row["keys"]
    ends = [each["expires_at"] for each in (row, *tokens, *keys) if "expires_at" in each]
    return (
        row["name"],
        " ".join(row["grants"]) or NOTHING,
        " ".join(token["id"] for token in tokens) or NOTHING,
        " ".join(key["public_key"] for key in keys) or NOTHING,
        _to_the_second(row["created_at"]),
        _to_the_second(min(ends, default=None)),
    )


def _to_the_second(moment: str | None) -> str:
    return NOTHING if moment is None else f"{moment[:19]}Z"


@subcommand("client")
@_name_argument
@parameters.json_option("As one JSON object.")
@_data_option
def show(context: click.Context, name: str, as_json: bool, data: str | None) -> None:
    """Print one identity: its grants, its tokens by their ids, its keys, and when each was made and ends.

    Exit status: 0; 3 if there is no such identity.

    \b
    Examples:
      kvstore token show ci
      kvstore token show ci --json
    """
    with _identities(context, data) as identities:
        row = identities.described(name)
    if as_json:
        output.write_json(row)
    else:
        output.write_table(("WHAT", "WHICH", "MADE", "ENDS"), list(_details(row)))


def _details(row: Description) -> Iterable[tuple[str, ...]]:
    yield "identity", row["name"], *_moments(row)
    for grant in row["grants"]:
        yield "grant", grant, NOTHING, NOTHING
    for token in row["tokens"]:
        yield "token", token["id"], *_moments(token)
    for key in row["keys"]:
        yield "key", key["public_key"], *_moments(key)


def _moments(row: Description) -> tuple[str, str]:
    return _to_the_second(row["created_at"]), _to_the_second(row.get("expires_at"))


@subcommand("client")
@_name_argument
@_grants_argument
@_data_option
def grant(context: click.Context, name: str, grants: tuple[str, ...], data: str | None) -> None:
    """Let the identity NAME do more, from now on, and print all of its grants.

    NAME may be anonymous: everybody without a token.

    \b
    Examples:
      kvstore token grant ci rw:logs/ list:app/
      kvstore token grant anonymous ro:public/
    """
    _say_single_keys(grants, name)
    with _identities(context, data) as identities:
        _print_grants(identities.regrant(name, grants, ()))


@subcommand("client")
@_name_argument
@_grants_argument
@_last_admin_option
@_data_option
def ungrant(
    context: click.Context, name: str, grants: tuple[str, ...], force: bool, data: str | None
) -> None:
    """Take grants away from the identity NAME, and print those that are left.

    A GRANT is written as it was given. Streams and subscriptions that need it end within two seconds.

    \b
    Example:
      kvstore token ungrant ci rw:logs/
    """
    with _identities(context, data) as identities:
        if "admin" in grants and not force:
            _refuse_last_admin(identities, name, lambda row: {**row, "grants": []})
        _print_grants(identities.regrant(name, (), grants))


def _refuse_last_admin(
    identities: IdentityStore, name: str, without: Callable[[Description], Description]
) -> None:
    """Raise a usage error if nobody could manage identities any more once NAME is as ``without`` makes it."""
    rows = identities.everybody()
    admins = [row for row in rows if _is_admin(row)]
    if [row["name"] for row in admins] == [name] and not _is_admin(without(admins[0])):
        raise click.UsageError(
            f"{name} is the last admin; without it only 'kvstore token create NAME --grant admin --data DIR' "
            "on the machine of the service makes another. --force takes it away"
        )


def _is_admin(row: Description) -> bool:
    """Whether somebody can come in by this identity now, and manage identities."""
    return "admin" in row["grants"] and _lasts(row) and any(map(_lasts, [*row["tokens"], *row["keys"]]))


def _lasts(row: Description) -> bool:
    from datetime import UTC, datetime

    end = row.get("expires_at")
    return end is None or datetime.fromisoformat(end) > datetime.now(UTC)


def _without_token(row: Description, token_id: str | None) -> Description:
    kept = [] if token_id is None else [each for each in row["tokens"] if each["id"] != token_id]
    return {**row, "tokens": kept, "keys": [] if token_id is None else row["keys"]}


def _print_grants(row: Description) -> None:
    for text in row["grants"]:
        output.write_line(text)


@subcommand("client")
@_name_argument
@click.option(
    "--keep",
    type=KindType(DURATION_OR_ZERO),
    default=0,
    metavar="TIME",
    help="How long the other tokens stay good.  [default: not at all]",
)
@click.option(
    "--for",
    "ends_in",
    type=TimeOrNeverType(),
    metavar="TIME",
    help="When the new token ends, or never.  [default: after as long a time as the newest one had]",
)
@_output_options("Where the token is written; - is standard output.")
@_issued_json_option
@_data_option
def rotate(
    context: click.Context,
    name: str,
    keep: int,
    ends_in: int | None,
    file: str,
    force: bool,
    as_json: bool,
    data: str | None,
) -> None:
    """Make another token for the identity NAME, and print it; the others end.

    With --keep they end after that time: meanwhile the new one can be given to all who use it. The new one
    lasts as long as the newest of them was made for, unless --for says otherwise.

    Exit status: 0; 3 if there is no such identity.

    \b
    Examples:
      kvstore token rotate ci --keep 1h
      kvstore token rotate ci --for 90d --output ci.token --force
      kvstore token rotate ci --for never
    """
    with _secret_file(file, force=force) as write, _identities(context, data) as identities:
        _write_token(write, identities.rotate(name, keep, ends_in), file, as_json=as_json)


@subcommand("client")
@_name_argument
@click.option("--id", "token_id", metavar="ID", help="Only the token with this id; the identity stays.")
@_last_admin_option
@_data_option
def revoke(context: click.Context, name: str, token_id: str | None, force: bool, data: str | None) -> None:
    """Remove the identity NAME, with all its tokens and keys.

    Its requests are refused from now on; its streams and subscriptions end within two seconds.

    Exit status: 0; 3 if there is no such identity, or no such token.

    \b
    Examples:
      kvstore token revoke ci
      kvstore token revoke ci --id 7q2m9xk4
    """
    with _identities(context, data) as identities:
        if not force:
            _refuse_last_admin(identities, name, lambda row: _without_token(row, token_id))
        if token_id is None:
            row = identities.described(name)
            identities.revoke(name)
            parts = [f"{kind} {each[key]}" for kind, key in _WAYS_IN.items() for each in row[f"{kind}s"]]
            output.talk(": ".join(filter(None, (f"the identity {name!r} is gone", ", ".join(parts)))))
        else:
            identities.revoke_token(name, token_id)
            output.talk(f"the token {token_id} of {name!r} is gone; the identity stays")


@subcommand("client")
@_name_argument
@click.argument("verb", type=click.Choice(_VERBS))
@click.argument("key", type=parameters.KEY, required=False, shell_complete=parameters.complete_key)
@parameters.prefix_option("All keys that begin with P, as for a list or a stream.")
@_data_option
def test(
    context: click.Context, name: str, verb: str, key: str | None, prefix: str | None, data: str | None
) -> int:
    """Tell whether the identity NAME may do VERB on KEY, and by which grant; 'me' is who asks.

    Exit status: 0 for yes, 5 for no.

    \b
    Examples:
      kvstore token test ci read app/x
      kvstore token test me list --prefix app/
      kvstore token test me monitor
    """
    on: str | KeyRange | None = None
    if verb not in PLAIN_VERBS:
        which = parameters.exactly_one({"KEY": key, "--prefix": prefix})
        on = key if which == "KEY" else KeyRange.of_prefix(prefix or "")
    elif key is not None or prefix is not None:
        raise click.UsageError(f"{verb} is not about keys; leave KEY out")
    grants = _grants_of(context, name, data)
    need = Need(verb, on)
    deciding = None if grants is None else GrantSet(grants).deciding(need)
    if deciding is None and grants is not None:
        output.write_line(f"no: {need} is not in {', '.join(grants) or 'no grants'}")
        return ERRORS["not_allowed"].exit
    output.write_line("yes: access is off" if grants is None else f"yes: {deciding}")
    return EXIT_DONE


def _grants_of(context: click.Context, name: str, data: str | None) -> list[str] | None:
    """None where access is off."""
    if name != ME or data is not None:
        with _identities(context, data) as identities:
            granted: list[str] = identities.described(name)["grants"]
            return granted
    with client_of(context) as service:
        found = service.request("GET", "/v1/whoami").json()
    return None if not found["name"] else list(found["grants"])


def _write_token(write: Callable[[bytes], object], issued: Description, file: str, *, as_json: bool) -> None:
    write(f"{output.json_line(issued) if as_json else issued['token']}\n".encode())
    if file == "-" and output.on_terminal():
        output.talk(f"this token of {issued['name']!r} is shown only now")


def _say_single_keys(grants: Sequence[str], name: str | None = None) -> None:
    """A scope without slash or star is one key, which is seldom what was meant. ``name`` is the identity from
    which it can be taken again."""
    from shlex import quote

    for text in grants:
        parsed = Grant.parse(text)
        if parsed.scope and not parsed.prefix:
            undo = "" if name is None else f"; take it back with: kvstore token ungrant {name} {quote(text)}"
            output.talk(f"{text} is for the one key {parsed.scope!r}; for all below it write {text}/{undo}")


@contextmanager
def _secret_file(file: str, *, force: bool) -> Iterator[Callable[[bytes], object]]:
    """A function that writes a line to ``file``, which can be written: that is known before anything is
    changed. The file is of who runs the command, whoever has the data folder."""
    from kvstore_cli.files.output_file import output_file, refuse_unwritable

    if file != "-":
        refuse_unwritable(Path(file), force=force)
    with output_file(file) as write:
        yield write


@contextmanager
def _identities(context: click.Context, data: str | None) -> Iterator[IdentityStore]:
    """Those in the data folder, if one is named, else those of the service."""
    if data is not None:
        if "url" in given_flags(context):
            raise click.UsageError("--data and --url are two places; give one of them")
        from kvstore_cli.access.folder_identities import FolderIdentities
        from kvstore_daemon.storage.offline.run_as_owner import rights_kept

        with rights_kept():
            yield FolderIdentities(Path(data), output.talk)
        return
    from kvstore_cli.access.service_identities import ServiceIdentities

    with client_of(context) as service:
        yield ServiceIdentities(service)


@subcommand("client")
@_grant_option("What it may do, which has to be part of what you may; may be repeated.")
@_for_option("How long it is good, 24h at most and no longer than your token.", required=True)
def narrow(context: click.Context, grants: tuple[str, ...], ends_in: int) -> None:
    """Print a token that may do a part of what yours may, and ends soon: to hand on, without an admin.

    It ends with yours at the latest, also where that is revoked, and never has the grant admin.

    \b
    Examples:
      kvstore token narrow --grant ro:app/ --for 10m
      KVSTORE_TOKEN=$(kvstore token narrow --grant read:app/x --for 1m) kvstore get app/x
    """
    import json

    _say_single_keys(grants)
    body = json.dumps({"grants": grants, "for": f"{ends_in}ms"}).encode()
    headers = {"Content-Type": JSON}
    with client_of(context) as service:
        made = service.request("POST", "/v1/narrow", body=body, headers=headers, is_once=True).json()
    output.write_line(made["token"])


@click.group(
    commands={
        "create": create,
        "list": list_identities,
        "show": show,
        "grant": grant,
        "ungrant": ungrant,
        "rotate": rotate,
        "revoke": revoke,
        "narrow": narrow,
        "test": test,
    }
)
def token() -> None:
    """Manage identities: who may come in, by which tokens, and what they may do.

    All of it needs the grant admin, but 'token narrow' and 'token test me'. With --data it works on the
    files in the data folder of a service on this machine, which may be running or not: that needs no token,
    but the right to write the files.
    """


@subcommand("client")
@_name_argument
@_grant_option("What a new identity may do; may be repeated. Without it NAME must be there.", required=False)
@_for_option("When the key ends.  [default: never]")
@_output_options("Where the login file is written; - is standard output.")
@_data_option
def create_key(
    context: click.Context,
    name: str,
    grants: tuple[str, ...],
    ends_in: int | None,
    file: str,
    force: bool,
    data: str | None,
) -> None:
    """Make a pair of CURVE keys for the identity NAME, and write the login file of a native client.

    The secret key is made here and leaves only with that file; the service gets the public key. A client
    finds the file by KVSTORE_LOGIN_FILE, and comes in by ZeroMQ at any address of this service.

    Exit status: 0; 3 if NAME is not there, 4 if it is there already and --grant was given.

    \b
    Examples:
      kvstore key create prices --grant rw:prices/ --output prices.json
      kvstore key create ci --for 30d --output ci.json
    """
    from kvstore_client.curve import new_keys
    from kvstore_core.access.login_file import ANY, CurveKeys, encode_entries

    _say_single_keys(grants, name)
    public_key, secret_key = new_keys()
    with _secret_file(file, force=force) as write:
        with _identities(context, data) as identities:
            server_key = identities.add_key(name, grants, public_key, ends_in)
        text = encode_entries({ANY: CurveKeys(server_key, public_key, secret_key)._asdict()})
        for line in text.splitlines(keepends=True):
            write(line)


@subcommand("client")
@_name_argument
@click.argument("public_key", metavar="KEY")
@_last_admin_option
@_data_option
def revoke_key(context: click.Context, name: str, public_key: str, force: bool, data: str | None) -> None:
    """Remove the public KEY from the identity NAME, which stays; 'kvstore token list' shows the keys.

    \b
    Example:
      kvstore key revoke prices 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID'
    """
    with _identities(context, data) as identities:
        if not force:
            _refuse_last_admin(
                identities,
                name,
                lambda row: {
                    **row,
                    "keys": [each for each in row["keys"] if each["public_key"] != public_key],
                },
            )
        identities.revoke_key(name, public_key)


@click.group(commands={"create": create_key, "revoke": revoke_key})
def key() -> None:
    """Manage the CURVE keys of native clients, which come in by ZeroMQ.

    All of it needs the grant admin; with --data, the right to write the files in the data folder.
    """
