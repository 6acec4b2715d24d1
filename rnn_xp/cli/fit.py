"""What the commands share that fit a model to separate examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rnn_xp.captioner import Captioner
from rnn_xp.checkpoint import save
from rnn_xp.cli.console import Bar, interrupt, log_file, say
from rnn_xp.cli.options import POSITIVE, SEED, add_backend, add_cell, count, number
from rnn_xp.fitting import Epoch, Fitted, Gradients, Params, Settings, fit
from rnn_xp.models import Chain


def add_fitting(
    command: argparse.ArgumentParser,
    default: Settings,
    *,
    cell: str,
    hidden_size: int,
    layers: int = 1,
    dropout: float = 0.0,
) -> argparse._ArgumentGroup:
    """Add the options of model and training; return the model's group, for more of them."""
    command.add_argument(
        "--out", type=Path, default=Path("model.safetensors"), metavar="MODEL", help="file to write"
    )
    command.add_argument("--force", action="store_true", help="replace MODEL if it exists")
    command.add_argument("--log", type=Path, metavar="LOG", help="append JSON lines to this file")
    model = command.add_argument_group("model")
    add_cell(model, cell)
    model.add_argument("--hidden-size", type=count(1), default=hidden_size, help="units of a layer")
    model.add_argument("--layers", type=count(1), default=layers, help="recurrent layers")
    model.add_argument(
        "--dropout", type=number(0.0, 1.0), default=dropout, help="after each recurrent layer"
    )
    training = command.add_argument_group("training")
    training.add_argument(
        "--epochs", type=count(1), default=default.epochs, help="how often every example is seen"
    )
    training.add_argument(
        "--batch-size", type=count(1), default=default.batch_size, help="examples of a step"
    )
    training.add_argument(
        "--learning-rate", type=POSITIVE, default=default.learning_rate, help="peak, of Adam"
    )
    training.add_argument(
        "--final-rate",
        type=number(0.0, 1.0),
        default=default.final_rate,
        help="end of the cosine schedule, as a part of the peak",
    )
    training.add_argument(
        "--clip", type=POSITIVE, default=default.clip, help="largest global norm of the gradient"
    )
    training.add_argument(
        "--weight-decay",
        type=number(0.0),
        default=default.weight_decay,
        help="above 0: AdamW with this decay",
    )
    training.add_argument("--seed", type=SEED, default=default.seed, help="of all that is drawn")
    add_backend(command)
    return model


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the options give."""
    names = {field.name for field in fields(Settings)}
    return Settings(**{k: v for k, v in vars(options).items() if k in names})


def run_fit(
    options: argparse.Namespace,
    params: Params,
    gradients: Gradients,
    examples: int,
    *,
    validate: Callable[[Params], float] | None = None,
) -> Fitted:
    """Fit with progress, a log on request, and an end on Ctrl-C."""
    settings = settings_of(options)
    every = max(1, settings.epochs // 20)
    with (
        log_file(options.log) as log,
        Bar(settings.epochs, unit="epoch") as bar,
        interrupt() as asked,
    ):

        def on_epoch(epoch: Epoch) -> None:
            bar.update(lambda: epoch.train_loss)
            if epoch.epoch % every == 0 or epoch.epoch == epoch.epochs:
                bar.line(_line(epoch))
            log.write(epoch)

        return fit(
            params,
            gradients,
            examples,
            settings,
            validate=validate,
            on_epoch=on_epoch,
            stop=lambda: bool(asked),
        )


def save_fitted(
    options: argparse.Namespace,
    model: Chain | Captioner,
    fitted: Fitted,
    task: Mapping[str, Any],
    **training: Any,
) -> bool:
    """Save what was fitted, and say where; tell whether to go on, which Ctrl-C forbids."""
    if not fitted.epoch:
        say("interrupted before the first epoch ended: nothing is saved")
        return False
    training["epoch"] = fitted.epoch
    save(options.out, model, fitted.params, task=task, training=training)
    stopped, loss = fitted.outcome == "stopped", fitted.validation_loss
    what = {"stopped": "interrupted: the", "diverged": "the loss is not finite any more: the"}
    say(
        f"{what.get(fitted.outcome, 'the')} parameters of epoch {fitted.epoch}"
        f"{'' if loss is None else f', validation loss {loss:.4f},'} are saved to {options.out}"
    )
    return not stopped


def _line(epoch: Epoch) -> str:
    held_out = ""
    if epoch.validation_loss is not None:
        held_out = f"validation loss {epoch.validation_loss:.4f}{' *' if epoch.best else '  '}  "
    return (
        f"epoch {epoch.epoch:4}/{epoch.epochs}  train loss {epoch.train_loss:.4f}  {held_out}"
        f"rate {epoch.learning_rate:.2e}  {epoch.examples_per_second:,.0f} examples/s"
    )
