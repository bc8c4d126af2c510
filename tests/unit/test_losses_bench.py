"""`cirkd bench losses` at a size of no interest, where its naive code must agree with the losses."""

from __future__ import annotations

import pytest
import torch

from cirkd_ray.bench import losses as bench
from cirkd_ray.bench._losses_measure import SHAPES, Clock
from cirkd_ray.bench._losses_naive import NAIVE
from cirkd_ray.bench._losses_parts import enqueue_seconds, token_rows
from cirkd_ray.cli import main
from cirkd_ray.losses import LOSSES

CLOCK = Clock(torch.device("cpu"), repeat=1)


def test_naive_counterparts_are_of_losses_that_exist() -> None:
    assert set(NAIVE) <= set(LOSSES.names())


@pytest.mark.parametrize("kind", sorted(set(NAIVE) - {"adversarial"}))
def test_losses_and_their_naive_counterparts_agree(kind: str) -> None:
    row = bench.loss_row(kind, "tiny", CLOCK)
    assert row[0] == kind
    assert float(row[-1]) < 1e-4


def test_tokens_and_enqueue() -> None:
    rows = token_rows([64, 128], CLOCK, largest_naive=64)
    assert [row[0] for row in rows] == [64, 128]
    assert rows[0][4] > 0
    assert rows[1][3] is None
    ours, loops = enqueue_seconds(SHAPES["tiny"], CLOCK)
    assert 0 < ours < loops


COMMAND = ["bench", "losses", "--device", "cpu", "--repeat", "1"]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shape", "tiny", "--loss", "kd", "--part", "losses", "--part", "exchange"]
    assert main([*COMMAND, *words]) == 0
    text = capsys.readouterr().out
    assert "kd" in text
    assert "a rank of two receives" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shape", "tinny"), "did you mean 'tiny'"),
        (("--loss", "kdd"), "did you mean 'kd'"),
        (("--repeat", "0"), "--repeat"),
    ],
)
def test_bad_arguments(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, *words]) == 2
    assert message in capsys.readouterr().err
