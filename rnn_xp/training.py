"""Training a character model: truncated backpropagation through time over contiguous text.

The text is cut into B streams that run side by side. Each step reads the next T characters of
every stream, goes backward through these T steps, and hands the state on to the next step; at the
start of a pass the state is zero.

A GPU is never waited for within a pass: the text is moved to it once, and losses and norms stay
there until somebody looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from rnn_xp import losses, optim
from rnn_xp.backend import Array, Backend, array_namespace, device_of, on_its_device, to_floats
from rnn_xp.layers.checks import check_count
from rnn_xp.models import Chain, Params, State
from rnn_xp.random import spawn
from rnn_xp.text import Codes, TextError

_INIT, _DROPOUT = 0, 1  # the streams of random numbers under the seed
_MOST_STEPS = 2**53


@dataclass(frozen=True)
class Settings:
    """How a text model is trained; the defaults are those of `rnn-xp train text`."""

    passes: float = 8.0
    """How often the training text is read."""
    max_steps: int | None = None
    """Stop after so many steps, if that comes first; the schedule is that of `passes`."""
    batch_size: int = 32
    """B, the number of streams."""
    time_steps: int = 64
    """T, the steps of truncated backpropagation."""
    learning_rate: float = 0.004
    final_rate: float = 0.05
    """Where the cosine schedule ends, as a part of `learning_rate`."""
    warmup_steps: int = 0
    clip: float = 1.0
    """The largest global norm of the gradient."""
    weight_decay: float = 0.0
    """Above 0: AdamW with this decay instead of Adam."""
    average: float = 0.0
    """Above 0: a running mean of the parameters with this decay is what is evaluated and kept."""
    patience: int = 5
    """Stop after so many evaluations without a better validation loss."""
    eval_every: int | None = None
    """Steps between evaluations; None: once a pass."""
    seed: int = 0


@dataclass
class Progress:
    """Where training stands: all that `--resume` needs, and nothing else."""

    step: int
    params: Params
    optimizer: dict[str, Any]
    state: State | None
    best_loss: float
    best_step: int
    best_params: Params
    waited: int
    """Evaluations since the best one."""
    mean_loss: float
    """What `train_loss` was when it was last looked at."""
    average: dict[str, Any] | None
    """The state of the parameters' running mean, if there is one."""
    unread: list[Array] = field(default_factory=list)
    """The losses of the steps since then, where the backend keeps them."""

    @property
    def train_loss(self) -> float:
        """Running mean over about the last hundred steps; waits for the device."""
        first = self.step - len(self.unread)
        for step, loss in enumerate(to_floats(self.unread), first):
            self.mean_loss += max(0.01, 1.0 / (step + 1)) * (loss - self.mean_loss)
        self.unread = []
        return self.mean_loss

    @property
    def shown(self) -> Params:
        """The parameters that are evaluated."""
        shown: Params = self.params if self.average is None else self.average["mean"]
        return shown


@dataclass(frozen=True)
class Report:
    """One evaluation."""

    step: int
    steps: int
    train_loss: float
    validation_loss: float
    best: bool
    learning_rate: float
    gradient_norm: float
    characters_per_second: float


