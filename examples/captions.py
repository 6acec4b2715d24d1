"""Pictures: a network that looks at a handwritten digit and says what sets it apart.

On the command line: rnn-xp train caption, rnn-xp predict MODEL --show.
"""

from rnn_xp.backend import select
from rnn_xp.captioner import caption_model
from rnn_xp.fitting import Settings, fit
from rnn_xp.tasks.caption import (
    Reader,
    gradients_of,
    load_digit_pictures,
    split,
    write_captions,
)
from rnn_xp.tasks.digit_captions import accuracies

pictures = load_digit_pictures()
train, test = split(pictures)
reader = Reader.of(train, pictures.captions)  # the words, and the scale of the pictures

backend = select("numpy")
model = caption_model(64, len(reader.words) + 1, cell="gru", dropout=0.5)
gradients = gradients_of(model, backend, "float32", reader, train)
settings = Settings(epochs=10, learning_rate=0.006, weight_decay=0.5)
fitted = fit(model.init(seed=0), gradients, len(train), settings)

written = write_captions(model, fitted.params, backend, reader, test.images, beam=5)
for text, true in list(zip(written, test.captions, strict=True))[:8]:
    print(f"{text.caption:40} {text.log_probability:6.2f}   true: {true}")
right = accuracies([text.caption for text in written], test.captions)
print(", ".join(f"{name} {100 * value:.0f} %" for name, value in right.items()))
