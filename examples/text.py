"""Natural language: train a character model in a program, let it write, and look inside.

On the command line: rnn-xp train text, rnn-xp sample, rnn-xp inspect.
"""

from rnn_xp import character_model
from rnn_xp.backend import select
from rnn_xp.datasets import load_shakespeare
from rnn_xp.sampling import sample
from rnn_xp.tasks.inspection import hidden_units, most_varied
from rnn_xp.text import Vocabulary
from rnn_xp.training import Settings, Trainer

STEPS = 150

text = load_shakespeare()
vocabulary = Vocabulary.of(text)  # of bytes: Vocabulary.of(text.encode())
codes = vocabulary.encode(text)
backend = select("numpy")
model = character_model(len(vocabulary), cell="gru", hidden_size=96)
settings = Settings(passes=1, max_steps=STEPS, learning_rate=0.01, eval_every=STEPS)
trainer = Trainer(model, backend, "float32", codes[:200_000], codes[200_000:220_000], settings)
progress = trainer.start()
trainer.run(progress, on_report=lambda report, _: print(f"{report.validation_loss:.3f} nats"))

params = progress.best_params
prompt = vocabulary.encode("ROMEO.\n")
print("".join(sample(model, params, vocabulary, backend, prompt, 200, temperature=0.7)))

line = "But, soft! what light through yonder window breaks?"
values = hidden_units(model, params, backend, vocabulary.encode(line))
print(f"{'':8} {line}")
for unit in most_varied(values, 3):
    print(f"unit {unit:3} " + "".join("-.+"[1 + round(float(v))] for v in values[:, unit]))