class Trainer:
    """Trains one model on one text.

    Parameters
    ----------
    model : Chain
    backend : Backend
    dtype : str
    train, validation : integers (N,)
        The codes of the characters. `validation` follows `train` in the text.
    settings : Settings
    unit : str
        What the codes stand for, in errors: `character` or `byte`.

    Raises
    ------
    TextError
        If a text is too short for one batch.
    """

    def __init__(
        self,
        model: Chain,
        backend: Backend,
        dtype: str,
        train: Codes,
        validation: Codes,
        settings: Settings,
        unit: str = "character",
    ) -> None:
        batch, time_steps = settings.batch_size, settings.time_steps
        check_count("batch_size", batch)
        check_count("time_steps", time_steps)
        needed = batch * time_steps + 1
        if len(train) < needed:
            raise TextError(
                f"not enough text: {len(train)} {unit}s to train on, but one batch of {batch} "
                f"streams times {time_steps} steps needs {needed}: give more text, or lower "
                "--batch-size or --time-steps"
            )
        if len(validation) < 2:
            raise TextError(f"not enough text: no two {unit}s are left to validate on")
        self.model = model
        self.backend = backend
        self.dtype = dtype
        self.settings = settings
        length = (len(train) - 1) // batch
        # (length + 1, B): each stream, and the character after it.
        windows = np.lib.stride_tricks.sliding_window_view(train, length + 1)
        streams = windows[: batch * length : length].T
        self._streams = backend.asarray(np.ascontiguousarray(streams))
        self._context, self._validation = train, validation
        self.steps_a_pass = math.ceil(length / time_steps)
        steps = settings.passes * self.steps_a_pass
        if not steps < _MOST_STEPS:
            raise ValueError(f"passes must be less than 2**53 steps, got {settings.passes:g}")
        self.steps = max(1, round(steps))
        self.last_step = self.steps
        if settings.max_steps is not None:
            check_count("max_steps", settings.max_steps)
            self.last_step = min(self.steps, settings.max_steps)
        warmup = min(settings.warmup_steps, self.steps - 1)
        peak = settings.learning_rate
        self._rate = optim.warmup_cosine(peak, self.steps, warmup, peak * settings.final_rate)
        self._optimizer: optim.Adam | optim.AdamW = (
            optim.AdamW(self._rate, weight_decay=settings.weight_decay)
            if settings.weight_decay
            else optim.Adam(self._rate)
        )
        self._average = optim.Average(settings.average) if settings.average else None

    def start(self) -> Progress:
        """Return the beginning: drawn parameters."""
        seed = spawn(self.settings.seed, _INIT)
        params = self.model.init(
            seed, backend=self.backend.name, device=self.backend.device_name, dtype=self.dtype
        )
        optimizer = self._optimizer.init(params)
        average = None if self._average is None else self._average.init(params)
        return Progress(0, params, optimizer, None, math.inf, 0, params, 0, 0.0, average)

    def check(self, progress: Progress, like: Progress) -> None:
        """Raise if something of a restored progress is missing or of another shape.

        Parameters
        ----------
        progress
            From `restore`.
        like
            From `start`.

        Raises
        ------
        KeyError, ValueError
        """
        if not 0 <= progress.step <= self.steps or progress.optimizer["step"] < 0:
            raise ValueError(f"the step {progress.step} is none of 0..{self.steps}")
        pairs = [(progress.params, like.params, "params")]
        for kind, kept, fresh in (
            ("optimizer", progress.optimizer, like.optimizer),
            ("average", progress.average or {}, like.average or {}),
        ):
            groups = [(name, value) for name, value in fresh.items() if isinstance(value, dict)]
            pairs += [(kept[name], value, f"{kind}.{name}") for name, value in groups]
        for given, wanted, what in pairs:
            for name, array in wanted.items():
                if tuple(given[name].shape) != tuple(array.shape):
                    raise ValueError(
                        f"{what}.{name} has shape {tuple(given[name].shape)}, expected "
                        f"{tuple(array.shape)}"
                    )
        if progress.step % self.steps_a_pass and progress.state is None:
            raise KeyError("state")

    def run(
        self,
        progress: Progress,
        *,
        on_step: Callable[[Progress], None] = lambda _: None,
        on_report: Callable[[Report, Progress], None] = lambda *_: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """Train until the last step, the end of patience, or until `stop` returns True.

        `progress` is brought forward; at every call of `on_step` and on return it is whole, so
        that training can go on from it bit for bit.

        Returns
        -------
        str
            `finished`, `early stop`, `stopped`, or `diverged`: the validation loss is not finite.
        """
        settings = self.settings
        every = settings.eval_every or self.steps_a_pass
        since, counted = perf_counter(), 0
        while progress.step < self.last_step:
            if stop():
                return "stopped"
            norm = self._step(progress)
            counted += settings.batch_size * settings.time_steps
            on_step(progress)
            if progress.step % every and progress.step != self.last_step:
                continue
            train_loss = progress.train_loss  # waits for the device, before the clock is read
            speed = counted / (perf_counter() - since)
            report = self._evaluate(progress, train_loss, float(norm), speed)
            on_report(report, progress)
            if not math.isfinite(report.validation_loss):
                return "diverged"
            since, counted = perf_counter(), 0
            if progress.waited >= settings.patience:
                return "early stop"
        return "finished"

    def _step(self, progress: Progress) -> Array:
        """Bring progress one step forward; return the gradient's norm."""
        settings, step = self.settings, progress.step
        within = step % self.steps_a_pass
        first = within * settings.time_steps
        end = min(first + settings.time_steps + 1, self._streams.shape[0])
        rows = self._streams[first:end, ...]
        x, targets = rows[:-1, ...], rows[1:, ...]
        state = progress.state if within else None
        seed = spawn(settings.seed, _DROPOUT, step)
        logits, state, cache = self.model.forward(progress.params, x, state, dropout_seed=seed)
        mean, dlogits = losses.softmax_cross_entropy(logits, targets)
        gradients, _, _ = self.model.backward(progress.params, cache, dlogits)
        gradients, norm = optim.clip_by_global_norm(gradients, settings.clip)
        progress.params, progress.optimizer = self._optimizer.update(
            gradients, progress.optimizer, progress.params
        )
        if self._average is not None and progress.average is not None:
            progress.average = self._average.update(progress.average, progress.params)
        progress.state = state
        progress.unread.append(mean)
        progress.step = step + 1
        return norm

    def _evaluate(self, progress: Progress, train_loss: float, norm: float, speed: float) -> Report:
        loss = evaluate(
            self.model, progress.shown, self.backend, self._validation, context=self._context
        )
        best = loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
            progress.best_params, progress.waited = progress.shown, 0
        else:
            progress.waited += 1
        rate = self._rate(progress.step - 1)
        return Report(progress.step, self.last_step, train_loss, loss, best, rate, norm, speed)


def evaluate(
    model: Chain,
    params: Params,
    backend: Backend,
    codes: Codes,
    *,
    context: Codes | None = None,
    streams: int = 64,
    warm: int = 256,
    time_steps: int = 128,
) -> float:
    """Return the mean cross-entropy of a text in nats a character.

    The text is read in `streams` parts side by side. So that no part begins without knowing what
    stands before it, the model first reads the `warm` characters before each part, which do not
    count; before the first part these are the last ones of `context`.

    Parameters
    ----------
    codes : integers (N,), N >= 2
        Every character after the first is predicted; with `context`, the first too.
    """
    before = codes[:0] if context is None else context[-warm:]
    text = np.concatenate((before, codes))
    first = max(1, len(before))  # the first character that is predicted
    count = len(text) - first
    streams = max(1, min(streams, count // (2 * warm)))
    length = -(-count // streams)
    prepared = model.prepare(params)
    # Part k predicts the characters after the positions starts[k] to ends[k] - 1.
    starts = first - 1 + length * np.arange(streams)
    ends = np.minimum(starts + length, len(text) - 1)
    found, counts, state = list[Array](), list[int](), None
    begin = -int(starts[0])  # where the first part has the first character of all
    offsets = sorted({begin, *range(-warm, 0, time_steps), *range(0, length, time_steps)})
    for offset, stop in zip(offsets, [*offsets[1:], length], strict=True):
        at = starts[None, :] + np.arange(offset, stop)[:, None]
        x = text[np.clip(at, 0, len(text) - 1)]
        if offset == begin:
            state = _forget_first(state)
        logits, state = model(prepared, backend.asarray(x), state)
        counted = (at < ends[None, :]) & (offset >= 0)
        if counted.any():
            targets = backend.asarray(text[np.clip(at + 1, 0, len(text) - 1)])
            loss, _ = losses.softmax_cross_entropy(logits, targets, mask=backend.asarray(counted))
            found.append(loss)
            counts.append(int(counted.sum()))
    total = 0.0
    for value, counted in zip(to_floats(found), counts, strict=True):
        total += value * counted
    return total / count


def _forget_first(state: State | None) -> State:
    """Return a state whose first sequence starts anew, with zeros."""

    @on_its_device
    def zeroed(part: Array) -> Array:
        xp, device = array_namespace(state=part), device_of(part)
        first = xp.arange(part.shape[1], device=device)[None, :, None] == 0
        return xp.where(first, xp.zeros((), dtype=part.dtype, device=device), part)

    return {
        name: tuple(map(zeroed, value)) if isinstance(value, tuple) else zeroed(value)
        for name, value in (state or {}).items()
    }


# Progress as plain values and named arrays, for a checkpoint


def flatten(progress: Progress, settings: Settings) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return progress as values for JSON and named arrays; `restore` makes the same of them."""
    values: dict[str, Any] = {
        "settings": asdict(settings),
        "step": progress.step,
        "best_loss": progress.best_loss,
        "best_step": progress.best_step,
        "waited": progress.waited,
        "train_loss": progress.train_loss,
    }
    arrays = {f"params.{name}": value for name, value in progress.params.items()}
    for kind, kept in (("optimizer", progress.optimizer), ("average", progress.average or {})):
        values[kind] = {k: v for k, v in kept.items() if not isinstance(v, dict)}
        for group, entries in kept.items():
            if isinstance(entries, dict):
                arrays |= {f"{kind}.{group}.{name}": value for name, value in entries.items()}
    for name, value in (progress.state or {}).items():
        parts = value if isinstance(value, tuple) else (value,)
        arrays |= {f"state.{k}.{name}": part for k, part in enumerate(parts)}
    return values, arrays


def restore(values: dict[str, Any], arrays: dict[str, Array], best_params: Params) -> Progress:
    """Return the progress that `flatten` took apart.

    Raises
    ------
    KeyError, TypeError, ValueError
        If something is missing, or no number.
    """
    params = {
        name.removeprefix("params."): value
        for name, value in arrays.items()
        if name.startswith("params.")
    }
    kept: dict[str, dict[str, Any]] = {
        "optimizer": dict(values["optimizer"]),
        "average": dict(values.get("average", {})),  # older files have none
    }
    parts: dict[str, dict[int, Array]] = {}
    for full, value in arrays.items():
        kind, _, rest = full.partition(".")
        group, _, name = rest.partition(".")
        if kind in kept:
            kept[kind].setdefault(group, {})[name] = value
        elif kind == "state":
            parts.setdefault(name, {})[int(group)] = value
    state: State = {
        name: found[0] if len(found) == 1 else tuple(found[k] for k in sorted(found))
        for name, found in parts.items()
    }
    ordered = {name: params[name] for name in best_params}
    return Progress(
        int(values["step"]),
        ordered,
        kept["optimizer"],
        state or None,
        float(values["best_loss"]),
        int(values["best_step"]),
        best_params,
        int(values["waited"]),
        float(values["train_loss"]),
        kept["average"] or None,
    )
