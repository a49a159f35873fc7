"""An example of each route, as a person types it with curl and what comes back. A test types them all, in the
order of the page; an ellipsis is what differs from time to time."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """A command of curl and its output; what ``goes_on`` is a stream, and is stopped by hand."""

    text: str
    goes_on: bool = False


PREPARATION = """\
$ curl -X PUT -d 'light blue' http://127.0.0.1:5000/v1/kv/color/sky
{"key":"color/sky","revision":…,"create_revision":…,"version":1}
$ curl -X PUT --json '{"port": 8080, "debug": true}' http://127.0.0.1:5000/v1/kv/app/config
{"key":"app/config","revision":…,"create_revision":…,"version":1}
"""

EXAMPLES = {
    "GET /v1/kv/{key}": Example("""
$ curl http://127.0.0.1:5000/v1/kv/color/sky
light blue
"""),
    "PUT /v1/kv/{key}": Example("""
$ curl -X PUT -d green 'http://127.0.0.1:5000/v1/kv/color/grass?ttl=1h'
{"key":"color/grass","revision":…,"create_revision":…,"version":1,"expires_at":"…"}
"""),
    "POST /v1/kv/{key}": Example("""
$ curl --json '{"to": "ann"}' http://127.0.0.1:5000/v1/kv/jobs/
{"key":"jobs/0000…","revision":…,"create_revision":…,"version":1}
"""),
    "PATCH /v1/kv/{key}": Example("""
$ curl -X PATCH -H 'Content-Type: application/merge-patch+json' -d '{"debug": null}' \\
>   http://127.0.0.1:5000/v1/kv/app/config
{"key":"app/config","revision":…,"create_revision":…,"version":2}
"""),
    "DELETE /v1/kv/{key}": Example("""
$ curl -X DELETE http://127.0.0.1:5000/v1/kv/color/grass
{"key":"color/grass","revision":…,"deleted":1}
"""),
    "GET /v1/kv": Example("""
$ curl 'http://127.0.0.1:5000/v1/kv?prefix=color/&limit=10'
{"items":[{"key":"color/sky",…,"value":"light blue"}],"revision":…,"cursor":null}
"""),
    "DELETE /v1/kv": Example("""
$ curl -X DELETE 'http://127.0.0.1:5000/v1/kv?prefix=jobs/'
{"prefix":"jobs/","deleted":1,"revision":…}
"""),
    "PUT /v1/kv": Example("""
$ curl -X PUT -d 'as it is' 'http://127.0.0.1:5000/v1/kv?key=a//b'
{"key":"a//b","revision":…,"create_revision":…,"version":1}
"""),
    "POST /v1/kv": Example("""
$ curl --json '{"to": "bob"}' 'http://127.0.0.1:5000/v1/kv?key=jobs/'
{"key":"jobs/0000…","revision":…,"create_revision":…,"version":1}
"""),
    "PATCH /v1/kv": Example("""
$ curl -X PATCH -H 'Content-Type: application/merge-patch+json' -d '{"port": 8081}' \\
>   'http://127.0.0.1:5000/v1/kv?key=app/config'
{"key":"app/config","revision":…,"create_revision":…,"version":3}
"""),
    "POST /v1/batch": Example("""
$ curl --json '{"atomic": true, "ops": [{"op": "put", "key": "a", "value": "1"},
>   {"op": "delete", "key": "a//b"}]}' http://127.0.0.1:5000/v1/batch
{"results":[{"status":201,"key":"a",…},{"status":200,"key":"a//b",…,"deleted":1}]}
"""),
    "GET /v1/digest": Example("""
$ curl 'http://127.0.0.1:5000/v1/digest?prefix=color/'
{"digest":"…","count":1,"revision":…,"epoch":"…"}
"""),
    "POST /v1/incr/{key}": Example("""
$ curl -X POST 'http://127.0.0.1:5000/v1/incr/visits?by=5'
{"key":"visits","value":5,"revision":…,"create_revision":…,"version":1,"text":"5"}
"""),
    "POST /v1/touch/{key}": Example("""
$ curl -X POST 'http://127.0.0.1:5000/v1/touch/visits?ttl=7d'
{"key":"visits","revision":…,"create_revision":…,"version":…,"expires_at":"…"}
"""),
    "POST /v1/persist/{key}": Example("""
$ curl -X POST http://127.0.0.1:5000/v1/persist/visits
{"key":"visits","revision":…,"create_revision":…,"version":…}
"""),
    "GET /v1/history/{key}": Example("""
$ curl 'http://127.0.0.1:5000/v1/history/visits?limit=1'
{"key":"visits","events":[{"key":"visits","op":"put",…}],"cursor":"…","truncated":false}
"""),
    "GET /v1/history": Example("""
$ curl 'http://127.0.0.1:5000/v1/history?prefix=color/&values=0'
{"prefix":"color/","events":[{"key":"color/grass","op":"delete",…},…],"cursor":null,"truncated":false}
"""),
    "GET /v1/changes": Example("""
$ curl 'http://127.0.0.1:5000/v1/changes?prefix=color/&since=1h-ago&limit=1'
{"events":[{"key":"color/sky","op":"put",…}],"cursor":"…","floor":0,"head":…,"more":true}
"""),
    "GET /v1/subscribe": Example("""
$ curl -N 'http://127.0.0.1:5000/v1/subscribe?prefix=color/&snapshot=1'
…
event: put
data: {…"key":"color/sky",…}
…
""", goes_on=True),
    "POST /v1/subscribe": Example("""
$ curl -N -H 'Accept: application/x-ndjson' --json '{"keys": ["color/sky", "visits"], "snapshot": true}' \\
>   http://127.0.0.1:5000/v1/subscribe
{…"key":"color/sky",…}
…
""", goes_on=True),
    "QUERY /v1/subscribe": Example("""
