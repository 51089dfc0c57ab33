"""The `kinji` command: one sub-command per experiment, and what turns records into figures, tables, verdicts."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kinji.errors import KinjiError
from kinji.experiments.cases import CASES, Case
from kinji.records import layout

app = typer.Typer(
    help="Re-run, redraw and judge the experiments of approximate matrix factorization for deep learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Scale = Annotated[str, typer.Option(help=f"One of {', '.join(layout.SCALES)}.")]
Machine = Annotated[str | None, typer.Option(help="Draw from this machine's committed measurements.")]
TRY_AGAIN = 75  # exit status of a run that has left a checkpoint: EX_TEMPFAIL of sysexits.h


def _experiment_command(case_type: type[Case]) -> Callable[..., None]:
    """Make the command that runs one case of `case_type`: its flags are the fields of the class."""

    def command(*, out: Path | None, device: str, threads: int, record_failure: bool, **parameters: Any) -> None:
        from kinji.experiments.run import Interrupted, default_path, run_case

        values = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
        case = case_type(**values)
        out = out or default_path(case)
        try:
            run_case(case, out=out, device=device, threads=threads, record_failure=record_failure)
        except Interrupted as interrupted:
            typer.echo(f"{interrupted}", err=True)
            raise typer.Exit(TRY_AGAIN) from interrupted
        typer.echo(f"{out}")

    command.__doc__ = case_type.__doc__
    command.__signature__ = _signature(case_type)  # type: ignore[attr-defined]
    return command


def _signature(case_type: type[Case]) -> inspect.Signature:
    hints = typing.get_type_hints(case_type)
    parameters = [_flag(f.name, hints[f.name], f.default) for f in dataclasses.fields(case_type)]
    parameters += [
        _flag("out", Path | None, None, help="The record's file.", default_text="results/by-hand/..."),
        _flag("device", str, "cpu", help="cpu or cuda; never replaced by the other."),
        _flag("threads", int, os.cpu_count() or 1, help="Threads of torch, numba and BLAS."),
        _flag("record_failure", bool, False, help="On failure leave the error in the record and exit 0."),
    ]
    return inspect.Signature(parameters)


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return parse


def _flag(name: str, hint: Any, default: Any, help: str = "", default_text: str | None = None) -> inspect.Parameter:
    required, parser = default is dataclasses.MISSING, None
    if typing.get_origin(hint) is tuple:
        element, default = typing.get_args(hint)[0], default if required else list(default)
        if typing.get_origin(element) is typing.Literal:  # of which typer takes no lists
            element, parser = str, _one_of(typing.get_args(element))
        hint = list[element]  # type: ignore[valid-type]
    option = typer.Option(help=help or None, show_default=default_text or True, parser=parser)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[hint, option],
    )


for _case_type in CASES.values():
    app.command(_case_type.experiment.replace("_", "-"), rich_help_panel="Experiments: run one case")(
        _experiment_command(_case_type)
    )


@app.command(rich_help_panel="From records")
def collect(
    experiment: str,
    records: list[Path],
    scale: Scale = "smoke",
    out: Annotated[Path, typer.Option(help="The table's file.")] = Path("table.csv"),
) -> None:
    """Join RECORDS of one experiment into its tidy table, one observation a row."""
    from kinji.records.tables import failures, tidy

    tidy(sorted(records), layout.check_scale(scale)).to_csv(out, index=False)
    for name, message in failures(records).items():
        typer.echo(f"{experiment} {name} failed: {message}", err=True)


@app.command(rich_help_panel="From records")
def figure(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(CASES)}.")],
    scale: Scale = "smoke",
    machine: Machine = None,
) -> None:
    """Redraw one figure from the records that exist, or from the committed ones; no experiment runs."""
    from kinji.report.figures import draw_figure

    for file in draw_figure(name, scale, machine):
        typer.echo(f"{file}")


@app.command(rich_help_panel="From records")
def table(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(CASES)}.")],
    scale: Scale = "smoke",
    machine: Machine = None,
) -> None:
    """Write one published table, as CSV and as booktabs LaTeX, from the records."""
    from kinji.report.summaries import write_summary

    for file in write_summary(name, scale, machine):
        typer.echo(f"{file}")


@app.command(rich_help_panel="From records")
def claims(
    scale: Scale = "smoke",
    out: Annotated[Path | None, typer.Option(help="Write the table here as CSV too.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the decided claims here (.png, .pdf, .svg).")] = None,
) -> None:
    """Judge every claim from the records and print the claims table."""
    from kinji.records import judge_all, verdict_table
    from kinji.report.terminal import print_claims

    rows = verdict_table(judge_all(scale))
    if picture:
        from kinji.report.claims_picture import draw_claims

        draw_claims(rows).savefig(picture)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(out, index=False)
    print_claims(rows)


@app.command(rich_help_panel="From records")
def notebook(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(CASES)}.")],
    scale: Scale = "smoke",
    out: Annotated[Path | None, typer.Option(help="Keep the executed notebook here (.ipynb or .html).")] = None,
) -> None:
    """Execute one notebook against the records."""
    from kinji.report.notebooks import execute_notebook

    typer.echo(f"{execute_notebook(name, layout.check_scale(scale), out)}")


@app.command(rich_help_panel="From records")
def report(scale: Scale = "smoke") -> None:
    """Write the report, HTML and PDF, from tables, figures and verdicts that exist."""
    from kinji.report.build import write_report

    for file in write_report(scale):
        typer.echo(f"{file}")


@app.command(rich_help_panel="From records")
def fingerprints(records: list[Path]) -> None:
    """Print, per record, the hash of what must come out the same in every run: all but times and peaks."""
    from kinji.records import fingerprint, read_record

    for path in sorted(records):
        typer.echo(f"{fingerprint(read_record(path))}  {path}")


@app.command(rich_help_panel="From records")
def keep(scale: Scale = "smoke") -> None:
    """Copy this run's finished records to paper/measured/<machine>/<scale>/, to be committed."""
    from kinji.records.keep import keep_records

    for file in keep_records(scale):
        typer.echo(f"{file}")


