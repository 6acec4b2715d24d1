"""`train series`, `eval` and `predict` of a forecaster, in a subprocess, as a user runs them."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import subprocess
from pathlib import Path

import pytest
from test_cli import command, fails, run

from rnn_xp.checkpoint import load

QUICK = ("--backend", "numpy", "--hidden-size", "8", "--epochs", "4")
WEEKLY = ("sales.csv", "--column", "units", "--season", "7", "--horizon", "3", "--window", "10")


@pytest.fixture
def sales(tmp_path: Path) -> Path:
    """Write a CSV file of a noisy week, with a price, dates and two gaps."""
    lines = ["day,units,price"]
    for k in range(90):
        units = f"{10 + 3 * math.sin(2 * math.pi * k / 7) + (k * 37 % 11) / 10:.3f}"
        lines.append(
            f"2024-{1 + k // 28:02}-{1 + k % 28:02},{'' if k in (20, 85) else units},{k % 5}"
        )
    path = tmp_path / "sales.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def overall(out: str) -> list[float]:
    """Return MAE, RMSE, MASE, the same of seasonal naive, and the ratio, over all steps."""
    found = re.search(r"^ +all +(.+)$", out, re.MULTILINE)
    assert found is not None, out
    return [float(field) for field in found[1].split()]


def written(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_train_eval_predict_of_sunspots(tmp_path: Path) -> None:
    """The defaults beat seasonal naive on the held-out part, in both ways of counting."""
    code, out, err = run(tmp_path, "train", "series", "--log", "log.jsonl", "--backend", "numpy")
    assert (code, err) == (0, "")
    assert "309 rows, 1700 to 2008; missing values: 0 of SUNACTIVITY" in out
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert f"validation loss {min(r['validation_loss'] for r in records):.4f}, are saved" in out
    scores = overall(out)
    assert scores[2] < 1.0
    assert scores[6] < 1.0
    assert scores[6] == pytest.approx(scores[0] / scores[3], abs=1e-3)

    code, again, err = run(tmp_path, "eval", "model.safetensors")
    assert (code, err) == (0, "")
    assert overall(again) == scores
    assert "1947 to 2008: forecasts from 59 origins" in again

    code, out, err = run(tmp_path, "predict", "model.safetensors", "--out", "f.csv")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["2009", "2010", "2011", "2012"]
    rows = written(tmp_path / "f.csv")
    assert list(rows[0]) == ["time", "actual", "forecast", "q0.1", "q0.5", "q0.9"]
    assert [row["time"] for row in rows] == [str(year) for year in range(1997, 2013)]
    assert [bool(row["actual"]) for row in rows] == [True] * 12 + [False] * 4
    assert (rows[11]["actual"], rows[11]["forecast"]) == ("2.9", "")
    for row in rows[12:]:
        assert row["forecast"] == row["q0.5"]
        assert float(row["q0.1"]) <= float(row["q0.5"]) <= float(row["q0.9"])
    assert "exists" in fails(tmp_path, "predict", "model.safetensors", "--out", "f.csv")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("linear", "2 of units, 0 of price, filled by the line between their neighbours"),
        ("last", "2 of units, 0 of price, filled by the last value before them"),
        ("mask", "2 of units, 0 of price, masked: the last value, and a channel"),
    ],
)
def test_a_file_with_gaps_and_an_exogenous_column(
    tmp_path: Path, sales: Path, missing: str, said: str
) -> None:
    arguments = (*WEEKLY, "--exog", "price", "--missing", missing, *QUICK)
    code, out, err = run(tmp_path, "train", "series", *arguments)
    assert (code, err) == (0, "")
    assert said in out
    described = load(tmp_path / "model.safetensors").task["forecaster"]
    assert (described["exog"], described["missing"]) == (["price"], missing)
    assert len(described["means"]) == (4 if missing == "mask" else 2)
    code, again, err = run(tmp_path, "eval", "model.safetensors", "sales.csv")
    assert (code, err) == (0, "")
    assert overall(again) == overall(out)
    assert "held-out part, 2024-03-17 to 2024-04-06" in again
    sales.write_text("\n".join(sales.read_text().splitlines()[:-3]) + "\n")
    code, other, err = run(tmp_path, "eval", "model.safetensors", "sales.csv")
    assert (code, err) == (0, "")
    assert "all of its 87 rows, which are not those of the training" in other
    code, out, err = run(tmp_path, "predict", "model.safetensors", "sales.csv", "--out", "f.csv")
    assert (code, err) == (0, "")
    rows = written(tmp_path / "f.csv")
    assert [row["time"] for row in rows][-4:] == ["2024-04-03", "+1", "+2", "+3"]
    assert [k for k, row in enumerate(rows[:9]) if not row["actual"]] == [7]


def test_quantiles_of_one_s_own(tmp_path: Path, sales: Path) -> None:
    code, out, err = run(
        tmp_path, "train", "series", *WEEKLY, "--quantiles", "0.05", "0.5", "0.95", *QUICK
    )
    assert (code, err) == (0, "")
    assert "90 % interval (q0.05 to q0.95)" in out
    code, _, err = run(tmp_path, "predict", "model.safetensors", "sales.csv", "--out", "f.csv")
    assert (code, err) == (0, "")
    assert (tmp_path / "f.csv").read_text().startswith("time,actual,forecast,q0.05,q0.5,q0.95\n")


def test_one_quantile_has_no_interval(tmp_path: Path, sales: Path) -> None:
    code, out, _ = run(tmp_path, "train", "series", *WEEKLY, "--quantiles", "0.5", *QUICK)
    assert code == 0
    assert "interval" not in out


def test_one_seed_gives_one_model(tmp_path: Path, sales: Path) -> None:
    lines = []
    for seed in ("1", "1", "2"):
        code, out, _ = run(tmp_path, "train", "series", *WEEKLY, *QUICK, "--seed", seed, "--force")
        assert code == 0
        lines.append(overall(out))
    assert lines[0] == lines[1] != lines[2]


def test_an_interrupted_training_saves_its_best_epoch(tmp_path: Path) -> None:
    arguments = ("train", "series", "--epochs", "1000", "--backend", "numpy")
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    seen = ""
    while "epoch   50/" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, ""), (out, err)
    assert re.search(r"interrupted: the parameters of epoch \d+, .* saved to model.saf", out)
    assert run(tmp_path, "predict", "model.safetensors")[0] == 0


def test_bad_files(tmp_path: Path, sales: Path) -> None:
    text = sales.read_text()

    def said(content: str, *more: str) -> str:
        (tmp_path / "sales.csv").write_text(content, encoding="utf-8")
        return fails(tmp_path, "train", "series", *WEEKLY, *more)

    assert "sales.csv, line 4: the column 'units' has 'many'" in said(
        re.sub(r"(?m)^2024-01-03,[^,]*", "2024-01-03,many", text)
    )
    assert "sales.csv, line 92 has 2 fields, but the first row has 3" in said(text + "x,1\n")
    assert "sales.csv has no column 'cost'" in said(text, "--exog", "cost")
    assert "sales.csv has no column 'hour'" in said(text, "--time", "hour")
    assert "'units' is the column to forecast" in said(text, "--exog", "units")
    assert "sales.csv: too few rows: 19, of which" in said("\n".join(text.splitlines()[:20]))
    assert "all values of the column 'units' are missing" in said(
        re.sub(r"(?m)^(2024[^,]*),[^,]*", r"\1,", text)
    )
    assert "the column 'units' is constant, it is 5" in said(
        re.sub(r"(?m)^(2024[^,]*),[^,]*", r"\1,5", text)
    )
    assert "sales.csv is empty" in said("")
    assert "No such file" in fails(tmp_path, "train", "series", "no.csv", *WEEKLY[1:])


def test_bad_options(tmp_path: Path, sales: Path) -> None:
    start = ("train", "series")
    assert "sales.csv: say with --column" in fails(tmp_path, *start, "sales.csv", "--horizon", "3")
    assert "sales.csv: say with --horizon" in fails(
        tmp_path, *start, "sales.csv", "--column", "units"
    )
    assert ">= 1, got 0" in fails(tmp_path, *start, "--horizon", "0")
    assert ">= 1, got 0" in fails(tmp_path, *start, "--window", "0")
    assert "quantiles must rise and lie between 0 and 1, got 0.1, 0.5, 1.5" in fails(
        tmp_path, *start, "--quantiles", "0.1", "0.5", "1.5"
    )
    assert "quantiles must hold 0.5" in fails(tmp_path, *start, "--quantiles", "0.1", "0.9")
    assert "> 0" in fails(tmp_path, *start, "--amplitudes", "0")
    assert "too few rows" in fails(tmp_path, *start, "--horizon", "300")
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    assert "--force" in fails(tmp_path, *start)


def test_bad_use(tmp_path: Path, sales: Path) -> None:
    assert run(tmp_path, "train", "series", *WEEKLY, *QUICK)[0] == 0
    for name in ("eval", "predict"):
        assert "was trained on a file: give a FILE" in fails(tmp_path, name, "model.safetensors")
        assert "sunspots has no column 'units'" in fails(
            tmp_path, name, "model.safetensors", "sunspots"
        )
    sales.write_text("\n".join(sales.read_text().splitlines()[:9]) + "\n")
    assert "too few rows, 8: a forecast reads 10" in fails(
        tmp_path, "predict", "model.safetensors", "sales.csv"
    )
    assert "too few rows, 8: a forecast reads 10 and is compared with the 3 after" in fails(
        tmp_path, "eval", "model.safetensors", "sales.csv"
    )
    assert "--confusion is for models of the kind 'classify'" in fails(
        tmp_path, "eval", "model.safetensors", "sales.csv", "--confusion", "c.csv"
    )
    assert "no text model" in fails(tmp_path, "sample", "model.safetensors")


def test_help_shows_an_example(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "train", "series", "--help")
    assert code == 0
    assert "example:\n  rnn-xp train series" in out
    assert "up to the origin of a forecast" in " ".join(out.split())
