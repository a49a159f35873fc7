"""``kvstore top``: ``/metrics``, sampled and shown as figures or on a screen."""
