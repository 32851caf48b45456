"""Reports as pictures."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from backend.routes.drawings import SIDE, reliability_svg
from model.calibration import reliability

SVG = "{http://www.w3.org/2000/svg}"


def test_there_is_a_bar_as_high_as_the_accuracy_for_each_bin_with_answers() -> None:
    probabilities = np.array([[0.92, 0.08], [0.94, 0.06], [0.58, 0.42], [0.56, 0.44]])
    diagram = reliability(probabilities, np.array([0, 0, 0, 1]), n_bins=10)
    root = ElementTree.fromstring(reliability_svg(diagram, "p5-v1"))
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    assert [float(bar.attrib["height"]) for bar in bars] == [SIDE / 2, SIDE]
    assert [bar.findtext(f"{SVG}title") for bar in bars] == [
        "2 answers, confidence 0.570, accuracy 0.500",
        "2 answers, confidence 0.930, accuracy 1.000",
    ]
    assert "confidence; ECE 0.070, 4 answers" in [text.text for text in root.iter(f"{SVG}text")]


def test_a_title_is_text_whatever_it_is() -> None:
    diagram = reliability(np.zeros((0, 2)), np.zeros(0, int))
    root = ElementTree.fromstring(reliability_svg(diagram, '<script>"&amp;</script>'))
    assert root.find(f"{SVG}script") is None
    assert root.findtext(f"{SVG}text") == '<script>"&amp;</script>'
