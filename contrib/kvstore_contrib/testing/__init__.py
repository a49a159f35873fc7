"""The pytest plugin: a service for tests, with a clock that they move and a network that they break."""
