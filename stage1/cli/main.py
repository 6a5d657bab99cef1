"""The `stage1` command: options → config → one call, no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from stage1.common import files
from stage1.common.memory import keep_freed_memory
from vidshard import __version__
from vidshard.storage.urls import location
from vidshard.util.console import EXIT_OK, EXIT_STOPPED, LOCAL_PATH, ExitCodeGroup

CACHE_DIR = click.option(
    "--cache-dir",
    type=LOCAL_PATH,
    help="Keeps shards of s3://, gs:// and https://.  [default: in the folder for temporary files]",
)
CACHE_GB = click.option(
    "--cache-gb", type=float, help="How much it may keep, 10⁹ bytes; the oldest goes.  [default: 80 % of the free disk]"
)

CHECKPOINT = click.option(
    "--checkpoint",
    type=LOCAL_PATH,
    default=files.DEFAULT_CHECKPOINT,
    show_default=True,
    help="The trained model.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
BATCH_SIZE = click.option("--batch-size", type=int, default=8, show_default=True, help="Clips scored at once.")
RELATIVE = click.option(
    "--relative",
    is_flag=True,
    help="Untrimmed videos: score each clip beside the median of its video, so that no camera is suspicious as such.",
)
ANNOTATIONS = click.option(
    "--annotations",
    type=LOCAL_PATH,
    help="Where the true events are: lines of name, class, first and last frame, as UCF-Crime writes them.",
)
CONFIG = click.option(
    "--config",
    "config_path",
    type=LOCAL_PATH,
    help="TOML file of training options, such as a run.toml.",
)


@click.group(cls=ExitCodeGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Tell normal from crime in clips read from shards."""
    keep_freed_memory()


