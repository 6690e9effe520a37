"""Stands in for train.py: a run folder in no time, by --config.x overrides.

The first field of a cell decides what the run does, so that studies can be
stopped, killed and failed without a training. The real one is run by
test_studies_command.py.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main(words):
    options = dict(
        word.lstrip("-").split("=", 1) for word in words if "=" in word
    )
    workdir = Path(options["workdir"])
    with open(workdir.parents[2] / "calls.txt", "a") as calls:
        calls.write(" ".join(words) + "\n")
    rate = float(options.get("config.mixing.prob", 0))
    seed = int(options["config.seed"])
    if rate == 0.9:
        print("error: this one fails; choose another")
        sys.exit(2)
    if rate == 0.8:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        done = workdir / "waited"
        print(f"step 1/2 at {os.getpid()}", flush=True)
        (workdir / "pid").write_text(str(os.getpid()))
        for _ in range(0 if done.exists() else 600):
            time.sleep(0.1)
    import numpy as np
    from made_runs import write_run

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 200)
    noise = np.random.default_rng(seed + 1).normal(0, 1, (200, 3))
    tta = "crop" in options.get("config.eval.tta", "")
    logits = (1 + rate + 0.1 * tta) * np.eye(3)[labels] + noise
    write_run(workdir, logits, labels)
    manifest = {"step": 1, "files": {"metrics.jsonl": {"bytes": 0}}}
    size = (workdir / "metrics.jsonl").stat().st_size
    manifest["files"]["metrics.jsonl"]["bytes"] = size
    (workdir / "artifacts.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main(sys.argv[1:])
