"""main.py as a person runs it: in a process of its own, by its flags."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DIGITS = f'--config={ROOT}/configs/ddpm_digits.py:tiny'
VAE = f'--config={ROOT}/configs/vae_fashion_mnist.py:tiny'  # on digits; compiles in seconds


def refusal(done) -> str:
    """The one line that a user's mistake ends in."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith('main.py: ')
    return lines[0]


@pytest.mark.slow
def test_help_is_readable_and_short(main):
    done = main('--help')
    assert done.returncode == 0
    assert 'python main.py --mode=sample' in done.stdout
    assert {'  --config: ', '  --workdir: '} <= set(re.findall(r'  --\w+: ', done.stdout))
    assert len(done.stdout.splitlines()) < 40


# Of many a kind; each takes a process of its own.
MISTAKES = [
    (['--mode=trainn'], 'train|sample|evaluate|inspect'),
    (['--config.data.sorce=x'], "no field sorce, did you mean 'source'"),
    (['--config.data.image_size=9'], 'multiple of 2'),
    (['--config.mesh.fsdp=2'], 'there are 1'),
    (['--mode=sample', '--workdir=/no/such/run'], 'train first'),
    (['oops'], "'oops'"),
    ([f'--config={ROOT}/README.md'], 'README.md: SyntaxError: '),
]
MORE_MISTAKES = [
    (['--config=missing.py'], '--config=missing.py: missing.py is no file; expected FILE'),
    ([f'{DIGITS[:-4]}tinny'], "did you mean 'tiny'"),
    (['--config.batchsize=3'], 'batch_size'),
    (['--config.batch_size=many'], "'many'"),
    (['--config.data.channels=3'], 'set config.data.channels=1'),
    (['--config.data.num_classes=9'], 'has 10 classes'),
    (['--config.data.source=digit'], "did you mean 'digits'"),
    (['--config.data.source=folder:/no/such/folder'], '/no/such/folder'),
    (['--config.sampler.name=ddin'], "did you mean 'ddim'"),
    (['--config.batch_size=0'], 'config.batch_size=0'),
    (['--workdir=/proc/nowhere'], '/proc/nowhere'),
    (['--batch=3'], "'batch'"),
    (['--step=3'], '--step'),
    (['--stopped=143', '--mode=sample'], '--stopped'),
    (['--stopped=256'], '--stopped=256'),
    (['--processes=2', '--process=0'], '--coordinator'),
    (['--config.seed=-1'], 'config.seed=-1'),
    (['--config.edit.mask=left'], "config.edit.mask='left' changes nothing without edit.task="),
    (['--config.method=diffusion.unet'], 'is not a method'),
    (['--config.optimizer.decay_steps=50'], 'optimizer.warmup=100'),
    (['--config.optimizer.clip=-1'], 'config.optimizer.clip=-1.0'),
    (['--config.mesh.rules=(1,)'], 'config.mesh.rules'),
    (['--config.init_from=/no/such/weights'], '/no/such/weights/config.json'),
]


@pytest.mark.parametrize(
    ('args', 'says'),
    [*MISTAKES, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE_MISTAKES)],
)
def test_a_mistake_is_one_line_and_exit_code_2(main, tmp_path, args, says):
    assert says in refusal(main(*args, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_that_runs_out_is_one_line(main, tmp_path):
    """Of channels whose kernel of 3x3 has more numbers than any machine holds."""
    config = f'--config={ROOT}/configs/autoencoder_fashion_mnist.py:tiny'
    line = refusal(main(config, '--config.model.channels=4000000', f'--workdir={tmp_path}/run'))
    assert re.search(r'Out of memory allocating \d{13,} bytes: lower config.batch_size', line)


@pytest.mark.slow
def test_a_folder_with_a_broken_image_is_named_by_path(main, tmp_path):
    for name in ('a', 'b'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'data' / name / '0.png')
    broken = tmp_path / 'data' / 'b' / '1.png'
    broken.write_bytes((tmp_path / 'data' / 'a' / '0.png').read_bytes()[:40])
    line = refusal(
        main(VAE, f'--config.data.source=folder:{tmp_path}/data', f'--workdir={tmp_path}/run')
    )
    assert str(broken) in line
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_what_is_no_checkpoint_is_told(main, tmp_path):
    folder = tmp_path / 'checkpoints' / '7'
    folder.mkdir(parents=True)
    (folder / 'junk').write_text('no checkpoint')
    done = main(VAE, f'--workdir={tmp_path}')
    assert done.returncode == 2
    told = done.stderr.strip().splitlines()
    assert f'{folder} is damaged' in told[-2]
    assert 'no readable checkpoint' in told[-1]
    assert (folder / 'junk').read_text() == 'no checkpoint'


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(main, tmp_path, small_disk):
    sizes = {'small state': '4', 'state larger than the disk': '64'}
    for name, width in sizes.items():
        run = f'--workdir={small_disk}/{width}'
        args = (VAE, run, '--config.keep=100', f'--config.model.channels={width}')
        done = main(*args, '--config.steps=3000', '--config.log_every=1000')
        assert 'No space left' in refusal(done), name
        for path in (small_disk / width).glob('checkpoints/[1-9]*'):
            assert (path / '_CHECKPOINT_METADATA').exists()
        shutil.rmtree(small_disk / width)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where this machine lets us make one."""
    import subprocess

    where = tmp_path / 'disk'
    where.mkdir()
    made = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(where)], capture_output=True
    )
    if made.returncode:
        pytest.skip('needs the right to mount a small tmpfs')
    yield where
    subprocess.run(['umount', str(where)], check=True)