$ curl -N -X QUERY -H 'Accept: application/x-ndjson' \\
>   --json '{"prefixes": ["color/", "app/"], "snapshot": true}' http://127.0.0.1:5000/v1/subscribe
{…"key":"app/config",…}
…
""", goes_on=True),
    "GET /v1/status": Example("""
$ curl http://127.0.0.1:5000/v1/status
{…"epoch":"…","revision":…}
"""),
    "GET /v1/whoami": Example("""
$ curl http://127.0.0.1:5000/v1/whoami
{"access":…,"name":"…","kind":"…","credential":"…","grants":[…]}
"""),
    "POST /v1/narrow": Example("""
$ curl --json '{"grants": ["ro:color/"], "for": "10m"}' http://127.0.0.1:5000/v1/narrow
{"token":"kvd_…","name":"…","grants":["ro:color/"],"expires_at":"…"}
"""),
    "GET /v1/tokens": Example("""
$ curl http://127.0.0.1:5000/v1/tokens
{"identities":[{"name":"…","grants":[…]…}…]}
"""),
    "POST /v1/tokens": Example("""
$ curl --json '{"name": "ci", "grants": ["rw:app/"], "for": "90d"}' http://127.0.0.1:5000/v1/tokens
{"name":"ci","grants":["rw:app/"],…,"token":"kv_…"}
"""),
    "GET /v1/tokens/{name}": Example("""
$ curl http://127.0.0.1:5000/v1/tokens/ci
{"name":"ci","grants":["rw:app/"],…}
"""),
    "PATCH /v1/tokens/{name}": Example("""
$ curl -X PATCH --json '{"grant": ["ro:color/"]}' http://127.0.0.1:5000/v1/tokens/ci
{"name":"ci","grants":["rw:app/","ro:color/"],…}
"""),
    "DELETE /v1/tokens/{name}": Example("""
$ curl -X DELETE http://127.0.0.1:5000/v1/tokens/ci
{…}
"""),
    "POST /v1/tokens/{name}/rotate": Example("""
$ curl --json '{"name": "web", "grants": ["ro:*"]}' http://127.0.0.1:5000/v1/tokens
{"name":"web",…}
$ curl -X POST 'http://127.0.0.1:5000/v1/tokens/web/rotate?keep=1h'
{"name":"web",…,"token":"kv_…"}
"""),
    "POST /v1/tokens/{name}/keys": Example("""
$ curl --json '{"public_key": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"}' http://127.0.0.1:5000/v1/tokens/web/keys
{"name":"web",…,"server_key":"…"}
"""),
    "GET /v1/subscribers": Example("""
$ curl 'http://127.0.0.1:5000/v1/subscribers?limit=1'
{"subscribers":[{"id":"…",…}],"count":…,"unheard":[]}
"""),
    "DELETE /v1/subscribers/{id}": Example("""
$ id=$(curl 'http://127.0.0.1:5000/v1/subscribers?limit=1' | jq -r '.subscribers[0].id')
> curl -X DELETE http://127.0.0.1:5000/v1/subscribers/$id
{"kicked":"…"}
"""),
    "GET /v1/backups": Example("""
$ curl http://127.0.0.1:5000/v1/backups
{"backups":[]}
"""),
    "POST /v1/backups": Example("""
$ curl -X POST http://127.0.0.1:5000/v1/backups
{"id":"…","state":"…",…}
"""),
    "GET /v1/backups/{id}": Example("""
$ id=$(curl http://127.0.0.1:5000/v1/backups | jq -r '.backups[0].id')
> curl -f -C - --retry 100 -o kvstore.backup http://127.0.0.1:5000/v1/backups/$id
> test -s kvstore.backup && echo here
here
"""),
    "DELETE /v1/backups/{id}": Example("""
$ id=$(curl http://127.0.0.1:5000/v1/backups | jq -r '.backups[0].id')
> curl -X DELETE http://127.0.0.1:5000/v1/backups/$id
{…}
"""),
    "GET /v1/slow": Example("""
$ curl 'http://127.0.0.1:5000/v1/slow?limit=10'
{"requests":[…],"unheard":[]}
"""),
    "POST /v1/session": Example("""
$ curl --json '{"token": "'$(cat token)'"}' http://127.0.0.1:5000/v1/session
{"half":"…","name":"…","grants":[…],"expires_at":"…"}
"""),
    "DELETE /v1/session": Example("""
$ curl -X DELETE -w '%{http_code}\\n' http://127.0.0.1:5000/v1/session
204
"""),
    "GET /livez": Example("""
$ curl http://127.0.0.1:5000/livez
{"status":"alive"}
"""),
    "GET /readyz": Example("""
$ curl -H 'Accept: text/plain' 'http://127.0.0.1:5000/readyz?verbose=1'
[+]daemon ok…
"""),
    "GET /metrics": Example("""
$ curl http://127.0.0.1:5000/metrics | grep ^kvstore_up
kvstore_up 1.0
"""),
    "GET /openapi.json": Example("""
$ curl http://127.0.0.1:5000/openapi.json
{"openapi":"3.1.0",…}
"""),
    "GET /ui/": Example("""
$ curl -I http://127.0.0.1:5000/ui/
HTTP/1.1 200 OK
…
"""),
    "GET /": Example("""
$ curl 'http://127.0.0.1:5000/?key=color/sky'
light blue
"""),
    "PUT /": Example("""
$ curl -X PUT -d '{"key": "old", "value": "way"}' http://127.0.0.1:5000/
…
"""),
    "GET /all": Example("""
$ curl http://127.0.0.1:5000/all
{…"color/sky":"light blue"…}
"""),
}  # fmt: skip
