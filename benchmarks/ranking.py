"""How long each query strategy takes to rank a pool, by its size: time and memory.

    python -m benchmarks.ranking [--images 1000 10000 100000] [--strategies tandem margin badge]

Features are synthetic, as long as those of mobilenet_v2, with a cluster for each class. Measured as in
`benchmarks/growth.py`: on one thread, each in a process of its own. `tandem` is measured twice: with few labels, when
it asks for what is typical, and with enough of them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.described import described
from benchmarks.growth import Measurement, alone, chunks, measurement, quickest, show, timed
from model.query import DEFAULT_STRATEGY, STRATEGIES, Pool, score

RESULTS = Path(__file__).parent / "results"
BLOCKS = (32, 96, 1280)
"""What mobilenet_v2 is embedded as."""
N_CLASSES = 10
FEW_LABELS, MANY_LABELS = 20, 200
BATCH_SIZE = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--output", type=Path, default=RESULTS / "ranking.json")
    arguments = parser.parse_args()
    measurements: list[Measurement] = []
    for strategy in arguments.strategies:
        for n_labels in (FEW_LABELS, MANY_LABELS) if strategy == DEFAULT_STRATEGY else (MANY_LABELS,):
            for n_images in sorted(arguments.images):
                measurements += alone(measure_ranking, strategy, n_labels, n_images)
    show(measurements)
    report = {
        **described("numpy", "scipy", threads=1),
        "results": [asdict(each) for each in measurements],
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure_ranking(strategy: str, n_labels: int, n_images: int) -> list[Measurement]:
    """Rank a pool, as after each new version."""
    pool = make_pool(n_labels, n_images)
    seconds = quickest(lambda: timed(lambda: score(strategy, pool, batch_size=BATCH_SIZE, seed=0)))
    return [measurement(f"{strategy}, {n_labels} labels", n_images, N_CLASSES, BLOCKS, seconds)]


def make_pool(n_labels: int, n_images: int) -> Pool:
    random = np.random.default_rng(0)
    classes = np.arange(n_images + n_labels) % N_CLASSES
    centres = random.normal(1.0, 0.25, (N_CLASSES, sum(BLOCKS))).astype(np.float32)
    features = np.empty((len(classes), sum(BLOCKS)), np.float16)
    for rows in chunks(len(classes)):
        noise = 0.8 * random.standard_normal((len(classes[rows]), sum(BLOCKS)), np.float32)
        features[rows] = np.abs(centres[classes[rows]] + noise)
    probabilities = random.dirichlet(np.full(N_CLASSES, 0.3), n_images)
    return Pool(
        features=features[n_labels:],
        probabilities=probabilities,
        labelled_features=features[:n_labels],
        labelled_targets=classes[:n_labels],
        multiple=False,
        block_sizes=BLOCKS,
    )


if __name__ == "__main__":
    main()
