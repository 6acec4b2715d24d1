"""scikit-learn estimators: a sequence classifier and a sequence regressor.

Usable wherever scikit-learn takes an estimator: `Pipeline`, `GridSearchCV`, `cross_val_score`,
`clone`. X is one of:

    table       (N, F): N sequences of F steps with one channel, so that what scikit-learn has for
                tables, `StandardScaler` for instance, fits in front in a `Pipeline`; an array, a
                data frame or a list of lists
    sequences   (N, T, C), or a list or an object array of N arrays (T, C), whose T may differ

An estimator that was fitted to one of the two predicts for the same.
"""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any, Self

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state, check_X_y
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise
    raise ImportError("scikit-learn is not installed: pip install 'rnn-xp[sklearn]'") from None

from rnn_xp import losses
from rnn_xp.backend import Array, select, to_numpy
from rnn_xp.fitting import Epoch, Settings, fit
from rnn_xp.layers.checks import check_count
from rnn_xp.models import sequence_model
from rnn_xp.scaling import mean_and_deviation
from rnn_xp.sequences import Sequences
from rnn_xp.tasks.classify import probabilities
from rnn_xp.tasks.examples import Loss, gradients_of, outputs_of

HostArray = np.ndarray[Any, Any]


class _SequenceEstimator(BaseEstimator):  # type: ignore[misc]
    """What the two share: their parameters, how X is read, how the network is fitted."""

    def __init__(
        self,
        *,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pool: str = "mean",
        epochs: int = 30,
        batch_size: int = 32,
        learning_rate: float = 0.003,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        standardize: bool = True,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str = "float32",
        random_state: Any = None,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.pool = pool
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip = clip
        self.standardize = standardize
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # From X to sequences

    def _sequences(self, X: Any, *, reset: bool) -> Sequences:
        """Read X; `reset` stands for the call of `fit`, where its form is learnt."""
        form = "sequences" if _holds_sequences(X) else "a table"
        if not reset and form != self.form_:
            raise ValueError(
                f"X is {form}, but this {type(self).__name__} was fitted to {self.form_}"
            )
        if form == "a table":
            table = validate_data(self, X, reset=reset, dtype=(np.float64, np.float32))
            sequences = Sequences(tuple(table[:, :, None]))
        else:
            values = X.values if isinstance(X, Sequences) else X
            if any(np.iscomplexobj(value) for value in values):
                raise ValueError("Complex data not supported: the sequences of X must be real")
            sequences = Sequences(tuple(np.asarray(value, dtype=np.float64) for value in values))
        if reset:
            self._learn(form, sequences)
        elif form == "sequences" and sequences.channels != self.n_features_in_:
            raise ValueError(
                f"X has {sequences.channels} channels, but this {type(self).__name__} was fitted "
                f"to {self.n_features_in_}"
            )
        values = ((value - self.mean_) / self.scale_ for value in sequences.values)
        return Sequences(tuple(values))

    def _targets(self, sequences: Sequences, y: Any, **options: bool) -> HostArray:
        # scikit-learn checks y beside a table only: rows that stand for the sequences.
        _, targets = check_X_y(np.zeros((len(sequences), 1)), y, estimator=self, **options)
        return np.asarray(targets)

    def _learn(self, form: str, sequences: Sequences) -> None:
        """Keep the form of X, and mean and scale of its channels over all steps."""
        self.form_ = form
        if form == "sequences":
            self.n_features_in_ = sequences.channels
            self.__dict__.pop("feature_names_in_", None)
        self.mean_, self.scale_ = np.zeros(sequences.channels), np.ones(sequences.channels)
        if self.standardize:
            self.mean_, self.scale_ = _mean_and_scale(np.concatenate(sequences.values))

    # The network

    def _fit_network(
        self, sequences: Sequences, outputs: int, targets: HostArray, loss: Loss
    ) -> None:
        given = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        settings = _settings(given, int(check_random_state(self.random_state).randint(2**31 - 1)))
        names = ("cell", "hidden_size", "num_layers", "bidirectional", "dropout", "pool")
        model = sequence_model(sequences.channels, outputs, **{name: given[name] for name in names})
        backend = select(self.backend, self.device)
        where = {"backend": backend.name, "device": backend.device_name, "dtype": self.dtype}
        params = model.init(settings.seed, **where)
        gradients = gradients_of(model, backend, self.dtype, sequences, targets, loss)
        epochs: list[Epoch] = []
        with backend.scope():
            fitted = fit(params, gradients, len(sequences), settings, on_epoch=epochs.append)
        if fitted.outcome == "diverged":
            warnings.warn(
                f"the loss is not finite after epoch {fitted.epoch}, whose parameters are kept: "
                "lower learning_rate, or scale X",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.model_ = model
        # On the host, so that a pickle opens where there is no such backend.
        self.params_ = {name: to_numpy(value) for name, value in fitted.params.items()}
        self.loss_curve_ = [epoch.train_loss for epoch in epochs]

    def _outputs(self, X: Any) -> HostArray:
        """Return the network's outputs (N, K), float64."""
        check_is_fitted(self)
        sequences = self._sequences(X, reset=False)
        backend = select(self.backend, self.device)
        params = {name: backend.asarray(value, self.dtype) for name, value in self.params_.items()}
        with backend.scope():
            found = outputs_of(self.model_, params, backend, self.dtype, sequences)
        return found.astype(np.float64)


class RNNClassifier(ClassifierMixin, _SequenceEstimator):  # type: ignore[misc]
    """Recurrent layers → pool → linear, trained on labelled sequences.

    Parameters
    ----------
    cell : str
        `rnn`, `lstm` or `gru`.
    hidden_size, num_layers : int
    bidirectional : bool
    dropout : float
        Probability to zero an element between the levels and before the output, in training.
    pool : str
        The output sees the mean over a sequence's steps, `mean`, or its last step, `last`.
    epochs, batch_size : int
    learning_rate : float
        The peak, of Adam with a cosine schedule.
    weight_decay : float
        Above 0: AdamW with this decay.
    clip : float
        The largest global norm of the gradient.
    standardize : bool
        Whether each channel is standardised by its mean and deviation over all steps of the
        training sequences.
    backend, device : str
        Where the network is trained and used; as in `rnn_xp.backend.select`.
    dtype : str
    random_state : int, numpy.random.RandomState or None
        The same integer gives the same network.

    Attributes
    ----------
    model_ : Chain
        The network, as from `rnn_xp.sequence_model`.
    params_ : dict of arrays
        Its parameters, on the host.
    loss_curve_ : list of float
        The training loss of each epoch.
    mean_, scale_ : (C,)
        By which the channels are standardised.
    n_features_in_ : int
        F of a table, C of sequences.
    feature_names_in_ : (F,)
        The names of a data frame's columns.
    classes_ : (K,)
        The labels, sorted.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train the network.

        Parameters
        ----------
        X : table or sequences
            See the module.
        y : (N,)
            A label, of any kind, for each sequence.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If a parameter, X or y is not of the kinds above, or X has a value that is not finite.
        BackendError
            If the backend cannot be used.
        """
        sequences = self._sequences(X, reset=True)
        labels = self._targets(sequences, y)
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        self._fit_network(sequences, len(self.classes_), targets, losses.softmax_cross_entropy)
        return self

    def predict_proba(self, X: Any) -> HostArray:
        """Return the probability of each class (N, K), in the order of `classes_`."""
        return probabilities(self._outputs(X))

    def predict(self, X: Any) -> HostArray:
        """Return the most probable label of each sequence (N,)."""
        best = self._outputs(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


class RNNRegressor(RegressorMixin, _SequenceEstimator):  # type: ignore[misc]
    """Recurrent layers → pool → linear, trained on numbers for each sequence.

    The loss is the mean squared error of the targets, standardised by their mean and deviation.
    Parameters and attributes are those of `RNNClassifier`, but for `classes_`, and these:

    Attributes
    ----------
    target_mean_, target_scale_ : (K,)
        By which the targets are standardised.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train the network; as `RNNClassifier.fit`, but for:

        Parameters
        ----------
        y : (N,) or (N, K)
            One number for each sequence, or K.
        """
        sequences = self._sequences(X, reset=True)
        numbers = self._targets(sequences, y, multi_output=True, y_numeric=True).astype(np.float64)
        self._flat = numbers.ndim == 1
        targets = numbers.reshape(len(sequences), -1)
        self.target_mean_, self.target_scale_ = _mean_and_scale(targets)
        scaled = (targets - self.target_mean_) / self.target_scale_
        self._fit_network(sequences, scaled.shape[1], scaled, _mean_squared_error)
        return self

    def predict(self, X: Any) -> HostArray:
        """Return the numbers of each sequence, in the form of the y given to `fit`."""
        numbers = self._outputs(X) * self.target_scale_ + self.target_mean_
        return np.asarray(numbers[:, 0] if self._flat else numbers)


def _holds_sequences(X: Any) -> bool:
    """Tell sequences from a table: of three axes, or the first element has two."""
    if isinstance(X, Sequences):
        return True
    if isinstance(X, list | tuple) or (isinstance(X, np.ndarray) and X.ndim == 1 and len(X)):
        return len(X) > 0 and np.ndim(X[0]) == 2
    return getattr(X, "ndim", None) == 3


def _plain(value: Any) -> Any:
    """Return a NumPy scalar, as a search draws them, as Python's number."""
    return value.item() if isinstance(value, np.generic) else value


def _settings(given: dict[str, Any], seed: int) -> Settings:
    for name in ("epochs", "batch_size"):
        check_count(name, given[name])
    for name in ("learning_rate", "clip", "weight_decay"):
        if not isinstance(given[name], Real):
            raise TypeError(f"{name} must be a number, got {given[name]!r}")
    for name in ("learning_rate", "clip"):
        if not given[name] > 0:
            raise ValueError(f"{name} must be a number above 0, got {given[name]!r}")
    if not given["weight_decay"] >= 0:
        raise ValueError(f"weight_decay must be a number from 0, got {given['weight_decay']!r}")
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "clip")
    return Settings(**{name: given[name] for name in names}, seed=seed)


def _mean_and_scale(rows: HostArray) -> tuple[HostArray, HostArray]:
    """Return mean and deviation of each column (K,); 1 for the deviation of a constant one."""
    mean, deviation = mean_and_deviation(rows)
    return mean, np.where(deviation > 0, deviation, 1.0)


def _mean_squared_error(outputs: Array, targets: Array) -> tuple[Array, Array]:
    return losses.squared_error(outputs, targets, reduction="mean")
