"""Reports as pictures."""

from __future__ import annotations

from xml.sax.saxutils import escape

from model.calibration import Reliability

SIDE = 300
MARGIN = 40


def reliability_svg(diagram: Reliability, title: str) -> str:
    """Return a reliability diagram as SVG: bars of accuracy over confidence; on the diagonal they keep their word.

    A bar is the fainter the fewer answers are in it.
    """
    n_bins, most = len(diagram.counts), max(1, *diagram.counts)
    width = SIDE / n_bins
    bars = "".join(
        f'<rect x="{MARGIN + index * width:.1f}" y="{MARGIN + SIDE * (1 - accuracy):.1f}" width="{width:.1f}" '
        f'height="{SIDE * accuracy:.1f}" fill="#1f77b4" fill-opacity="{0.15 + 0.85 * count / most:.2f}">'
        f"<title>{count} answers, confidence {confidence:.3f}, accuracy {accuracy:.3f}</title></rect>"
        for index, (confidence, accuracy, count) in enumerate(
            zip(diagram.confidences, diagram.accuracies, diagram.counts, strict=True)
        )
        if count
    )
    low, high, whole = MARGIN, MARGIN + SIDE, 2 * MARGIN + SIDE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{whole}" viewBox="0 0 {whole} {whole}" '
        f'font-family="sans-serif" font-size="12" text-anchor="middle">'
        f'<rect width="{whole}" height="{whole}" fill="white"/>{bars}'
        f'<rect x="{low}" y="{low}" width="{SIDE}" height="{SIDE}" fill="none" stroke="black"/>'
        f'<line x1="{low}" y1="{high}" x2="{high}" y2="{low}" stroke="black" stroke-dasharray="4"/>'
        f'<text x="{whole / 2}" y="{low / 2}">{escape(title)}</text>'
        f'<text x="{whole / 2}" y="{high + 26}">confidence; ECE {diagram.ece:.3f}, {sum(diagram.counts)} answers</text>'
        f'<text x="14" y="{whole / 2}" transform="rotate(-90 14 {whole / 2})">accuracy</text>'
        f'<text x="{low}" y="{high + 14}">0</text><text x="{high}" y="{high + 14}">1</text>'
        f'<text x="{low - 8}" y="{low + 4}">1</text></svg>'
    )