@main.command()
@click.option(
    "--shards",
    type=location,
    metavar="PLACE",
    default="shards/Train",
    show_default=True,
    help="Shards to train on: a path or a URL, as every PLACE.",
)
@click.option("--val-shards", type=location, metavar="PLACE", help="Shards to validate on; the best epoch is kept.")
@click.option("--out", type=LOCAL_PATH, default=files.DEFAULT_RUN, show_default=True, help="Output folder.")
@click.option("--epochs", type=int, default=5, show_default=True, help="Passes over the training clips.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Of each process.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Batches of each process that make a step.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Highest learning rate of the schedule.")
@click.option("--weight-decay", type=float, default=0.05, show_default=True)
@click.option("--warmup-fraction", type=float, default=0.1, show_default=True, help="Share of all steps.")
@click.option("--grad-clip", type=float, default=1.0, show_default=True, help="Largest gradient norm; 0 is no limit.")
@click.option("--label-smoothing", type=float, default=0.0, show_default=True)
@click.option(
    "--mixup",
    type=float,
    default=0.0,
    show_default=True,
    help="Mix pairs of clips by shares from Beta(α, α), e.g. 0.2; 0: no. The accuracy costs one more forward pass.",
)
@click.option(
    "--ema", type=float, default=0.0, show_default=True, help="Keep averaged weights: decay a step, e.g. 0.99; 0: no."
)
@click.option(
    "--patience", type=int, default=0, show_default=True, help="Stop after so many epochs without a better one; 0: no."
)
@click.option(
    "--val-fraction",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of the videos held out where there is no --val-shards; 0 turns it off.",
)
@click.option("--marks", type=LOCAL_PATH, help="CSV exported from a report: what a reviewer said of clips.")
@click.option(
    "--marks-as",
    type=click.Choice(["labels", "exclusions"]),
    default="labels",
    show_default=True,
    help="Take marks as labels, or leave out the clips whose mark contradicts their label.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="What all that is random is drawn by.")
@DEVICE
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of convolutions and matrix products while training; weights and validation stay fp32.",
)
@click.option("--compile", is_flag=True, default=False, help="Train through torch.compile.")
@click.option("--channels-last", is_flag=True, default=False, help="Keep weights and clips in channels-last memory.")
@click.option("--workers", type=int, default=1, show_default=True, help="Threads that read shards.")
@click.option(
    "--clips-per-video-per-epoch",
    type=int,
    default=1,
    show_default=True,
    help="Clips that an epoch takes of each video, others each epoch; 0: all, however long a video is.",
)
@click.option(
    "--bags",
    metavar="[topk|attention]",
    default="",
    help="For untrimmed videos: learn from a video as a bag of clips, by its highest ones or by attention over them. "
    "A step is one video a process, times --accumulate.",
)
@click.option("--bag-clips", type=int, default=0, show_default=True, help="Clips of a bag, others each epoch; 0: all.")
@click.option(
    "--balanced",
    is_flag=True,
    default=False,
    help="As many crime as normal clips in an epoch, instead of a weighted loss.",
)
@click.option(
    "--block-shards",
    type=int,
    default=0,
    show_default=True,
    help="For network disks: shuffle within windows of so many shards, read in sequence; 0 shuffles all clips.",
)
@click.option(
    "--checksums",
    type=click.Choice(["first", "always", "never"]),
    default="first",
    show_default=True,
    help="When to verify the clips' checksums.",
)
@click.option("--max-bad-clips", type=int, default=0, show_default=True, help="Damaged clips to replace.")
@CACHE_DIR
@CACHE_GB
@click.option(
    "--checkpoint-minutes",
    type=float,
    default=10.0,
    show_default=True,
    help="Between checkpoints within an epoch; 0: only at the end of each.",
)
@click.option("--tensorboard", is_flag=True, default=False, help="Write event files too, to OUT/tensorboard.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="always",
    type=click.Choice(["always", "auto"]),
    metavar="[auto]",
    callback=lambda _context, _option, value: {None: False, "always": True}.get(value, value),
    help="Go on with the run in --out, in mid-epoch too; auto: start one where there is none.",
)
@click.option(
    "--model-size", type=click.Choice(["small", "base", "large"]), default="base", show_default=True, help="Width."
)
@click.option(
    "--backbone",
    type=click.Choice(["stage1", "r3d_18", "mc3_18", "r2plus1d_18"]),
    default="stage1",
    show_default=True,
    help="Our network, or one of torchvision's.",
)
@click.option(
    "--weights",
    metavar="NAME|FILE",
    help="What --backbone starts from: KINETICS400_V1 (asks before it downloads), or a file.",
)
@click.option(
    "--config",
    "config_path",
    type=LOCAL_PATH,
    help="TOML file of options, such as the run.toml of a run; options given beside it win.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any option of the TOML file, such as model.dropout=0.3; may be repeated.",
)
@click.option(
    "--preset",
    type=click.Choice(["default", "notebook"]),
    default="default",
    show_default=True,
    help="notebook: 5 epochs, batch 4, learning rate 1e-4, clipping at 1.0.",
)
def train(
    preset: str,
    config_path: Path | None,
    settings: tuple[str, ...],
    model_size: str,
    backbone: str,
    weights: str | None,
    **options: Any,
) -> int | None:
    """Train a model on shards; the best epoch is written to --out.

    Exit codes: 0 done; 75 stopped by SIGTERM or SIGUSR1, with a checkpoint: run it again with --resume; 1 all else.
    """
    from stage1.model import backbones
    from stage1.model.network import SIZES
    from stage1.training.config import PRESETS, make_config, merge, parse_setting, read_toml
    from stage1.training.loop import RunStopped, train

    source = click.get_current_context().get_parameter_source
    given = {name: value for name, value in options.items() if source(name) is not ParameterSource.DEFAULT}
    from_file = read_toml(config_path) if config_path else {}
    network: dict[str, Any] = {}
    if source("model_size") is not ParameterSource.DEFAULT:
        network = {"model": SIZES[model_size]}
    if weights or source("backbone") is not ParameterSource.DEFAULT:
        network = merge(network, backbones.training_options(backbone, weights, confirm=click.confirm))
    config = make_config(merge(options, PRESETS[preset], from_file, network, *map(parse_setting, settings), given))
    try:
        train(config)
    except RunStopped as stopped:
        click.echo(str(stopped), err=True)
        return EXIT_STOPPED
    return None


