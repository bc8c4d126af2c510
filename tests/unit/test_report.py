"""Pictures, figures, tables, progress lines and TensorBoard files."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cirkd_ray.data_tools import pictures
from cirkd_ray.evaluate.evaluation import evaluate
from cirkd_ray.report import figures, tables
from cirkd_ray.report.predictions import side_by_side
from cirkd_ray.report.progress import RunProgress, bar, duration
from cirkd_ray.report.summary import NETWORK_COLUMNS, network_row
from cirkd_ray.report.tensorboard import TensorBoard
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.types import ClassSet
from tests.tiny import CLASSES, RandomSet, TinyNet


@pytest.fixture(scope="module")
def result():
    data = RandomSet(count=3)
    return evaluate(TinyNet(), data, device="cpu", pictures=(0, 2), teacher=TinyNet(seed=1), boundary=True)


def test_colors_are_the_palettes_and_ignored_pixels_stand_out():
    labels = np.array([[0, 1, 2], [3, 254, 255]], dtype=np.uint8)
    colors = pictures.colorize(labels, CLASSES)
    assert colors.dtype == np.uint8
    assert [tuple(c) for c in colors.reshape(-1, 3)[:4].tolist()] == list(CLASSES.palette)
    assert (colors[1, 1:] == 0).all()
    voc = ClassSet(("background", "cat"), ((0, 0, 0), (64, 0, 0)))
    assert (pictures.colorize(labels, voc)[1, 2] == (224, 224, 192)).all()
    assert (pictures.colorize(labels, voc)[0, 2] == (255, 0, 255)).all()  # no class: a mistake that shows


def test_blend_mixes_and_leaves_ignored_pixels():
    image = np.full((1, 2, 3), 100, dtype=np.uint8)
    mixed = pictures.blend(image, np.array([[1, 255]], dtype=np.uint8), CLASSES, alpha=0.25)
    assert mixed[0, 0].tolist() == [107, 91, 107]  # 100 * 0.75 + (128, 64, 128) * 0.25
    assert mixed[0, 1].tolist() == [100, 100, 100]
    with pytest.raises(ValueError, match="pixels but labels"):
        pictures.blend(image, np.zeros((2, 2), dtype=np.uint8), CLASSES)


def test_mistakes_show_wrong_right_and_ignored_pixels():
    truth = np.array([[0, 0, 255]], dtype=np.uint8)
    shown = pictures.mistakes(truth, np.array([[0, 1, 1]], dtype=np.uint8))
    assert len({tuple(c) for c in shown[0].tolist()}) == 3
    assert shown[0, 1, 0] > 2 * shown[0, 1, 1]


def test_grid_holds_every_picture_where_it_belongs():
    parts = [np.full((4, 5, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    made = pictures.grid([parts[:2], parts[2:]], gap=2)
    assert made.shape == (4 * 2 + 3 * 2, 5 * 2 + 3 * 2, 3)
    assert (made[2:6, 2:7] == 10).all()
    assert (made[2:6, 9:14] == 20).all()
    assert (made[8:12, 2:7] == 30).all()
    assert (made[8:12, 9:14] == 255).all()
    with pytest.raises(ValueError, match="at least one picture"):
        pictures.grid([[]])


def test_fit_keeps_proportions_and_never_invents_labels():
    labels = np.random.default_rng(0).choice(np.array([0, 3, 255], dtype=np.uint8), (100, 300))
    small = pictures.fit(labels, height=50, width=60, labels=True)
    assert small.shape == (20, 60)
    assert set(np.unique(small)) <= {0, 3, 255}
    assert pictures.fit(labels, height=500) is labels


def test_legend_wraps_and_shows_only_what_is_there():
    names = tuple(f"a class {i}" for i in range(20))
    colors = tuple((10 * i, 255 - 10 * i, 77) for i in range(20))
    classes = ClassSet(names, colors)
    full = pictures.legend(pictures.class_entries(classes, range(20)), 300)
    assert full.shape[1] == 300
    assert all((full == color).all(-1).any() for color in colors)
    part = pictures.legend(pictures.class_entries(classes, [3, 5, 255]), 300)
    assert part.shape[0] < full.shape[0]
    assert [(part == color).all(-1).any() for color in colors] == [i in (3, 5) for i in range(20)]


def test_text_is_cut_to_its_width_and_survives_any_alphabet():
    line = pictures.text_line("a very long name " * 20, 100)
    assert line.shape[1] == 100
    assert line.min() < 100
    assert pictures.text_line("Zürich 東京", 200).shape[1] == 200


def test_side_by_side_shows_image_truth_student_and_teacher(result):
    shown = side_by_side(result.pictures, CLASSES)
    widths = 4 * 20
    assert shown.shape[1] >= widths
    picture = result.pictures[0]
    for part in (picture.image, *(pictures.colorize(m, CLASSES) for m in picture[2:])):
        assert contains(shown, part)
    alone = [p._replace(teacher=None) for p in result.pictures]
    assert side_by_side(alone, CLASSES).shape[1] < shown.shape[1]
    with_errors = side_by_side(alone, CLASSES, errors=True)
    assert contains(with_errors, pictures.mistakes(picture.truth, picture.student))


def contains(canvas, part):
    height, width = part.shape[:2]
    corners = np.argwhere((canvas == part[0, 0]).all(-1))
    return any(np.array_equal(canvas[y : y + height, x : x + width], part) for y, x in corners)


def test_confusion_figure_shows_shares_of_rows():
    matrix = np.array([[30, 10, 0], [0, 0, 0], [5, 0, 45]])
    figure = figures.confusion_figure(matrix, ("a", "b", "c"), "title")
    shown = figure.axes[0].images[0].get_array()
    assert np.allclose(shown[0], [75, 25, 0])
    assert np.ma.getmaskarray(shown)[1].all() or np.isnan(np.asarray(shown)[1]).all()
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["10", "25", "75", "90"]
    pixels = figures.to_image(figure)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 10
    with pytest.raises(ValueError, match="class names"):
        figures.confusion_figure(matrix, ("a", "b"))


def test_tables_for_terminals_and_markdown():
    rows = (
        network_row("teacher", "deeplabv3_resnet101", 0.7807, 58_600_000, " (19 of 19)"),
        network_row("student", "a|b", float("nan"), None),
    )
    table = tables.TextTable(NETWORK_COLUMNS, rows)
    assert table.markdown().splitlines() == [
        "|  | model | mIoU % | parameters |",
        "| --- | ---: | ---: | ---: |",
        "| teacher | deeplabv3_resnet101 | 78.07 (19 of 19) | 58.60 M |",
        "| student | a\\|b | - | - |",
    ]
    console = Console(file=io.StringIO(), width=100)
    console.print(table.rich())
    text = console.file.getvalue()
    assert all(cell in text for cell in ("teacher", "78.07", "58.60 M", "parameters"))
    with pytest.raises(ValueError, match="2 cells in a table of 1"):
        tables.TextTable(("a",), (("1", "2"),))


def test_class_table_has_a_row_a_class_with_its_share(result):
    table = tables.per_class(result, "val")
    assert [row[0] for row in table.rows] == list(CLASSES.names)
    assert sum(float(row[1]) for row in table.rows) == pytest.approx(100, abs=0.05)
    iou = result.metrics()["iou/road"]
    assert table.rows[1][2] == f"{iou * 100:.2f}"
    assert "boundary IoU %" in table.columns
    assert table.markdown().startswith("**val**\n\n| class |")
    assert tables.scores(result).rows[0][0] == "mIoU (4 of 4 classes)"
    assert tables.scores(result).rows[-1][0] == "boundary IoU"


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_with_time_left_from_the_speed_now():
    clock, stream = Clock(), io.StringIO()
    progress = RunProgress(1000, stream=stream, clock=clock)
    progress.metrics(500, {"loss/total": 2.0})  # resumed here: nothing is known of the speed
    clock.now = 10.0
    progress.metrics(510, {"loss/total": 1.5, "images_per_second": 16.04})
    progress.metrics(510, {"loss/total": 1.5, "miou": 0.25})
    progress.message("hello")
    clock.now = 20.0
    progress.metrics(520, {"loss/total": 1.25})
    assert stream.getvalue().splitlines() == [
        "step 500/1000  loss 2.0000  ETA --",
        "step 510/1000  loss 1.5000  16.0 images/s  ETA 8:10",
        "step 510/1000  loss 1.5000  mIoU 25.00 %  ETA 8:10",
        "hello",
        "step 520/1000  loss 1.2500  ETA 8:00",
    ]


def test_time_left_follows_a_change_of_speed_and_a_restart():
    clock = Clock()
    progress = RunProgress(10_000, stream=io.StringIO(), clock=clock)
    for step in range(0, 1000, 10):
        clock.now += 100.0
        progress.metrics(step, {})
    for step in range(1000, 2000, 10):
        clock.now += 10.0
        progress.metrics(step, {})
    assert progress.eta() == pytest.approx(10_000 - 1990)
    progress.metrics(500, {})
    assert progress.eta() is None
    clock.now += 5.0
    progress.metrics(510, {})
    assert progress.eta() == pytest.approx(0.5 * (10_000 - 510))


def test_plain_lines_are_thinned_but_validations_and_the_end_stay():
    stream = io.StringIO()
    progress = RunProgress(20, stream=stream, every=10)
    for step in range(1, 21):
        progress.metrics(step, {"miou": 0.5} if step == 7 else {})
    steps = [int(n) for n in re.findall(r"step (\d+)/20", stream.getvalue())]
    assert steps == [1, 7, 17, 20]


def test_live_line_on_a_terminal_and_messages_above_it():
    stream = Terminal()
    progress = RunProgress(100, stream=stream)
    progress.metrics(40, {"loss": 0.5, "miou": 0.1234, "images_per_second": 7.0})
    progress.message("[not markup]")
    progress.finish()
    progress.finish()
    text = stream.getvalue()
    assert "step 40/100" in text
    assert "loss 0.5000  mIoU 12.34 %  7.0 images/s" in text
    assert "[not markup]" in text


def test_long_work_says_now_and_then_how_far_it_is(monkeypatch, capsys):
    now = iter([0.0, 4.0, 16.0, 16.0, 20.0])
    monkeypatch.setattr("cirkd_ray.report.progress.time.monotonic", lambda: next(now))
    with bar(90, "evaluating") as advance:
        for done in (10, 20, 30):
            advance(done)
    assert capsys.readouterr().err == "evaluating: 30 of 90 images\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "--"), (float("inf"), "--"), (0, "0:00"), (65.4, "1:05"), (3723, "1:02:03")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def read_back(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_holds_scores_pictures_and_hparams(result, tmp_path):
    board = TensorBoard(tmp_path)
    board.scalars(10, {"loss/task": 1.5, "train/lr": 0.02})
    board.validation(10, result)
    board.hparams({"optim.lr": 0.02, "name": "x", "crop": [1, 2], "none": None}, {"hparam/best_miou": 0.5})
    board.close()
    found = read_back(tmp_path)
    scores = result.metrics()
    expected = {"loss/task": 1.5, "train/lr": 0.02, "val/miou": scores["miou"]}
    expected |= {"val_iou/road": scores["iou/road"], "val/boundary_iou": scores["boundary_iou"]}
    for tag, value in expected.items():
        event = found.Scalars(tag)[0]
        assert (event.step, event.value) == (10, pytest.approx(value, rel=1e-5))
    assert set(found.Tags()["images"]) == {"val/confusion", "val/predictions"}
    shown = decode(found.Images("val/predictions")[0].encoded_image_string)
    assert contains(shown, pictures.colorize(result.pictures[0].student, CLASSES))
    assert found.Scalars("hparam/best_miou")[0].value == 0.5
    assert "_hparams_/session_start_info" in found.summary_metadata
    assert len(list(tmp_path.iterdir())) == len([p for p in tmp_path.iterdir() if p.is_file()])


def decode(png):
    import cv2

    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_tensorboard_after_a_resume_has_every_step_once(tmp_path):
    first = TensorBoard(tmp_path)
    for step in range(1, 11):
        first.scalars(step, {"loss/task": float(step)})
    first.close()
    second = TensorBoard(tmp_path, purge_step=7)  # the checkpoint was of step 6
    for step in range(7, 13):
        second.scalars(step, {"loss/task": 100.0 + step})
    second.close()
    events = read_back(tmp_path).Scalars("loss/task")
    assert [event.step for event in events] == list(range(1, 13))
    assert [event.value for event in events] == [*range(1, 7), *(100 + step for step in range(7, 13))]


def test_report_imports_tensorboard_late_and_pyplot_never():
    code = (
        "import sys, numpy as np, cirkd_ray.report.tensorboard, cirkd_ray.report.tables;"
        "from cirkd_ray.report import figures as f; f.to_image(f.confusion_figure(np.eye(2), 'ab'));"
        "assert not {'torch.utils.tensorboard', 'matplotlib.pyplot', 'tensorboard', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_follower_says_everything_once(tmp_path, capsys):
    from cirkd_ray.report.follow import Follower
    from cirkd_ray.report.listeners import RunLog

    run = RunDirectory(tmp_path)
    with Follower(run, 20, interval=0.01):
        log = RunLog(run)
        log.start({"name": "kd", "train": {"steps": 20}}, 0)
        for step in (10, 20):
            row = {"step": step, "loss/total": 2.0}
            run.append_metrics(row)
            log.metrics(step, row)
        log.message("a warning")
        log.finish({})
    lines = sorted(line.split("  ")[0] for line in capsys.readouterr().err.splitlines())
    assert lines == ["a warning", "step 10/20", "step 20/20"]


def test_the_log_of_a_run_holds_what_it_said_and_reported(tmp_path):
    from cirkd_ray.report.listeners import RunLog

    log = RunLog(RunDirectory(tmp_path))
    log.start({"name": "kd", "train": {"steps": 20}}, 0)
    log.metrics(10, {"loss/total": 2.34567, "lr": 0.1, "images_per_second": 12.3})
    log.message("a warning")
    log.metrics(20, {"loss/total": 1.0, "miou": 0.25, "images_per_second": 10.0})
    log.finish({})
    lines = [line.split(" ", 2)[2].strip() for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines == [
        "kd: step 0 to 20",
        "step 10: loss 2.346, images/s 12.3",
        "a warning",
        "step 20: loss 1, mIoU 0.25, images/s 10",
        "finished",
    ]
