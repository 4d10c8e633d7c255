"""What a run writes for people: TensorBoard's events, attempts, and what is left of uploads that broke off."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from refocus.training.events import side_by_side, write_events
from refocus.training.runs import (
    Attempt,
    add_attempt,
    now,
    read_attempts,
    remove_partial_checkpoints,
    seal_folder,
    whole_checkpoints,
)

pytestmark = pytest.mark.store


def test_tensorboard_reads_scalars_and_pictures_back_and_a_repeated_report_takes_the_first_ones_place(store, tmp_path):
    picture = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    examples = side_by_side(picture / 2, picture * 0.75, picture)
    for step, loss in ((10, 0.5), (20, 9.0), (20, 0.25)):
        scalars = {"loss": loss, "validation_psnr_db": 30.0 + step, "note": "no number"}
        write_events(store, "run", step=step, wall_time_s=1000.0 + step, scalars=scalars, examples=examples)
    for entry in store.list("runs/run/tensorboard/"):
        (tmp_path / entry.key.rpartition("/")[2]).write_bytes(store.get(entry.key))
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("training/loss")] == [(10, 0.5), (20, 0.25)]
    assert [e.value for e in read.Scalars("validation/psnr_db")] == [40.0, 50.0]
    (first, _) = read.Images("before-after-truth/0")
    assert Image.open(io.BytesIO(first.encoded_image_string)).size == (24, 8)


def test_pictures_share_the_grey_scale_of_the_truth():
    truth = torch.linspace(0, 1, 10_000).reshape(1, 1, 100, 100)
    joined = side_by_side(truth + 1.0, truth, truth)
    assert joined.shape == (1, 1, 100, 300)
    assert joined[..., :100].min() == 1.0  # brighter than the truth's range: white, not scaled to fit
    torch.testing.assert_close(joined[0, 0, 50, 100:200], truth[0, 0, 50], atol=6e-3, rtol=0)  # 2 x 0.25% cut off


def test_attempts_are_kept_in_order(store):
    assert read_attempts(store, "run") == ()
    for step in (0, 40):
        add_attempt(store, "run", Attempt(submission="a", started=now(), step=step, workers=2))
    assert [attempt.step for attempt in read_attempts(store, "run")] == [0, 40]


def test_what_an_upload_left_that_broke_off_is_removed_and_whole_checkpoints_stay(store, tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    seal_folder(tmp_path, step=10, metrics={})
    for folder, files in (("step-00000010-a", ("weights", "checkpoint.json")), ("step-00000020-b", ("weights",))):
        for name in files:
            store.put(f"runs/run/{folder}/{name}", (tmp_path / name).read_bytes())
    store.put("runs/run/progress.json", b"[]")
    store.settings.client().create_multipart_upload(
        Bucket=store.settings.bucket, Key="runs/run/step-00000030-c/state.json"
    )
    assert remove_partial_checkpoints(store, "run") == ["runs/run/step-00000020-b/", "runs/run/step-00000030-c/"]
    assert store.abandon_uploads("runs/run/") == ()
    assert [c.key for c in whole_checkpoints(store, "run")] == ["runs/run/step-00000010-a/"]
    assert store.get("runs/run/progress.json") == b"[]"