@main.command()
@click.option(
    "--shards",
    type=location,
    metavar="PLACE",
    default="shards/Test",
    show_default=True,
    help="Shards to score.",
)
@click.option("--videos", multiple=True, metavar="PATH…", help="MP4s instead of shards: files, folders or globs.")
@click.argument("more_videos", nargs=-1, metavar="")
@CHECKPOINT
@click.option("--out", type=LOCAL_PATH, default="stage1_output", show_default=True, help="Output folder.")
@click.option("--threshold", type=float, help="Detect clips with at least this P(crime).  [default: the checkpoint's]")
@RELATIVE
@BATCH_SIZE
@DEVICE
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="bf16: autocast."
)
@click.option("--threads", type=int, help="Batches at once, on the CPU; scores do not depend on it.  [default: cores]")
@click.option("--resume", is_flag=True, help="Go on with a run into --out that was stopped.")
@click.option(
    "--attention-format",
    type=click.Choice(["pt", "shards"]),
    default="pt",
    show_default=True,
    help="For stage 2: one file of tensors (8 GiB of clips at most), or WebDataset shards of any size.",
)
@ANNOTATIONS
@click.option(
    "--event-low-ratio",
    type=float,
    default=0.8,
    show_default=True,
    help="An event goes on while its score is this share of the threshold.",
)
@click.option("--event-smooth-seconds", type=float, default=5.0, show_default=True, help="Moving mean of the scores.")
@click.option("--event-min-seconds", type=float, default=4.0, show_default=True, help="Shorter events are dropped.")
@click.option("--workers", type=int, help="Processes that decode, with --videos.")
@CACHE_DIR
@CACHE_GB
@click.option("--video-root", type=LOCAL_PATH, help="Where the videos are now, if they were moved.")
@click.option("--allow-sampling-mismatch", is_flag=True, help="Score clips sampled unlike the training clips.")
def infer(more_videos: tuple[str, ...], videos: tuple[str, ...], **options: Any) -> int:
    """Score every clip; write the detections and where the model looked.

    Exit codes: 0 all well, 2 done but some clips or videos could not be read, 1 anything else.
    """
    from stage1.inference.events import EventConfig
    from stage1.inference.run import InferConfig, infer

    if more_videos and not videos:
        raise click.UsageError(f"unexpected argument {more_videos[0]!r}; name MP4s with --videos PATH…")
    if videos and click.get_current_context().get_parameter_source("shards") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--shards and --videos exclude each other: give one of them")
    if videos and options["video_root"] is not None:
        raise click.UsageError("--video-root and --videos exclude each other: --videos says where the videos are")
    if not videos and options["workers"] is not None:
        raise click.UsageError("--workers is an option of --videos: there is nothing to decode in shards")
    events = EventConfig(
        **{name: options.pop(f"event_{name}") for name in ("low_ratio", "smooth_seconds", "min_seconds")}
    )
    report = infer(InferConfig(videos=videos + more_videos, events=events, **options))
    if report is None:  # rank 0 tells it
        return EXIT_OK
    if report.problems:
        click.echo(report.problems, err=True)
    click.echo(report.summary)
    return report.exit_code