@app.command(rich_help_panel="From records")
def forget_failures(scale: Scale = "smoke") -> None:
    """Delete the records of failed cases, so that the next run tries them again."""
    from kinji.records.keep import forget_failed

    for file in forget_failed(scale):
        typer.echo(f"forgot {file}", err=True)


@app.command(rich_help_panel="From records")
def give_up(scale: Scale = "smoke") -> None:
    """Leave an error in place of each record that is missing, so that the report can be made without it."""
    from kinji.workflow.give_up import give_up as write_errors

    for file in write_errors(layout.check_scale(scale)):
        typer.echo(f"{file} is missing: its process died", err=True)


@app.command(rich_help_panel="On a cluster")
def plan(scale: Scale = "paper") -> None:
    """Print what each experiment of a scale asks of a cluster: GPU-hours, memory, disk."""
    from kinji.workflow.plan import print_plan

    print_plan(layout.check_scale(scale))


@app.command(rich_help_panel="On a cluster")
def job_script(
    experiment: Annotated[str, typer.Argument(help=f"One of {', '.join(CASES)}.")],
    case: Annotated[
        str | None, typer.Option(help="Its name, as in `snakemake -n`.", show_default="the largest")
    ] = None,
    scale: Scale = "paper",
) -> None:
    """Print the script of a case's job, as `snakemake --profile slurm` would submit it; nothing is submitted."""
    from kinji.workflow import job_script as script

    case = case or script.largest_case(layout.check_scale(scale), experiment)
    typer.echo(script.job_script(scale, experiment, case))


@app.command(rich_help_panel="On a cluster")
def verify_imagenet(folder: Path) -> None:
    """Check that FOLDER holds the whole ImageNet of 2012, and print a checksum of its listing."""
    from kinji.workflow.imagenet import verify_imagenet as list_images

    for one in list_images(folder):
        typer.echo(f"{one.part}: {one.images:,} images in {one.classes:,} classes, listing {one.sha256}")


@app.command(rich_help_panel="On a cluster")
def write_images(
    folder: Annotated[Path, typer.Argument(help="Where train/<class>/ and val/<class>/ go.")],
    train: Annotated[int, typer.Option(help="Images to train on.")] = 50000,
    val: Annotated[int, typer.Option(help="Images to test on.")] = 10000,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Fixes every image.")] = 0,
) -> None:
    """Write procedural images as JPEG files in the layout of ImageNet, to try its path without it."""
    from kinji.training.procedural import write_folders

    write_folders(folder, {"train": train, "test": val}, size=size, seed=seed)
    typer.echo(f"{folder}: {train:,} images in train/, {val:,} in val/")


@app.command(rich_help_panel="On a cluster")
def probe(
    out: Annotated[Path, typer.Option(help="The first rank's file.")],
    by: Annotated[str, typer.Option(help="How the ranks find each other: none, torch or mpi.")] = "none",
    ranks: Annotated[int, typer.Option(help="How many must take part.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda; never replaced by the other.")] = "cpu",
) -> None:
    """Check that the ranks of a job find each other and their GPUs."""
    from kinji.workflow.probe import probe as take_part

    take_part(by, ranks, device, out)


@app.command(rich_help_panel="From the cost model")
def predict_step(
    model: Annotated[
        str, typer.Option(help="resnet18, resnet50, or bert-base, bert-large, each with -block for one.")
    ] = "resnet50",
    gpus: Annotated[int, typer.Option(help="GPUs that share the work.")] = 1024,
    batch: Annotated[int, typer.Option(help="Examples on each GPU.")] = 32,
    fabric: Annotated[str, typer.Option(help="abci or ethernet.")] = "abci",
    size: Annotated[int | None, typer.Option(help="Pixels or tokens.", show_default="224 pixels, 128 tokens")] = None,
    fisher: Annotated[str, typer.Option(help="empirical or sampled.")] = "empirical",
    batch_norm: Annotated[str, typer.Option(help="unit-wise or full.")] = "unit-wise",
    refreshed: Annotated[float, typer.Option(help="Share of the statistics that a step refreshes.")] = 1.0,
    ownership: Annotated[str, typer.Option(help="released, contiguous or balanced.")] = "released",
) -> None:
    """Predict the seconds of one step of SGD and of K-FAC by part, on V100 GPUs, and say where to believe it."""
    from kinji.report.predicted_step import print_step

    print_step(model, gpus, batch, fabric, size, fisher, batch_norm, refreshed, ownership)


def main() -> None:
    """Run the command line; a mistake the user can mend ends in one line and exit status 1."""
    logger = logging.getLogger("kinji")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    try:
        app()
    except (KinjiError, ValueError, ArithmeticError, OSError) as error:
        sys.exit(f"kinji: error: {error}")


if __name__ == "__main__":
    main()
