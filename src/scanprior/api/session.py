"""What every training command does around the training: processes, the run folder, the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scanprior.api.division import Learn
from scanprior.api.models import cpu_computes_bf16
from scanprior.api.settings import FinetuneConfig, PretrainConfig
from scanprior.api.sources import Images, load
from scanprior.engine import Reporter, first_alone, launch
from scanprior.run import Run


class Session:
    """One training command on its way to a run folder, in one process or as one of several.

    Args:
        config: the complete configuration.
        out: the run folder.
        resume, overwrite: what to do with a run that is there.
        reporter: shows progress; only the first process speaks.

    Attributes:
        fabric: the processes that train together.
        path: the run folder.
        reporter: of this process.
    """

    def __init__(
        self,
        config: PretrainConfig | FinetuneConfig,
        out: str | Path,
        *,
        resume: bool,
        overwrite: bool,
        reporter: Reporter | None,
    ) -> None:
        self.config, self.path = config, Path(out)
        self.resume, self.overwrite = resume, overwrite
        self.fabric = launch(config.engine)
        self.reporter = (reporter or Reporter()) if self.fabric.is_global_zero else Reporter()
        if self.fabric.device.type == "cpu" and config.engine.precision == "bf16" and not cpu_computes_bf16():
            self.reporter.note(
                "warning: engine.precision=bf16, and no bf16 arithmetic was found in this processor: training may be "
                "many times slower than with 32"
            )

    def load(self, learn: Learn) -> Images | None:
        """Check the run folder and load the images; None where the run is finished already.

        Raises:
            ScanpriorError: the folder cannot be used, or the sources cannot be read.
        """
        with first_alone(self.fabric):
            if self.fabric.is_global_zero:
                Run.check(self.path, self.config, resume=self.resume, overwrite=self.overwrite)
            if self.resume and Run.finished(self.path):
                self.reporter.note(f"{self.path}: finished already")
                return None
            return load(self.config.sources, self.config.data, self.reporter, learn=learn)

    def create(self) -> None:
        """Begin the run folder, after all that can be wrong: a typing error replaces no older run."""
        with first_alone(self.fabric):
            if self.fabric.is_global_zero:
                Run.create(self.path, self.config, resume=self.resume, overwrite=self.overwrite)

    @contextmanager
    def results(self) -> Iterator[Run | None]:
        """Give the run to the first process, which writes the results; the others wait and get None."""
        with first_alone(self.fabric):
            yield Run(self.path, {}) if self.fabric.is_global_zero else None
