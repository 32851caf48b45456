"""Learning from folders of images, without any Label Studio."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from backend.commands.context import JsonOption, start
from backend.errors import InvalidRequest
from backend.terminal import messages, output, progress_bar, show

FolderArgument = Annotated[Path, typer.Argument(help="A sub-folder per class, or labels.csv with columns file,labels.")]
SIMULATED_STRATEGIES = ["random", "tandem"]

commands = typer.Typer()


@commands.command()
def fit(
    folder: FolderArgument,
    pool: Annotated[Path | None, typer.Option(help="A folder of unlabelled images, which help.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="A folder like FOLDER to measure on; a fifth of it otherwise.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides what is random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Learn from a folder of images without any Label Studio, and say what the result is worth."""
    settings = start("fit")
    from backend.labelled_folder import image_files, read_folder
    from backend.processes import one_linear_algebra_thread
    from backend.services.folders import FolderSettings, fit_folder

    unlabelled = image_files(pool) if pool else []
    if pool and not unlabelled:
        raise InvalidRequest(f"{pool} is no folder with images")
    labelled = read_folder(folder)
    test_part = read_folder(test, labelled.schema) if test else None
    folder_settings = FolderSettings(
        backbone=settings.backbone,
        weights=settings.weights,
        image_views=settings.image_views,
        device=settings.device,
        finetune_min_labels=settings.finetune_min_labels,
        max_image_pixels=settings.max_image_pixels,
        seed=seed,
    )
    one_linear_algebra_thread()
    with progress_bar() as on_progress:
        result = fit_folder(labelled, unlabelled, test_part, folder_settings, on_progress)
    encoded = {
        "metrics": asdict(result.metrics),
        "uncalibrated": {"ece": result.uncalibrated_ece, "log_loss": result.uncalibrated_log_loss},
        "kind": result.kind.value,
        "n_labels": result.n_labels,
        "n_test": result.n_test,
        "class_names": list(result.class_names),
        "method": result.method,
        "seconds": asdict(result.seconds),
    }
    if as_json:
        show(encoded, as_json=True)
    else:
        rows = asdict(result.metrics) | {"uncalibrated ece": result.uncalibrated_ece}
        show([{"measure": name, "value": round(value, 4)} for name, value in rows.items()], as_json=False)
        output.print(f"{result.kind.value} on {result.n_labels} labels, {result.seconds.total:.1f} s")
        if result.note:
            messages.print(f"[yellow]{escape(result.note)}[/yellow]")


@commands.command()
def simulate(
    folder: FolderArgument,
    strategies: Annotated[
        list[str], typer.Option(help="What to compare with random: repeated, or separated by commas.")
    ] = SIMULATED_STRATEGIES,
    seeds: Annotated[int, typer.Option(min=1, help="How many replays of each strategy.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Labels until there is a new model.")] = 5,
    test_share: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the images to measure on.")] = 0.3,
    budgets: Annotated[
        list[str] | None, typer.Option(help="Numbers of labels to compare at: repeated, or separated by commas.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--output", help="A JSON file to write.")] = None,
    figure: Annotated[Path | None, typer.Option(help="A .png, .svg or .pdf file to draw the curves into.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the labelling of a labelled folder: how many labels each query strategy would have taken."""
    settings = start("simulate")
    check_files(json_file, figure)
    from backend.labelled_folder import read_folder
    from backend.processes import one_linear_algebra_thread
    from backend.services.simulation import SimulationSettings, simulate_labelling
    from model.query_report import accuracy_rows, draw, saving_rows

    simulation_settings = SimulationSettings(
        backbone=settings.backbone,
        weights=settings.weights,
        image_views=settings.image_views,
        device=settings.device,
        max_image_pixels=settings.max_image_pixels,
        strategies=listed(strategies),
        n_seeds=seeds,
        batch_size=batch_size,
        test_share=test_share,
        budgets=as_numbers(listed(budgets or [])),
    )
    labelled = read_folder(folder)
    one_linear_algebra_thread()
    with progress_bar() as on_progress:
        result = simulate_labelling(
            folder.resolve().name, labelled.schema, labelled.paths, labelled.labelled, simulation_settings, on_progress
        )
    if as_json:
        show(asdict(result), as_json=True)
    else:
        show(accuracy_rows(result.curves), as_json=False)
        show(saving_rows(result.curves), as_json=False)
        output.print(
            f"accuracy in % on {result.n_test} held-out images of {result.n_images}, "
            f"mean of {seeds} replays with a new model every {batch_size} labels"
        )
    if result.note:
        messages.print(f"[yellow]{escape(result.note)}[/yellow]")
    if json_file:
        json_file.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    if figure and find_spec("matplotlib"):
        draw(result.curves, figure)


def listed(values: list[str]) -> list[str]:
    """Return the values of an option that may be repeated, and hold several separated by commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def as_numbers(values: list[str]) -> list[int]:
    """Return whole numbers.

    Raises:
        InvalidRequest: one of them is none.
    """
    for value in values:
        if not value.isdecimal():
            raise InvalidRequest(f"{value!r} is not a number of labels")
    return [int(value) for value in values]


def check_files(json_file: Path | None, figure: Path | None) -> None:
    """Find out before the work whether its results can be written, and say so if there will be no figure.

    Raises:
        InvalidRequest: the files cannot be written.
    """
    for path in (json_file, figure):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise InvalidRequest(f"{path} cannot be written: it is a folder, or the folder around it does not exist")
    if figure and figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InvalidRequest(f"{figure} is neither a .png, .svg nor .pdf file")
    if figure and not find_spec("matplotlib"):
        messages.print(
            "there will be no figure without matplotlib: pip install 'tandem-label-studio[plots]'", markup=False
        )
