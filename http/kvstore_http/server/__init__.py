"""waitress in the gevent hub: connections, the parser, responses, the access log."""
