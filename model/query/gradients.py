"""BADGE: images whose gradients would be large and point in different directions.

Shapes: m images, p dimensions, k classes.
"""

from __future__ import annotations

import numpy as np

from model.head import FloatArray
from model.query.geometry import DistancesTo, Indices, by_square, choose_greedily, farthest, put_first, shuffled_order
from model.query.pool import Pool


def gradient_errors(probabilities: FloatArray, *, multiple: bool) -> FloatArray:
    """Return the gradient of the log loss by the logits, (m, k), were the likeliest answer the right one."""
    if multiple:
        likeliest = probabilities >= 0.5
    else:
        likeliest = probabilities.argmax(axis=1)[:, None] == np.arange(probabilities.shape[1])
    return probabilities - likeliest.astype(np.float32)


def badge_order(pool: Pool, probabilities: FloatArray, batch_size: int, random: np.random.Generator) -> Indices:
    """Choose the batch by k-means++ on the gradients of the loss by the head's weights, the largest gradient first.

    Ash, Zhang, Krishnamurthy, Langford and Agarwal: "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower
    Bounds", 2020. A gradient is the outer product of an error, (k,), and an image's row, (p,), so that the product
    of two gradients is the product of the products of their factors: none is ever written out. The rest is ordered
    by the distance to the batch.
    """
    errors = gradient_errors(probabilities, multiple=pool.multiple)
    squares, distances_to = gradient_distances(errors, pool.features)
    first = farthest(random)(squares)
    others, closest = choose_greedily(distances_to(first), distances_to, batch_size - 1, by_square(random))
    return put_first([first, *others], shuffled_order([-closest], random))


def gradient_distances(errors: FloatArray, rows: FloatArray) -> tuple[FloatArray, DistancesTo]:
    """Return the squared lengths, (m,), of the gradients, and the squared distances of all to one of them."""
    squares: FloatArray = np.einsum("ij,ij->i", errors, errors) * np.einsum("ij,ij->i", rows, rows)

    def distances_to(row: int) -> FloatArray:
        products = (errors @ errors[row]) * (rows @ rows[row])
        distances: FloatArray = np.maximum(squares + squares[row] - 2 * products, 0)
        return distances

    return squares, distances_to
