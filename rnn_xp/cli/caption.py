"""`train caption`, and the use of a captioner of pictures."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.backend import Backend, select
from rnn_xp.captioner import Captioner, caption_model
from rnn_xp.checkpoint import Checkpoint, CheckpointError
from rnn_xp.cli.cells import cell_of
from rnn_xp.cli.console import (
    INTERRUPTED,
    as_csv,
    check_log,
    check_output,
    check_outputs,
    print_table,
    reading,
    say,
)
from rnn_xp.cli.fit import add_fitting, run_fit, save_fitted
from rnn_xp.cli.options import add_command, count, number
from rnn_xp.files import replace_file
from rnn_xp.fitting import Fitted, Params, Settings
from rnn_xp.random import spawn
from rnn_xp.tasks.caption import (
    CaptionError,
    Pictures,
    Reader,
    Written,
    gradients_of,
    load_digit_pictures,
    loss_of,
    read_pictures,
    split,
    write_captions,
)
from rnn_xp.tasks.digit_captions import accuracies, baselines

DEFAULT = Settings(epochs=40, batch_size=32, learning_rate=0.006, weight_decay=0.5)
BEAM = 5
SHADES = " .:-=+*#%@"
_PARAMS = 2  # the stream of random numbers under the seed, after the fitting's


def add_train_caption(kinds: Any) -> None:
    """Add `train caption`."""
    command = add_command(
        kinds,
        "caption",
        _train,
        "train a model that writes captions of pictures",
        "train caption pictures.npz --out captions.safetensors",
    )
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a .npz file with the arrays images (N, ...) and captions (N,); its last fifth is "
        "held out (default: handwritten digits, and what can be said of them)",
    )
    command.add_argument(
        "--validation",
        type=number(0.0, 0.5, open_below=True),
        metavar="PART",
        help="of the pictures to train on leave out this part, the end, and keep the epoch that "
        "is best on it",
    )
    model = add_fitting(command, DEFAULT, cell="gru", hidden_size=128, dropout=0.5)
    model.add_argument("--embedding-size", type=count(1), default=32, help="size of a word")


def add_writing(command: argparse.ArgumentParser) -> None:
    """Add the options that say which captions a captioner writes."""
    command.add_argument(
        "--index", type=count(0), nargs="+", metavar="K", help="of pictures, only these"
    )
    command.add_argument(
        "--beam", type=count(1), metavar="N", help=f"width of the beam search (default: {BEAM})"
    )
    command.add_argument(
        "--max-length",
        type=count(1),
        metavar="N",
        help="most words of a caption (default: as many as in the longest one trained on)",
    )


def add_show(command: argparse.ArgumentParser) -> None:
    """Add `--show`, of `predict`."""
    command.add_argument(
        "--show",
        action="store_true",
        help="draw each picture, and print the captions of greedy and of beam search",
    )


def _train(options: argparse.Namespace) -> int:
    backend = select(options.backend, options.device)
    backend.dtype(options.dtype)
    check_output(options)
    check_log(options)
    pictures = _data(options.file)
    with _source(options.file):
        captions = _captions(pictures)
        seen, test = split(pictures)
        train, held_out = (
            (seen, None) if options.validation is None else split(seen, options.validation)
        )
    reader = Reader.of(train, captions)
    model = caption_model(
        train.images[0].size,
        len(reader.words) + 1,
        cell=cell_of(options),
        embedding_size=options.embedding_size,
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        dropout=options.dropout,
    )
    size = sum(math.prod(shape) for shape in model.shapes.values())
    say(
        f"{len(train):,} pictures of {_by(reader.shape)}, {len(reader.words)} words; "
        f"{len(held_out or ())} to validate, {len(test)} held out\n"
        f"{size:,} parameters, {options.dtype}, backend {backend.name} ({backend.device_name})",
    )
    fitted = _fit(options, backend, model, reader, train, held_out)
    task = {"kind": "caption", **reader.describe()}
    source = {"built_in": options.file is None, "data": _digest(pictures)}
    if not save_fitted(options, model, fitted, task, **source):
        return INTERRUPTED
    written = _texts(write_captions(model, fitted.params, backend, reader, test.images))
    print(f"held out: {_score(written, _captions(test))}, greedy")
    return 0


def _fit(
    options: argparse.Namespace,
    backend: Backend,
    model: Captioner,
    reader: Reader,
    train: Pictures,
    held_out: Pictures | None,
) -> Fitted:
    params = model.init(
        spawn(options.seed, _PARAMS),
        backend=backend.name,
        device=options.device,
        dtype=options.dtype,
    )
    gradients = gradients_of(model, backend, options.dtype, reader, train)
    if held_out is None:
        return run_fit(options, params, gradients, len(train))

    def validate(params: Params) -> float:
        return loss_of(model, params, backend, reader, held_out)

    return run_fit(options, params, gradients, len(train), validate=validate)


def eval_captioner(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> int:
    """Print how often captions are right; of the digits also in which facts, with baselines."""
    model, reader = _model(options, checkpoint)
    _check_source(options, checkpoint)
    pictures = _data(options.file)
    what = "pictures"
    seen = None
    if _digest(pictures) == checkpoint.training.get("data"):
        seen, pictures = split(pictures)
        what = "held-out pictures"
    params = checkpoint.params
    with _source(options.file):
        captions = _captions(pictures)
        loss = loss_of(model, params, backend, reader, pictures)
    written = {
        "greedy" if beam == 1 else f"beam {beam}": _texts(
            write_captions(model, params, backend, reader, pictures.images, beam=beam)
        )
        for beam in (1, BEAM)
    }
    print(f"{len(pictures):,} {what}: loss {loss:.4f} nats a word")
    if options.file is not None or seen is None:
        for name, texts in written.items():
            print(f"{name}: {_score(texts, captions)}")
        return 0
    simple = baselines(seen.images, _captions(seen), pictures.images, captions)
    print("\nIn how many captions, %, all is right, and each fact:\n")
    rows = [(name, accuracies(texts, captions)) for name, texts in (written | simple).items()]
    table = [(name, *(f"{100 * value:.1f}" for value in right.values())) for name, right in rows]
    print_table([("", *rows[0][1]), *table])
    return 0


def write_for(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> int:
    """Print the caption of each picture and its log-probability, or write them."""
    check_output(options)
    beam = options.beam or BEAM
    beams = {1, beam} if options.show else {beam}
    chosen, numbers, found = captions_of(options, backend, checkpoint, beams)
    if options.show:
        _show(chosen, numbers, found)
    best = found[beam]
    rows: list[tuple[Any, ...]] = [("picture", "caption", "log_probability", "true")]
    for k, text, true in zip(numbers, best, chosen.captions or [""] * len(best), strict=True):
        rows.append((k, text.caption, f"{text.log_probability:.4f}", true))
    if options.out is not None:
        replace_file(options.out, as_csv(rows))
    elif not options.show:
        print_table(rows)
    return 0


def captions_of(
    options: argparse.Namespace,
    backend: Backend,
    checkpoint: Checkpoint,
    beams: set[int],
    *,
    most: int | None = None,
) -> tuple[Pictures, list[int], dict[int, list[Written]]]:
    """Return the pictures that are asked for, their numbers, and what each beam writes of them.

    Where none is asked for by its number, the first `most`.
    """
    model, reader = _model(options, checkpoint)
    _check_source(options, checkpoint)
    pictures = _data(options.file)
    numbers = _numbers(options, pictures)
    if options.index is None:
        numbers = numbers[:most]
    chosen = pictures.take(numbers)
    found = {}
    for beam in beams:
        with _source(options.file):
            found[beam] = write_captions(
                model,
                checkpoint.params,
                backend,
                reader,
                chosen.images,
                beam=beam,
                max_length=options.max_length,
            )
    return chosen, numbers, found


def _show(pictures: Pictures, numbers: list[int], found: dict[int, list[Written]]) -> None:
    if pictures.images.ndim != 3:
        raise CaptionError(
            f"--show draws pictures of two axes, got {_by(pictures.images.shape[1:])}"
        )
    for k, place in enumerate(numbers):
        print(f"picture {place}\n{_drawn(pictures.images[k])}")
        if pictures.captions is not None:
            print(f"{'true':8} {pictures.captions[k]}")
        for beam, written in sorted(found.items()):
            name = "greedy" if beam == 1 else f"beam {beam}"
            text = written[k]
            print(f"{name:8} {text.caption}  (log-probability {text.log_probability:.4f})")
        print()


def _drawn(image: np.ndarray[Any, Any]) -> str:
    """Draw a picture in characters, two a pixel; the darker, the higher the number."""
    values = image.astype(np.float64) - image.min()
    levels = np.rint(values / (values.max() or 1.0) * (len(SHADES) - 1)).astype(int)
    return "\n".join("".join(2 * SHADES[v] for v in row).rstrip() for row in levels)


def _data(path: Path | None) -> Pictures:
    return load_digit_pictures() if path is None else read_pictures(path)


def _captions(pictures: Pictures) -> tuple[str, ...]:
    if pictures.captions is None:
        raise CaptionError("there is no array 'captions'")
    return pictures.captions


def _numbers(options: argparse.Namespace, pictures: Pictures) -> list[int]:
    """Return the numbers of the pictures that are asked for, by default of all, or the held-out."""
    if options.index is None:
        return list(range(_seen(pictures) if options.file is None else 0, len(pictures)))
    for k in options.index:
        if k >= len(pictures):
            raise CaptionError(f"--index must lie in 0..{len(pictures) - 1}, got {k}")
    return list(options.index)


def _seen(pictures: Pictures) -> int:
    return len(split(pictures)[0])


def _model(options: argparse.Namespace, checkpoint: Checkpoint) -> tuple[Captioner, Reader]:
    if not isinstance(checkpoint.model, Captioner):
        raise CheckpointError(f"{options.model} says that it writes captions, but is no captioner")
    with reading(options.model):
        reader = Reader.restore(checkpoint.task)
    check_outputs(options.model, checkpoint.model, len(reader.words) + 1, "words and an end")
    return checkpoint.model, reader


def _check_source(options: argparse.Namespace, checkpoint: Checkpoint) -> None:
    if options.file is None and not checkpoint.training.get("built_in"):
        raise CheckpointError(f"{options.model} was trained on a file: give a FILE")


@contextlib.contextmanager
def _source(path: Path | None) -> Iterator[None]:
    """Say in an error of the pictures which file they are from."""
    try:
        yield
    except CaptionError as error:
        raise CaptionError(f"{path or 'the built-in data'}: {error}") from error


def _digest(pictures: Pictures) -> str:
    text = "\n".join(pictures.captions or ())
    return hashlib.sha256(pictures.images.tobytes() + text.encode()).hexdigest()


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _texts(written: list[Written]) -> list[str]:
    return [text.caption for text in written]


def _score(written: list[str], captions: tuple[str, ...]) -> str:
    right = sum(a == b for a, b in zip(written, captions, strict=True))
    return f"exact match {100 * right / len(captions):.1f} % ({right:,} of {len(captions):,})"
