"""Backends for other people's frameworks, and the plugin for their tests.

Each module needs the framework that it is named after, and nothing else beyond the client:

- ``kvstore_contrib.django.KvstoreCache``, a cache of Django;
- ``kvstore_contrib.cachelib.CachelibCache``, a cache of cachelib, as Flask-Caching takes them;
- ``kvstore_contrib.celery.KvstoreBackend``, the results of Celery's tasks.
"""
