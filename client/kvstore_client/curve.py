"""Making CURVE keys, which prove to a daemon who a client is."""

from __future__ import annotations

import zmq


def new_keys() -> tuple[str, str]:
    """A public key and its secret key, in Z85, that nobody else has. The public one goes to the service; the
    secret one stays with the client, in its login file."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()
