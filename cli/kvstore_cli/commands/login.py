"""``kvstore login``, ``logout`` and ``whoami``: who one is to the service."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from kvstore_cli.command_line.parameters import json_option
from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import (
    client_of,
    configuration_of,
    given_flags,
    subcommand,
)
from kvstore_cli.terminal import output


@subcommand("client")
def login(context: click.Context) -> None:
    """Store a token for the service at --url, for all commands to use.

    It asks for the token, without showing it; without a terminal it reads a line of standard input, or
    --token-file. A mistyped token is told at once. The service is asked whether it knows the token, and only
    then it is stored, in kvstore/login.json in the XDG config folder, which only you can read.

    A token goes over plain HTTP to another machine only if --plain-http is given here.

    Exit status: 0; 1 if access is off; 5 if the service does not know the token, or it was mistyped.

    \b
    Examples:
      kvstore login
      kvstore login --url https://kv.example.org
      kvstore login --token-file /var/lib/kvstore/admin.token
    """
    from kvstore_cli.access.logins import login_path, store_token
    from kvstore_cli.config.token_source import GivenToken, TokenSource

    configuration = configuration_of(context, "client")
    url = configuration["url"]
    path = login_path()
    if "token-file" in given_flags(context):
        tokens = TokenSource(configuration)
    else:
        tokens = GivenToken(configuration, _asked(url), "the input")
    token = tokens.token()
    assert token is not None  # noqa: S101 - one was named
    with new_client(configuration, tokens=tokens) as service:
        found = service.request("GET", "/v1/whoami").json()
    if not found["name"]:
        raise click.ClickException(
            f"access is off at {url}: nobody is asked for a token there, and none was stored"
        )
    store_token(path, url, token.text)
    output.talk(f"logged in to {url} as {_said(found)}; the token is in {path}")
    for variable in ("KVSTORE_TOKEN_FILE", "KVSTORE_TOKEN"):
        if os.environ.get(variable):
            output.talk(f"the variable {variable} is set, and wins over it")


def _asked(url: str) -> str:
    if sys.stdin is not None and sys.stdin.isatty():
        return str(click.prompt(f"Token for {url}", hide_input=True, err=True)).strip()
    from kvstore_cli.config.token_source import first_line_of_stdin

    return first_line_of_stdin()


@subcommand("client")
def logout(context: click.Context) -> None:
    """Forget the token that 'kvstore login' stored for the service at --url.

    The token stays good for whoever else has it: 'kvstore token rotate' or 'revoke' ends it.

    \b
    Examples:
      kvstore logout
      kvstore logout --url https://kv.example.org
    """
    from kvstore_cli.access.logins import login_path, remove_login

    url, path = configuration_of(context, "client")["url"], login_path()
    done = remove_login(path, url)
    output.talk(f"the token for {url} is forgotten" if done else f"{path} has no token for {url}")


@subcommand("client")
@json_option("As one JSON object.")
def whoami(context: click.Context, as_json: bool) -> None:
    """Print who you are to the service, what you may do, and until when.

    Exit status: 0, also for who has no token; 5 if the token is not good.

    \b
    Examples:
      kvstore whoami
      kvstore whoami --json | jq -r '.grants[]'
    """
    with client_of(context) as service:
        found = service.request("GET", "/v1/whoami").json()
    if as_json:
        output.write_json(found)
    elif not found["name"]:
        output.write_line("access is off: everybody may do everything")
    else:
        output.write_line(_said(found))


def _said(found: dict[str, Any]) -> str:
    grants = ", ".join(found["grants"]) or "nothing"
    end = found.get("expires_at")
    return f"{found['name']}, granted {grants}" + (f", until {end}" if end else "")
