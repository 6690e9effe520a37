"""Starts trainings that have imported everything already; run as a script.

Each line on stdin is the command line of a training, in JSON; its process id
goes to stdout at once, its exit status when it has ended. A process costs a
second or two that way, and can be killed twenty times.

The model is a tiny one, and a stage whose learning rate is `DIVERGES` does so:
its loss is NaN once the head's bias has gone far.
"""

import json
import os
import sys

DIVERGES = 0.0123
FAR = 0.075


def prepare():
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import jax_models
    import reports  # noqa: F401 (train imports these where it uses them)
    import train
    from run_folder import lease
    from training import runtime
    from training.loop import recorder
    from training.tasks import classify

    class Tiny(nnx.Module):
        """Convolution, BatchNorm, dropout and a head."""

        def __init__(self, num_classes, rngs):
            self.conv = nnx.Conv(3, 8, (4, 4), strides=4, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)
            self.head = nnx.Linear(8, num_classes, rngs=rngs)

        def __call__(self, images):
            x = jax.nn.relu(self.norm(self.conv(images)))
            return self.head(self.dropout(x.mean(axis=(1, 2))))

    def create_model(name, *, num_classes, rngs, **options):
        return Tiny(num_classes, rngs)

    make_loss = classify.make_loss

    def make_fragile(stage, teacher=None):
        loss = make_loss(stage, teacher)
        if stage.learning_rate != DIVERGES:
            return loss

        def fragile(model, batch, constants):
            value = loss(model, batch, constants)
            far = jnp.abs(model.head.bias[...]).max() > FAR
            return jnp.where(far, jnp.nan, value)

        return fragile

    start = runtime.start

    def start_keeping_all(cache_dir):
        cache = start(cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        return cache

    runtime.start = start_keeping_all
    jax_models.create_model = create_model
    classify.make_loss = make_fragile
    recorder.RATE_AFTER_ROLLBACK = 1e-6  # So it does not go far again.
    lease.RENEWAL_SECONDS, lease.EXPIRY_SECONDS = 0.1, 0.5
    return train.main


def serve(main):
    for line in sys.stdin:
        words = json.loads(line)
        child = os.fork()
        if not child:
            output = os.open(
                words.pop(0), os.O_WRONLY | os.O_APPEND | os.O_CREAT
            )
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(prepare())
