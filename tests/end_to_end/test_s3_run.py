"""train.py with its run folder in s3://; see requirements-s3.txt."""

import logging
import os

import pytest
from in_process import training
from test_kill import assert_same

from core.paths import make_path
from run_folder import layout

REASON = (
    "an emulator of S3 is optional: pip install -c constraints.txt -r "
    "requirements-s3.txt"
)
pytest.importorskip("s3fs", reason=REASON)
moto = pytest.importorskip("moto.server", reason=REASON)


@pytest.fixture(scope="module")
def s3_url():
    """Of a folder in a bucket that is served from this process."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    # Before s3fs and TensorStore look, which they do once.
    os.environ.update(variables)
    import boto3

    boto3.client("s3", region_name="us-east-1").create_bucket(
        Bucket="sextet-test"
    )
    yield "s3://sextet-test/run"
    for name in variables:
        del os.environ[name]
    server.stop()


@pytest.mark.slow
def test_a_run_in_s3_equals_that_in_a_folder(s3_url, tmp_path, capsys):
    assert training(tmp_path / "run") == 0
    assert training(s3_url) == 0
    folder = make_path(s3_url)
    assert_same(folder, tmp_path / "run")
    assert training(s3_url) == 0
    assert "this run is finished" in capsys.readouterr().out
    # Killed while it was deleting: 16 is trained again, under that name.
    (folder / "checkpoints/16" / layout.COMMITTED).unlink()
    assert training(s3_url) == 0
    assert_same(folder, tmp_path / "run")
