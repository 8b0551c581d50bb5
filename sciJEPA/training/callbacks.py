"""What a run writes as it goes: metrics, checkpoints, the best weights so far, a progress bar.

Arrives: a step that is done. Leaves: files that a kill at any moment leaves whole, and a run resumes from. We decided
against Lightning's loggers and checkpoint names: one tidy CSV that a resumed run continues, one checkpoint that is
replaced. The first process writes; the others bring it their latents and wait.
"""

import csv
import io
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from sciJEPA.config import RunConfig
from sciJEPA.errors import UserError
from sciJEPA.jepa import JEPA, StepOutput
from sciJEPA.masking import MaskPlan
from sciJEPA.tokenizers.base import Batch
from sciJEPA.training.distributed import all_sum, alone
from sciJEPA.training.monitor import diagnose, gathered, warn_of_collapse
from sciJEPA.training.validation import validate

Item = tuple[Batch, MaskPlan]
"""A batch of one domain and its masks."""


class Metrics(lightning.Callback):
    """Writes metrics.csv; a resumed run drops the rows after its checkpoint and goes on.

    Parameters
    ----------
    validation
        A few batches of every domain that is not trained on.
    untrained
        What `validate` finds for every domain with the encoder that the run starts from.
    best
        Where the weights with the lowest probe error are kept; None to keep none.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        validation: Mapping[str, Sequence[Item]],
        untrained: Mapping[str, Mapping[str, float]],
        best: Path | None,
    ) -> None:
        self.path, self.config, self.validation, self.untrained = path, config, validation, untrained
        self.best = None if best is None else Best(best)
        self.warned = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Drop the rows that are to be written again."""
        if self.path.exists() and trainer.is_global_zero:
            with self.path.open(newline="") as file:
                whole = [row for row in csv.DictReader(file) if None not in row.values()]
            rows = [row for row in whole if int(row["step"]) <= trainer.global_step]
            write_whole(self.path, _csv(rows, header=True))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Write a row where one is due, and end a run that has gone astray."""
        training, step = self.config.training, trainer.global_step
        if not pl_module.stepped or (step % training.log_every and step != training.steps):
            return
        loss = sum(float(output.terms.total.detach()) for output in pl_module.outputs.values())
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}; lower training.learning_rate "
                f"(now {training.learning_rate:g}) or use training.precision float32."
            )
        outputs = {name: gathered(output) for name, output in pl_module.outputs.items()}
        jepa = pl_module.whole()
        collapsed = torch.zeros((), device=pl_module.device)
        if trainer.is_global_zero:
            with alone():
                collapsed += self._write(trainer, pl_module, jepa, outputs)
        if training.stop_on_collapse and all_sum(collapsed) > 0:
            raise UserError(
                f"the latents have collapsed at step {step}, see metrics.csv; change the objective or lower "
                "training.learning_rate, or set training.stop_on_collapse to false to go on all the same."
            )

    def _write(self, trainer: lightning.Trainer, pl_module: Any, jepa: JEPA, outputs: Mapping[str, StepOutput]) -> bool:
        """One row; returns whether the latents of a domain have collapsed."""
        training, step = self.config.training, trainer.global_step
        numbers: dict[str, Any] = {"step": step, "learning_rate": trainer.optimizers[0].param_groups[0]["lr"]}
        joint, collapsed, errors = len(outputs) > 1, False, []
        if joint:
            numbers["loss"] = sum(float(output.terms.total.detach()) for output in outputs.values()) / len(outputs)
        for name, output in outputs.items():
            batches = pl_module.transfer_batch_to_device(self.validation[name], pl_module.device, 0)
            own = diagnose(output) | validate(jepa, batches, trainer.precision_plugin.forward_context)
            errors.append(own["probe_error"])
            if step >= training.warmup * training.steps and not (self.warned and not training.stop_on_collapse):
                collapsed |= warn_of_collapse(own, step, self.config.objective.target, self.untrained[name])
            numbers |= {f"{name}.{key}": value for key, value in own.items()} if joint else own
        self.warned |= collapsed
        if self.best is not None:
            self.best.offer(jepa, sum(errors) / len(errors), step)
        header = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="") as file:
            file.write(_csv([numbers], header=header))
        return collapsed


class Best:
    """The weights with the lowest probe error of a run so far, in one file.

    A run is a function of its configuration: after a resume the same steps come again with the same errors, so that a
    file from after the checkpoint is no other than the one it would have had.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.error = path, math.inf
        if path.exists():
            with safe_open(path, "pt") as file:
                self.error = float.fromhex(file.metadata()["error"])

    def offer(self, jepa: JEPA, error: float, step: int) -> None:
        """Keep these weights if their error is lower."""
        if math.isnan(error):
            raise UserError(
                "training.keep best compares probe errors, but there is none: the validation split needs at least four "
                "windows, and data.window must be longer than data.context; change them or set training.keep to last."
            )
        if error < self.error:
            self.error = error
            partial = self.path.with_suffix(".partial")
            state = {name: value.detach().cpu().contiguous() for name, value in jepa.state_dict().items()}
            save_file(state, partial, metadata={"error": error.hex(), "step": str(step)})
            os.replace(partial, self.path)

    @staticmethod
    def restore(path: Path, jepa: JEPA) -> None:
        """Give the model the weights that were kept."""
        jepa.load_state_dict(load_file(path))


def _csv(rows: list[dict[str, Any]], *, header: bool) -> str:
    """Rows as text; nothing for no rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [])
    if rows and header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Checkpoint(lightning.Callback):
    """One checkpoint at regular steps, in place of the one before."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.every, self.steps = path, config.training.checkpoint_every, config.training.steps

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Write the checkpoint where it is due."""
        if pl_module.stepped and (trainer.global_step % self.every == 0 or trainer.global_step == self.steps):
            trainer.save_checkpoint(self.path, weights_only=False)


class AtomicFile(TorchCheckpointIO):
    """Writes beside the file and renames: a kill in mid-write leaves the one before.

    Lightning's own goes by way of the system's temporary folder, which may be small.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        # By way of memory: torch's own writer does not say that a disk is full.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        partial = Path(path).with_suffix(".partial")
        partial.write_bytes(content.getbuffer())
        os.replace(partial, path)


class Bar(lightning.Callback):
    """A progress bar on stderr; silent where nobody is watching."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Show the bar."""
        self.bar = tqdm(
            total=self.config.training.steps, initial=trainer.global_step, desc="pretrain", unit="step",
            disable=None if trainer.is_global_zero else True, file=sys.stderr,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Move on by a step."""
        if not pl_module.stepped:
            return
        self.bar.update(1)
        if trainer.global_step % self.config.training.log_every == 0:
            losses = [float(output.terms.total.detach()) for output in pl_module.outputs.values()]
            self.bar.set_postfix(loss=" ".join(f"{loss:.3f}" for loss in losses), refresh=False)

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Remove the bar."""
        if hasattr(self, "bar"):
            self.bar.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the one before, or none."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, newline="")
    os.replace(partial, path)
