"""The table of what can be wrong, and what to do about it. ``docs/proxies.md`` shows the same rows."""

from __future__ import annotations

from typing import NamedTuple


class Fix(NamedTuple):
    """What to change: nginx's directive (empty if it is not about nginx), and in words for everything
    else."""

    nginx: str
    others: str


CAUSES: dict[str, Fix] = {
    # ── the way there ──
    "unreachable": Fix("", "start the service, or name the right address with --url or KVSTORE_URL"),
    "not_kvstore": Fix(
        "proxy_pass http://127.0.0.1:5000;",
        "name the right address with --url or KVSTORE_URL; if it is a proxy's, let it pass every path on to "
        "kvstore, and give --url the path under which it does",
    ),
    "wants_https": Fix("", "write the address with https://, in --url or KVSTORE_URL"),
    "certificate_refused": Fix(
        "ssl_certificate, with the whole chain",
        "have the service use a certificate that is valid, with its chain, and write the address with a name "
        "that it is for; if its CA is your own, name that with --ca-file or KVSTORE_CA_FILE",
    ),
    "certificate_ends": Fix(
        "ssl_certificate, and nginx -s reload after each renewal",
        "renew it; kvstore takes a new one from the files of --tls-cert and --tls-key while it runs",
    ),
    "no_tls": Fix(
        "listen 443 ssl; with ssl_certificate and ssl_certificate_key",
        "start kvstore with --tls-cert and --tls-key, or have a proxy in front end TLS",
    ),
    "login_wanted": Fix(
        "satisfy any; with the machine's address in an allow line",
        "the commands send no passwords: let this machine in by its address, or ask the service directly",
    ),
    "no_upstream": Fix(
        "the address in upstream or proxy_pass, and the error log",
        "the proxy answers but does not reach kvstore: start kvstore, or correct the address it is sent to",
    ),
    "host_refused": Fix(
        "proxy_set_header Host 127.0.0.1;",
        "start kvstore with --allowed-hosts and the name, or have the proxy send Host: 127.0.0.1",
    ),
    "daemon_away": Fix("", "start the daemon, and compare its --requests with that of the facade"),
    "store_full": Fix(
        "",
        "free room: see 'When something is full' in docs/operations.md, of a cluster 'When etcd is full' in "
        "docs/cluster.md",
    ),
    "service_fails": Fix(
        "",
        "look at kvstore status and the daemon's log; of a cluster see 'What happens when something fails' "
        "in docs/cluster.md",
    ),
    "service_warns": Fix("", "see docs/monitoring.md for what the service's own checks mean"),
    "weak_sync": Fix("", "start the daemon with --sync always, unless losing the last writes is all right"),
    "version_differs": Fix("", "install the same release here and there"),
    "clock_skew": Fix("", "synchronise the clocks (chrony, systemd-timesyncd) of both machines"),
    "no_answer": Fix(
        "the error log", "look into the log of the proxy and of the service; then run this again"
    ),
    # ── access ──
    "open_to_all": Fix("", "start the service with --access required; docs/access.md says what follows"),
    "token_refused": Fix("", "get another token, and store it with 'kvstore login'"),
    "token_ends": Fix("", "have an admin run 'kvstore token rotate', and store the new token in time"),
    "token_in_the_clear": Fix(
        "listen 443 ssl; in front of the service",
        "start the service with --tls-cert, or have a proxy in front end TLS, and write https://",
    ),
    "credential_added": Fix(
        "no proxy_set_header Authorization",
        "have the proxy pass Authorization on as it came: else whoever reaches it is what its credential is",
    ),
    "metrics_open": Fix(
        "", "have the proxy leave /metrics to kvstore, which asks for a token with the grant monitor"
    ),
    "zeromq_open": Fix(
        "",
        "start the daemon with --access required, and keep its ports from whoever has no business there by a "
        "firewall",
    ),
    # ── speed ──
    "slow_disk": Fix("", "put --data on a faster local disk, and look for what else writes to it"),
    "slow_writes": Fix(
        "", "look for what keeps the machine, the daemon or the way to it busy: it is not the disk's syncs"
    ),
    "slow_events": Fix(
        "tcp_nodelay on;",
        "have small pieces sent at once (HAProxy: option http-no-delay; without it each event waits 200 ms), "
        "and look for what keeps the machine or the network busy",
    ),
    # ── event streams ──
    "buffered": Fix(
        "proxy_buffering off; and no proxy_ignore_headers X-Accel-Buffering",
        "turn response buffering off for /v1/subscribe (Caddy: flush_interval -1; Traefik: no buffering "
        "middleware; HAProxy does not buffer)",
    ),
    "stream_compressed": Fix(
        "gzip off; or no text/event-stream and application/x-ndjson in gzip_types",
        "exclude text/event-stream and application/x-ndjson from compression",
    ),
    "http_1_0": Fix(
        'proxy_http_version 1.1; and proxy_set_header Connection "";',
        "have the proxy speak HTTP/1.1 to kvstore",
    ),
    "stream_changed": Fix(
        "proxy_pass_header and add_header: leave Content-Type and Cache-Control as they are",
        "leave Content-Type and Cache-Control of /v1/subscribe as they are",
    ),
    "idle_cut": Fix(
        "proxy_read_timeout 660s;",
        "let connections be silent for longer than the service's --stream-heartbeat: raise the idle timeout "
        "of the proxy or load balancer (HAProxy: timeout client and timeout server), or lower "
        "--stream-heartbeat",
    ),
    "wait_cut": Fix(
        "proxy_read_timeout 660s;",
        "raise the time that the proxy waits for an answer (HAProxy: timeout client and timeout server; load "
        "balancers: the idle timeout) above the longest ?wait= in use, at most 10 minutes",
    ),
    # ── what passes through ──
    "request_header_lost": Fix(
        "no proxy_set_header for it, and no proxy_cache or proxy_pass_request_headers off",
        "have the proxy pass the header on as the client sent it",
    ),
    "response_header_lost": Fix(
        "no proxy_hide_header, add_header or expires for it",
        "have the proxy pass the header on as the service sent it",
    ),
    "etag_weakened": Fix(
        "gzip off; for this location",
        "turn compression off for this service: it makes ETags weak, and a weak one never fulfils If-Match",
    ),
    "method_refused": Fix(
        "no limit_except, and no dav_methods",
        "let GET, HEAD, PUT, POST, PATCH, DELETE and OPTIONS pass",
    ),
    "path_rewritten": Fix(
        "proxy_pass http://kvstore; without a path or a slash behind the address, and merge_slashes off;",
        "have the proxy pass the path on as it came, or name such keys by ?key= instead of by the path",
    ),
    "query_rewritten": Fix(
        "no rewrite, and no $uri or $args put together by hand in proxy_pass",
        "have the proxy pass the query on as it came",
    ),
    "body_limit": Fix(
        "client_max_body_size 17m;",
        "raise the largest request body that the proxy takes to the service's --max-body-bytes, 17 MiB",
    ),
    "body_changed": Fix(
        "no sub_filter and no other filter on this location",
        "have the proxy leave bodies as they are",
    ),
    "expect_ignored": Fix(
        "",
        "have the proxy answer Expect: 100-continue, or pass it on: else curl waits a second before each "
        "large body",
    ),
    "cached": Fix(
        "proxy_cache off;",
        "turn the cache off for this service: its answers say no-cache or no-store, and something ignores it",
    ),
}