@main.command()
@click.option(
    "--shards",
    type=location,
    metavar="PLACE",
    multiple=True,
    default=("shards/Train", "shards/Validation"),
    show_default=True,
    help="Trained on and held out by turns; may be repeated.",
)
@click.option("--test-shards", type=location, metavar="PLACE", help="Also score these, trained on all of --shards.")
@click.option("--out", type=LOCAL_PATH, default="crossval", show_default=True, help="Output folder.")
@click.option(
    "--folds", type=int, default=5, show_default=True, help="Parts, each of whole recordings, held out by turns."
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Repetitions, each with other folds.")
@click.option("--epochs", type=int, default=20, show_default=True, help="All are done: no epoch is chosen.")
@click.option("--seed", type=int, default=0, show_default=True, help="The first seed.")
@DEVICE
@click.option(
    "--random-split/--no-random-split",
    default=True,
    show_default=True,
    help="Show beside it how a split that leaks would flatter.",
)
@click.option(
    "--shortcuts/--no-shortcuts",
    default=True,
    show_default=True,
    help="Show beside it what file sizes, single frames and the like reach.",
)
@click.option("--save-attention", is_flag=True, help="Write out-of-fold predictions and attention, for stage 2.")
@CACHE_DIR
@CACHE_GB
@CONFIG
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A training option, such as lr=0.0005.")
def crossval(
    shards: tuple[Any, ...], config_path: Path | None, settings: tuple[str, ...], **options: Any
) -> int | None:
    """What accuracy to expect on new recordings: cross-validation by source group, with intervals.

    Run the same command again to go on where it was stopped. Exit codes: 0 done; 75 stopped by SIGTERM or SIGUSR1, with
    a checkpoint; 1 all else.
    """
    from stage1.common import distributed
    from stage1.evaluation.crossval import CrossvalConfig, crossval
    from stage1.training.config import make_config, merge, parse_setting, read_toml
    from stage1.training.loop import RunStopped

    distributed.expect_one_process("crossval")
    source = click.get_current_context().get_parameter_source
    names = ("epochs", "seed", "device", "cache_dir", "cache_gb")
    training = {name: options.pop(name) for name in names}
    given = {name: value for name, value in training.items() if source(name) is not ParameterSource.DEFAULT}
    from_file = read_toml(config_path) if config_path else {}
    config = make_config(merge(training, from_file, *map(parse_setting, settings), given))
    try:
        click.echo(crossval(CrossvalConfig(shards=shards, training=config, **options)))
    except RunStopped as stopped:
        click.echo(str(stopped), err=True)
        return EXIT_STOPPED
    return None


@main.command()
@click.option(
    "--shards", type=location, metavar="PLACE", default="shards/Train", show_default=True, help="Clips to show."
)
@click.option(
    "--out",
    type=LOCAL_PATH,
    default="augmentation.png",
    show_default=True,
    help="The picture to write.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="What clips and changes are drawn by.")
@CONFIG
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Such as transform.erase_probability=0.5.")
def preview_augment(shards: Any, out: Path, seed: int, config_path: Path | None, settings: tuple[str, ...]) -> None:
    """Write a sheet that shows clips as training would see them."""
    from stage1.training.config import make_config, merge, parse_setting, read_toml
    from stage1.training.preview_augment import preview_augment

    from_file = read_toml(config_path) if config_path else {}
    config = make_config(merge(from_file, *map(parse_setting, settings)))
    click.echo(f"✓ Augmented clips saved to: {preview_augment(shards, config.transform, out, seed=seed)}")


@main.command()
@click.argument("folder", metavar="[DIR]", type=LOCAL_PATH, default="stage1_output")
def visualize(folder: Path) -> None:
    """Draw the strongest detections in DIR (stage1_output): frames, and the attention under them."""
    from stage1.review.film_strip import visualize

    picture, num_shown = visualize(folder)
    if not num_shown:
        click.echo(f"No clip was detected as crime: see {folder / 'predictions.csv'} for all confidences")
    click.echo(f"✓ Attention visualization saved to: {picture}")


@main.command()
@click.option(
    "--shards", type=location, metavar="PLACE", default="shards/Test", show_default=True, help="Shards to judge on."
)
@CHECKPOINT
@click.option(
    "--val-shards", type=location, metavar="PLACE", help="Shards to calibrate and to choose the threshold on."
)
@click.option("--train-shards", type=location, metavar="PLACE", help="Shards to fit the shortcut baselines on.")
@click.option(
    "--target",
    help="Choose the threshold on --val-shards and store it in the checkpoint: f1, accuracy, recall=R, fpr=R or "
    "false-alarms-per-hour=R.",
)
@click.option("--prior", type=float, help="Share of crime where the model will be used.  [default: of --val-shards]")
@ANNOTATIONS
@RELATIVE
@click.option(
    "--scores",
    type=LOCAL_PATH,
    help="Instead of a checkpoint, anybody's scores: a folder of NAME.npy, or a CSV (video, score).",
)
@click.option("--frame-counts", type=LOCAL_PATH, help="List of `NAME.mp4 FRAMES`, where --annotations has none.")
@click.option(
    "--trained-on",
    type=LOCAL_PATH,
    multiple=True,
    help="List of videos that any stage was trained on; refused when it names one of --annotations.",
)
@click.option("--snippet-frames", type=int, default=16, show_default=True, help="Frames of one score of --scores.")
@click.option("--fps", type=float, default=30.0, show_default=True, help="Of the videos, where --scores has seconds.")
@click.option("--out", type=LOCAL_PATH, default="evaluation", show_default=True, help="Output folder.")
@BATCH_SIZE
@DEVICE
def evaluate(**options: Any) -> None:
    """How good a model is, and how sure that is: metrics with intervals, conventions beside them.

    On --shards with --checkpoint. Or of anybody's --scores against --annotations; of --annotations alone, what scorers
    reach that know the truth.
    """
    from stage1.common import distributed
    from stage1.evaluation.foreign_scores import ScoresConfig, evaluate_scores
    from stage1.evaluation.run import EvaluateConfig, evaluate

    distributed.expect_one_process("evaluate")
    source = click.get_current_context().get_parameter_source
    of_lists = {"annotations", "scores", "frame_counts", "snippet_frames", "fps", "trained_on", "out"}
    of_shards = options.keys() - {"scores", "frame_counts", "snippet_frames", "fps"}
    given = {name for name in options if source(name) is ParameterSource.COMMANDLINE}
    if options["scores"] is not None or (given and given <= of_lists and "annotations" in given):
        if wrong := sorted(given - of_lists):
            raise click.UsageError(f"--{wrong[0].replace('_', '-')} and --scores exclude each other")
        if options["annotations"] is None:
            raise click.UsageError("--scores needs --annotations: the truth to judge them by")
        report: Any = evaluate_scores(ScoresConfig(**{name: options[name] for name in of_lists}))
    else:
        if wrong := sorted(given - of_shards):
            raise click.UsageError(f"--{wrong[0].replace('_', '-')} is an option of --scores and --annotations alone")
        report = evaluate(EvaluateConfig(**{name: options[name] for name in of_shards}))
    click.echo(report.text)


@main.command()
@click.option("--shards", type=location, metavar="PLACE", required=True, help="Clips to describe.")
@click.option("--out", type=LOCAL_PATH, required=True, help="Output folder.")
@click.option("--checkpoint", type=LOCAL_PATH, help="Features: what its classifier sees.")
@click.option("--backbone", metavar="NAME|FILE", help="r3d_18, mc3_18, r2plus1d_18, or a file of torch.export.")
@click.option("--weights", default="KINETICS400_V1", show_default=True, help="Of a backbone by name: name or file.")
@ANNOTATIONS
@BATCH_SIZE
@DEVICE
def features(**options: Any) -> int:
    """Write the features of every clip, one array a video, with its frames and the truth where it is known.

    Exit codes: 0 all well, 2 done but some clips could not be read, 1 anything else.
    """
    from stage1.inference.features import FeaturesConfig, features

    report = features(FeaturesConfig(**options), confirm=click.confirm)
    for line in [*report.notes, *(f"not scored: {reason}" for reason in report.unscored.values())]:
        click.echo(line, err=True)
    click.echo(report.summary)
    return report.exit_code


@main.command()
@CHECKPOINT
@click.option(
    "--format", "format_", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Of the file."
)
@click.option("--out", type=LOCAL_PATH, default="stage1.onnx", show_default=True, help="The file to write.")
@click.option("--shards", type=location, metavar="PLACE", help="Check the file on clips of these, instead of on noise.")
@click.option("--num-checked", type=int, default=32, show_default=True, help="Clips to check the file on.")
def export(format_: str, checkpoint: Path, out: Path, shards: Path | None, num_checked: int) -> None:
    """Write the model as a file for onnxruntime: uint8 clips in, P(crime) and attention out."""
    from stage1.model.onnx import export

    click.echo(export(checkpoint, out, shards=shards, num_checked=num_checked).summary)


@main.command()
@click.argument("folder", metavar="[DIR]", type=LOCAL_PATH, default="stage1_output")
@click.option("--out", type=LOCAL_PATH, default="stage2_frames", show_default=True, help="Output folder.")
@click.option("--top-k", type=int, default=5, show_default=True, help="Frames of each detection, by attention.")
@click.option(
    "--frames-from",
    type=click.Choice(["clip", "video"]),
    default="clip",
    show_default=True,
    help="video: at the resolution of the source, which must lie where it was.",
)
@click.option("--frame-size", type=int, help="Of the frames in the shards.  [default: that of the clips]")
@click.option("--stage2-list", "stage2_lists", type=LOCAL_PATH, multiple=True, help="Official fold of stage 2.")
@click.option("--test-list", type=LOCAL_PATH, help="Videos that stage 1 is tested on.")
@click.option("--for-looking", is_flag=True, help="Also of data that nobody should train on; writes no shards.")
def extract(**options: Any) -> int:
    """Write the most attended frames of each detection in DIR (stage1_output): pictures, and shards for stage 2.

    Exit codes: 0 all well, 2 done but some detections could not be written, 1 anything else.
    """
    from stage1.inference.extract import ExtractConfig, extract

    report = extract(ExtractConfig(**options))
    for line in report.problems:
        click.echo(line, err=True)
    click.echo(report.summary)
    return report.exit_code


@main.command()
@click.option(
    "--shards", type=location, metavar="PLACE", default="shards/Test", show_default=True, help="Clips to explain."
)
@CHECKPOINT
@ANNOTATIONS
@click.option("--max-clips", type=int, default=40, show_default=True, help="Detected crimes to explain.")
@click.option("--random-sets", type=int, default=4, show_default=True, help="Matched random frames, for each set.")
@click.option("--out", type=LOCAL_PATH, default="explanation", show_default=True, help="Output folder.")
@BATCH_SIZE
@DEVICE
def explain(**options: Any) -> None:
    """Does attention tell which frames matter? Deletion and insertion against matched random frames."""
    from stage1.common import distributed
    from stage1.evaluation.explain import ExplainConfig, explain

    distributed.expect_one_process("explain")
    click.echo(explain(ExplainConfig(**options)).text)


@main.command()
@click.argument("folder", metavar="[DIR]", type=LOCAL_PATH, default="stage1_output")
@click.option("--out", type=LOCAL_PATH, help="The page to write.  [default: DIR/report.html]")
@click.option("--max-items", type=int, default=1000, show_default=True, help="Detections and misses, strongest first.")
@click.option("--evaluation", type=LOCAL_PATH, help="Folder that stage1 evaluate wrote about the same shards.")
def report(folder: Path, out: Path | None, max_items: int, evaluation: Path | None) -> None:
    """Show the run in DIR (stage1_output) as one HTML page that needs nothing else."""
    from stage1.review.report import ReportConfig, write_report

    result = write_report(ReportConfig(folder=folder, out=out, max_items=max_items, evaluation=evaluation))
    if result.num_left_out:
        click.echo(f"{result.num_left_out:,} of lower confidence are left out; --max-items shows more")
    click.echo(f"✓ Report with {result.num_shown:,} clips saved to: {result.path}")
