"""The examples of the reference do what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docs_site.reference.routes import routes

from support.programs import require_program
from support.servers import Serve
from support.walkthrough import Walk


def test_the_example_of_every_route_answers_as_it_shows(
    start_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    for program in ("curl", "jq"):
        require_program(program)
    page = tmp_path / "routes.md"
    page.write_text(routes())
    serve = start_serve(workers=1, access="required")
    token = (serve.data / "admin.token").read_text().strip()
    (tmp_path / "token").write_text(token)
    with Walk(page, serve, tmp_path) as walk:
        with (tmp_path / ".curlrc").open("a") as file:
            file.write(f'header = "Authorization: Bearer {token}"\n')
        walk.go()
