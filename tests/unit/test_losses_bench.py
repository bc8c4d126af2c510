"""`cirkd bench losses` at a size of no interest, where its naive code must agree with the losses."""

from __future__ import annotations

import pytest
import torch

from cirkd_ray.bench import _losses_measure as tables
from cirkd_ray.bench._losses_measure import SHAPES, Clock
from cirkd_ray.bench._losses_naive import NAIVE
from cirkd_ray.cli import main
from cirkd_ray.losses import LOSSES
from tests.errors import require_error

CLOCK = Clock(torch.device("cpu"), repeat=1)


def test_naive_counterparts_are_of_losses_that_exist() -> None:
    assert set(NAIVE) <= set(LOSSES.names())


@pytest.mark.parametrize("kind", sorted(set(NAIVE) - {"adversarial"}))
def test_losses_and_their_naive_counterparts_agree(kind: str) -> None:
    row = tables.loss_row(kind, SHAPES["tiny"], CLOCK)
    assert row[0] == kind
    assert float(row[-1]) < 1e-4


def test_a_row_for_each_number_of_tokens_and_naive_code_for_small_ones() -> None:
    table = tables.token_table([64, 128], CLOCK, largest_naive=64)
    assert [row[0] for row in table.rows] == ["64", "128"]
    assert [row[2] == row[4] == "-" for row in table.rows] == [False, True]
    assert all(float(cell) > 0 for cell in table.rows[0][3:])  # of memory


def test_tokens_are_related_alike_by_both_ways() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(65, 8), torch.randn(65, 12)
    for ours, plain in zip(
        tables.relate(student, teacher), tables.relate(student, teacher, plain=True), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_both_ways_to_enqueue_fill_the_queues_alike() -> None:
    losses, functions = tables.enqueue_pair(SHAPES["tiny"], CLOCK.device)
    before = losses[0].pixel.queue.clone()
    for function in functions:
        function()
    assert not torch.equal(losses[0].pixel.queue, before)
    for mine, theirs in zip(*(loss.buffers() for loss in losses), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_line_of_enqueueing_says_what_was_enqueued() -> None:
    line = tables.enqueue_line(SHAPES["tiny"], CLOCK)
    assert line.startswith("enqueue of 16 images, 5 classes, 16 x 16: ")


COMMAND = ["bench", "losses", "--device", "cpu", "--repeat", "1"]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shape", "tiny", "--loss", "kd", "--part", "losses", "--part", "exchange"]
    assert main([*COMMAND, *words]) == 0
    text = capsys.readouterr().out
    assert "kd" in text
    assert "a rank of two receives" in text


@pytest.mark.parametrize(
    ("words", "subject", "fact"),
    [
        (("--shape", "tinny"), "--shape", "'tiny'"),
        (("--loss", "kdd"), "kdd", "'kd'"),
        (("--repeat", "0"), "--repeat", "1"),
    ],
)
def test_bad_arguments(
    words: tuple[str, ...], subject: str, fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, *words]) == 2
    require_error(capsys.readouterr().err, subject, fact)
