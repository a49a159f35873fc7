"""kvstore beside what people would pick instead, on one machine and in one run: ``make bench``.

``registry`` is the table of what is measured. A row is a generator in ``rows`` that measures every
contender once, with servers from ``servers`` and load from ``load``; ``run`` calls it round after
round, ``summary`` makes medians and ratios of its samples, and ``report`` and ``plots`` show them.
"""
