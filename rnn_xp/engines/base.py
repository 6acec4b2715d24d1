"""What an engine is, and what it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Namespace, array_namespace, device_of, is_traced
from rnn_xp.cells.base import Cell

Params = Mapping[str, Array]
Parts = Sequence[Array | None]
"""A state: (L*D, B, size) for each of its parts, or of one level (D, B, size); None is zeros."""
Made = tuple[Any, Any, Any]
"""Of a run y, the state and what is kept; of a backward run the gradients, dx and dstate."""
Attempt = Callable[[Any, Any], Any]
"""From x and a state, unchecked, to y and the state; None where they are not plain."""
Drop = Callable[[int, Array], Array]
"""From the number of a level and its input to the dropout mask that the input is multiplied by."""


@dataclass(frozen=True)
class Stack:
    """What an engine runs: a cell over time, level over level, in one or two directions.

    Parameters
    ----------
    cell : Cell
    input_size : int
    bias : bool
    levels : int
        L; level k reads the output of level k - 1.
    reverse : tuple of bool
        For each of the D directions, whether it goes from the last step to the first.
    """

    cell: Cell
    input_size: int
    bias: bool = True
    levels: int = 1
    reverse: tuple[bool, ...] = (False,)

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What an engine knows of the stack from an earlier call."""
        return {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in PyTorch's order."""
        return {
            f"{name}{suffix}": shape
            for suffix, size in self._suffixes
            for name, shape in self.cell.shapes(size, self.bias).items()
        }

    @cached_property
    def names(self) -> list[list[list[tuple[str, str]]]]:
        """For each direction of each level, the cell's names of its weights and the parameters'."""
        own = self.cell.shapes(self.input_size, self.bias)
        runs = [[(name, name + suffix) for name in own] for suffix, _ in self._suffixes]
        ways = len(self.reverse)
        return [runs[k : k + ways] for k in range(0, len(runs), ways)]

    @cached_property
    def arrays(self) -> Callable[[Params], tuple[Array, ...]]:
        """From parameters to a tuple of them, in the order of `shapes`."""
        names = tuple(self.shapes)
        return itemgetter(*names) if len(names) > 1 else lambda params: (params[names[0]],)

    @cached_property
    def _suffixes(self) -> list[tuple[str, int]]:
        """The end of the parameters' names, and the input size, of each run."""
        ways = len(self.reverse)
        above = ways * self.cell.output_size
        sizes = [self.input_size, *[above] * (self.levels - 1)]
        ends = ("", "_reverse")[:ways]
        return [(f"_l{k}{end}", size) for k, size in enumerate(sizes) for end in ends]


class Ragged(NamedTuple):
    """Which steps of which sequences count."""

    lengths: Array
    """(B,), integers on the host, or traced by JAX"""
    valid: Array
    """(T, B), boolean"""
    shortest: int
    """All sequences have the steps before this one."""

    @classmethod
    def of(cls, lengths: Array, steps: int, like: Array) -> Ragged | None:
        """Return the steps that count, on the device of `like`; None if all of them do.

        Of the lengths it keeps a copy: the caller may change his before the backward run.
        """
        if is_traced(lengths):
            return cls(lengths, np.arange(steps)[:, None] < lengths[None, :], 0)
        lengths = np.array(lengths, np.int64)
        shortest = int(lengths.min())
        if shortest == steps:
            return None
        xp = array_namespace(x=like)
        valid = np.arange(steps)[:, None] < lengths[None, :]
        return cls(lengths, xp.asarray(valid, device=device_of(like)), shortest)

    def part(self, start: int, stop: int) -> Array | None:
        """Return `valid` of some of the steps; None if all sequences have them."""
        return None if stop <= self.shortest else self.valid[start:stop, ...]


class Run(NamedTuple):
    """What is run, and how, besides the arrays."""

    stack: Stack
    ragged: Ragged | None = None
    """Which steps count; None: all of them."""
    drop: Drop | None = None
    """Makes the dropout masks between the levels; None: no dropout."""
    keep: bool = False
    """Keep what the backward run needs."""


def valid_of(ragged: Ragged | None) -> Array | None:
    """Return which steps count, (T, B); None if all of them do."""
    return None if ragged is None else ragged.valid


class Engine(ABC):
    """What runs a whole layer: all levels and directions of a `Stack`, forward and backward.

    Who calls it has checked all arguments, but those of the attempts.
    """

    title: str
    """What the doctor calls it."""
    derives = False
    """Whether it derives the gradient of a cell without a backward step."""

    def able(
        self, cell: Cell, dtype: Any, shape: tuple[int, int], xp: Namespace, ways: int, levels: int
    ) -> list[Engine]:
        """Return what can run (T, B) in so many directions and levels, the best last."""
        return [self]

    def why_not(self, cell: Cell, dtype: Any, batch: int, xp: Namespace) -> str:
        """Return in one line why the steps do not run in one CUDA kernel; empty where they do."""
        return "the kernels are switched off"

    def weights(self, stack: Stack, params: Params) -> list[Any]:
        """Return the weights of each level, as `run` takes them: of each direction, by name."""
        return [[{name: params[full] for name, full in own} for own in d] for d in stack.names]

    def prepare(self, stack: Stack, params: Params) -> list[Any]:
        """Return the weights of each level, arranged for many calls of `run` without `keep`."""
        return self.weights(stack, params)

    def attempt(self, stack: Stack, params: Params, x: Any, state: Any) -> Any:
        """Return y and the state, as a layer does, of what a user gave, unchecked.

        The parameters have the right names, no more is known. None, and nothing is done, where that
        is not plain. An engine that looks at its arguments itself does it; so do the next three.
        """
        return None

    def attempting(self, stack: Stack, prepared: list[Any]) -> Attempt | None:
        """Return what does so with prepared weights, of x and a state; None where nothing does."""
        return None

    def attempt_forward(self, stack: Stack, params: Params, x: Any, state: Any) -> Made | None:
        """Run forward on what a user gave, unchecked; None where that is not plain. As `run`."""
        return None

    def attempt_backward(
        self, stack: Stack, params: Params, kept: Any, dy: Any, dstate: Any
    ) -> Made | None:
        """Run backward with gradients that a user gave, unchecked; None where they are not plain.

        As `run_backward`.
        """
        return None

    @abstractmethod
    def run(self, how: Run, weights: list[Any], x: Array, state: Parts) -> Made:
        """Run all levels over x.

        Parameters
        ----------
        how : Run
        weights : from `weights`; without `keep` also from `prepare`
        x : (T, B, I)
        state : (L*D, B, size) for each part of the cell's state; None is zeros

        Returns
        -------
        y : (T, B, D * size), a new array
        state : like the one that goes in, after the last step that was visited
        kept : belongs to one `run_backward`
        """

    @abstractmethod
    def run_backward(
        self, stack: Stack, weights: list[Any], kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run all levels backward through time.

        Parameters
        ----------
        stack, weights : as in `run`
        kept : from `run`
        dy : (T, B, D * size)
        dstate : (L*D, B, size) for each part of the state; None is zeros

        Returns
        -------
        gradients : of the weights of each level, in their form
        dx : (T, B, I), a new array
        dstate : like the one that goes in, of the initial state
        """

    def named(self, stack: Stack, gradients: list[Any]) -> dict[str, Array]:
        """Return gradients from `run_backward` by the parameters' names, in their order."""
        return {
            full: own[name]
            for names, made in zip(stack.names, gradients, strict=True)
            for each, own in zip(names, made, strict=True)
            for name, full in each
        }


class ByLevel(Engine):
    """An engine that runs one level after the other."""

    def run(self, how: Run, weights: list[Any], x: Array, state: Parts) -> Made:
        """Run all levels over x; see `Engine`."""
        stack, _, drop, _ = how
        if stack.levels == 1:
            y, last, made = self.run_level(how, weights[0], x, state)
            return y, tuple(last), [(made, None)]
        states, kept = [], []
        for level, own in enumerate(weights):
            mask = drop(level, x) if level and drop is not None else None
            x = x if mask is None else x * mask
            part = of_level(stack, state, level)
            x, last, made = self.run_level(how, own, x, part)
            states.append(last)
            kept.append((made, mask))
        return x, joined(states), kept

    def run_backward(
        self, stack: Stack, weights: list[Any], kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run all levels backward through time; see `Engine`."""
        states, gradients = [], []
        for level in reversed(range(stack.levels)):
            made, mask = kept[level]
            part = of_level(stack, dstate, level)
            own, dy, first = self.run_level_backward(stack, weights[level], made, dy, part)
            dy = dy if mask is None else dy * mask
            states.append(first)
            gradients.append(own)
        return gradients[::-1], dy, joined(states[::-1])

    @abstractmethod
    def run_level(self, how: Run, weights: Any, x: Array, state: Parts) -> Made:
        """Run the directions of one level; as `run`, with (D, B, size) for each part of a state."""

    @abstractmethod
    def run_level_backward(
        self, stack: Stack, weights: Any, kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run the directions of one level backward; as `run_backward`."""


def of_level(stack: Stack, parts: Parts, level: int) -> Parts:
    """Return the directions of one level, (D, B, size) for each part of a state."""
    ways = len(stack.reverse)
    if stack.levels == 1:
        return parts
    own = slice(level * ways, (level + 1) * ways)
    return [None if part is None else part[own, ...] for part in parts]


def joined(states: Sequence[Sequence[Array]]) -> tuple[Array, ...]:
    """Return the states of the levels, (D, B, size) for each part, as (L*D, B, size)."""
    if len(states) == 1:
        return tuple(states[0])
    xp = array_namespace(state=states[0][0])
    return tuple(xp.concat(parts, axis=0) for parts in zip(*states, strict=True))


def of_direction(parts: Parts, d: int) -> list[Array | None]:
    """Return each part of one direction's state, (B, size)."""
    return [None if part is None else part[d, ...] for part in parts]


def stacked(states: Sequence[Sequence[Array]]) -> list[Array]:
    """Return each part of the directions' states as (D, B, size)."""
    if len(states) == 1:
        return [part[None, ...] for part in states[0]]
    xp = array_namespace(state=states[0][0])
    return [xp.stack(parts) for parts in zip(*states, strict=True)]
