"""Active learning: which image of the pool to ask a label for next.

Pools in, one score per image out; the higher, the sooner. ``score`` does it for any of ``STRATEGIES``.
"""

from model.query.pool import Pool
from model.query.strategies import DEFAULT_STRATEGY, STRATEGIES, Scores, score

__all__ = ["DEFAULT_STRATEGY", "STRATEGIES", "Pool", "Scores", "score"]
