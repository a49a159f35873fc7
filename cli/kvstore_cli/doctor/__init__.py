"""``kvstore doctor``: what stands between a client and the service, measured from where the client is.

A check is a small function that takes a probe and gives findings, which are data; the checks stand in
one table (``table``), what can be wrong and what to do about it in another (``causes``), and drawing is
apart (``report``).
"""
