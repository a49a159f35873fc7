"""``kvstore top``: what ``/metrics`` says, again and again, as figures and as a screen."""
