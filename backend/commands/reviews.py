"""What to look at again, and what more labels would bring."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.commands.context import JsonOption, ProjectArgument, make_container, start
from backend.terminal import output, show

commands = typer.Typer()


@commands.command()
def suspects(
    project: ProjectArgument,
    limit: Annotated[int, typer.Option(min=1, help="How many to show at most.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List the labels that are probably wrong, the most probable first, and say how far annotators agree."""
    from backend.routes.api import encode_label_review

    review = make_container(start()).review.suspects(project)
    encoded = encode_label_review(review, limit)
    if as_json:
        show(encoded, as_json=True)
        return
    if encoded["suspects"]:
        show([each | {"confidence": round(each["confidence"], 3)} for each in encoded["suspects"]], as_json=False)
    output.print(f"{len(review.suspects)} of {review.n_checked} labels are suspect")
    agreement = review.agreement
    if agreement.share is not None:
        output.print(
            f"annotators agree on {agreement.share:.0%} of the {agreement.n_tasks} tasks that several answered"
        )


@commands.command()
def forecast(project: ProjectArgument, as_json: JsonOption = False) -> None:
    """Say what more labels would bring."""
    from backend.routes.api import encode_forecast

    expected = make_container(start()).review.forecast(project)
    if as_json:
        show(encode_forecast(expected), as_json=True)
    else:
        output.print(expected.sentence)
