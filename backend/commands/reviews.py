"""What to look at again, what more labels would bring, and which images need none."""

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
    from backend.routes.reviews import encode_label_review

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
    from backend.routes.reviews import encode_forecast

    expected = make_container(start()).review.forecast(project)
    if as_json:
        show(encode_forecast(expected), as_json=True)
    else:
        output.print(expected.sentence)


@commands.command()
def pool(
    project: ProjectArgument,
    limit: Annotated[int, typer.Option(min=1, help="How many to show at most of each.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List images that repeat others, and images that are unlike all others."""
    from backend.routes.reviews import encode_images

    report = make_container(start()).survey.images(project)
    encoded = encode_images(report, limit)
    if as_json:
        show(encoded, as_json=True)
        return
    if encoded["duplicates"]:
        show([{"same image": group["tasks"], "open": group["open"]} for group in encoded["duplicates"]], as_json=False)
    if encoded["outliers"]:
        usual = f"distance (usual: {report.usual_distance:.2g})"
        show(
            [
                {
                    "unlike all others": each["task"],
                    "open": "yes" if each["open"] else "no",
                    usual: f"{each['distance']:.2g}",
                }
                for each in encoded["outliers"]
            ],
            as_json=False,
        )
    output.print(report.sentence)
