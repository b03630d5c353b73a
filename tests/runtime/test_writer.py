import json

import numpy as np
import pytest

from gen_jax.runtime import writer


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_has_a_line_per_step(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    jsonl = writer.JsonlWriter(path, 0)
    jsonl.write_scalars(1, {'loss': np.float32(0.5)})
    assert lines(path) == [{'step': 1, 'loss': 0.5}]  # at once
    jsonl.write_scalars(2, {'loss': 0.25})
    jsonl.close()
    assert lines(path) == [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': 0.25}]


def test_numbers_that_json_has_not_are_null(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    jsonl = writer.JsonlWriter(path, 0)
    jsonl.write_scalars(1, {'fid': np.float32('nan'), 'kid': np.inf, 'n': 2})
    jsonl.close()
    assert path.read_text() == '{"step": 1, "fid": null, "kid": null, "n": 2.0}\n'


def test_a_resumed_run_drops_the_lines_it_will_write_again(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    jsonl = writer.JsonlWriter(path, 1)
    jsonl.write_scalars(2, {'loss': 2})
    jsonl.close()
    assert [line['step'] for line in lines(path)] == [1, 2]


def test_without_a_terminal_progress_is_plain_lines(capsys):
    progress = writer.Progress(start=0, steps=100, batch_size=10)
    progress.count_step()
    progress.write_scalars(40, {'loss': 0.125, 'steps_per_second': 2.0})
    progress.close()
    out = capsys.readouterr().out
    assert out == 'step 40/100  loss 0.125  20 images/s  left 0:30\n'


def test_numbers_of_an_evaluation_have_no_rate(capsys):
    progress = writer.Progress(start=0, steps=100, batch_size=10)
    progress.write_scalars(40, {'fid_digits': 1.5})
    assert capsys.readouterr().out == 'step 40/100  fid_digits 1.5\n'


def test_writers_hand_everything_to_each(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b']
    both = writer.Writers([writer.JsonlWriter(path, 0) for path in paths])
    both.write_scalars(1, {'x': 2.0})
    both.write_images(1, {'grid': np.zeros((1, 2, 2, 1), np.uint8)})
    both.flush()
    assert [lines(path) for path in paths] == [[{'step': 1, 'x': 2.0}]] * 2
    both.close()


def test_tensorboard_events_hold_what_was_written(tmp_path):
    pytest.importorskip('tensorflow')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = writer.tensorboard_writer(tmp_path)
    events.write_scalars(3, {'loss': 0.5})
    events.write_images(3, {'grid': np.zeros((1, 4, 4, 1), np.uint8)})
    events.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert 'grid/0' in read.Tags()['images'] or 'grid' in str(read.Tags())
    assert 'loss' in str(read.Tags())
