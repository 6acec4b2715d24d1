"""Speech: which of nine speakers says these two vowels?

Trains a bidirectional GRU on 270 utterances, and tests it on 370 others.
"""

from rnn_xp import losses, sequence_model
from rnn_xp.backend import select
from rnn_xp.datasets import load_japanese_vowels
from rnn_xp.fitting import Settings, fit
from rnn_xp.tasks.classify import Encoding, confusion_matrix
from rnn_xp.tasks.examples import gradients_of, outputs_of

train, test = load_japanese_vowels()
encoding = Encoding.of(train)  # the classes, and the scale of each channel
inputs, targets = encoding.encode(train)
others, expected = encoding.encode(test)

backend = select("numpy")
model = sequence_model(
    train.channels, len(encoding.classes), bidirectional=True, dropout=0.5, pool="last"
)
gradients = gradients_of(
    model, backend, "float32", inputs, targets, losses.softmax_cross_entropy, noise=0.75
)
fitted = fit(model.init(seed=0), gradients, len(train), Settings(epochs=20))

predicted = outputs_of(model, fitted.params, backend, "float32", others).argmax(axis=1)
print(f"accuracy {100 * (predicted == expected).mean():.1f} % of {len(test)} utterances")
print("speakers (rows), and whom they were taken for (columns):")
print(confusion_matrix(expected, predicted, len(encoding.classes)))
