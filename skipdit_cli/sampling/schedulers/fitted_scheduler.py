"""A multistep scheduler whose coefficients are fitted to one model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from skipdit_cli.errors import UsageError
from skipdit_cli.skip.output_branch import OutputBranch, load_output_branch, refusal


class FittedScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # as every scheduler of diffusers
    """Step to a linear combination of the initial noise and all outputs of the model so far.

    After step k, x_{k+1} = c_k0 x_0 + sum_j c_k,j+1 u_j over the outputs u_0 .. u_k: the most general linear multistep
    method without intermediate states (a bespoke non-stationary solver, arXiv 2403.01329). The coefficients
    hold the noise schedule and the kind of prediction, so that noise, velocity and flow are treated alike. They
    belong to one model, guidance scale and list of timesteps; ``planning/fit_sampler.py`` fits them.

    Args:
        num_train_timesteps: Timesteps of the noise schedule, for the range of explicit timesteps.
        coefficients: One row per denoising step; row k has k + 2 numbers.
        output_branch: The file of an output branch of the model (``skip/output_branch.py``), which the coefficients
            were fitted with.
        output_branch_sha256: The checksum of that file.
        flow: Whether the model follows a flow, whose noise levels are its timesteps over ``num_train_timesteps``.

    Attributes:
        sigmas: The noise levels of a flow, which some pipelines read in each step (LTX-2, Wan, CogView4); otherwise
            None.
        branch: The output branch, or None.
        place: The generation, counted, and the step that comes next.

    Raises:
        ValueError: The coefficients are no such rows of finite numbers.
        UsageError: The output branch cannot be read, or is for another number of steps.
    """

    config: Any
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        coefficients: Sequence[Sequence[float]] | None = None,
        output_branch: str | None = None,
        output_branch_sha256: str | None = None,
        flow: bool = False,
    ):
        self.explicit: Sequence[float] = ()
        self.sigmas: torch.Tensor | None = None
        self.timesteps = torch.zeros(0)
        self.rows: list[list[float]] = [] if coefficients is None else checked_rows(coefficients)
        self.terms: list[torch.Tensor] = []
        self.generation = self.branched_rows = 0
        self.branch: OutputBranch | None = None
        if output_branch is not None:
            self.branch = load_output_branch(output_branch, output_branch_sha256)
            if self.branch.steps != len(self.rows):
                raise UsageError(
                    f"Got an output branch for {self.branch.steps} steps, but coefficients for {len(self.rows)}; take "
                    "both from one plan."
                )

    @property
    def place(self) -> tuple[int, int]:
        """The generation and the step that comes next."""
        done = max(len(self.terms) - 1, 0)
        return self.generation, done if done < len(self.explicit) else 0

    def take_timesteps(self, timesteps: Sequence[float]) -> None:
        """Have ``set_timesteps`` set explicit timesteps, fractions among them."""
        self.explicit = timesteps

    def set_timesteps(
        self, num_inference_steps: int | None = None, device=None, timesteps=None, sigmas=None, mu=None
    ) -> None:
        """Set the explicit timesteps, and begin a generation; the arguments of pipelines, which look for them here,
        are not used.

        Raises:
            UsageError: There are none, or not one for each row of the coefficients.
        """
        self._check_rows()
        whole = all(t == int(t) for t in self.explicit)
        self.timesteps = torch.tensor(self.explicit, dtype=torch.int64 if whole else torch.float32, device=device)
        self.num_inference_steps = len(self.explicit)
        if self.config.flow:
            levels = torch.tensor([*self.explicit, 0], dtype=torch.float32, device=device)
            self.sigmas = levels / self.config.num_train_timesteps
        self.terms, self.generation, self.branched_rows = [], self.generation + 1, 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing: a step is told by the outputs so far, and not by its index."""

    def scale_model_input(self, sample: torch.Tensor, timestep=None) -> torch.Tensor:
        """Return the sample, which the model takes as it is."""
        return sample

    def step(self, model_output, timestep, sample, return_dict: bool = True):
        """Return the sample at the next timestep, of the dtype of ``sample``.

        Raises:
            UsageError: There is an output branch that was not added to this output.
        """
        if self.branch is not None:
            self._check_branch(self.branch, len(sample))
        if len(self.terms) > len(self.explicit):
            self.terms = []  # a loop that takes the same timesteps again
        self.terms = [*(self.terms or [sample.float()]), model_output.float()]
        prev_sample = self.combined(self.row(len(self.terms) - 2)).to(sample.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def combined(self, row: Sequence[float]) -> torch.Tensor:
        """Return the combination of the initial noise and all outputs so far by a row of coefficients."""
        return torch.stack([c * term for c, term in zip(row, self.terms)]).sum(0)

    def row(self, index: int) -> Sequence[float]:
        """Return the coefficients of a denoising step."""
        return self.rows[index]

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def _check_branch(self, branch: OutputBranch, samples: int) -> None:
        rows, self.branched_rows = self.branched_rows, 0
        if not rows:
            raise UsageError(
                "Got a sampler whose output branch is not on the transformer; call "
                "enable_output_branch(pipe.transformer, scheduler) first, or sample with skipdit_cli.generate."
            )
        if rows != samples * branch.rows * sum(branch.calls):
            raise refusal(branch)

    def _check_rows(self) -> None:
        steps, rows = len(self.explicit), len(self.rows)
        if not steps or not rows:
            missing = "--timesteps" if not steps else "--scheduler-arg coefficients"
            raise UsageError(f"Got --scheduler fitted without {missing}; take both from a plan of this model.")
        if steps != rows:
            raise UsageError(f"Got {steps} --timesteps, but the coefficients are for {rows}; take both from one plan.")


def checked_rows(coefficients: Any) -> list[list[float]]:
    """Return coefficients as lists of floats, from numbers or texts: YAML takes 3e-05 for a text.

    Raises:
        ValueError: They are not rows of 2, 3, 4, ... finite numbers.
    """
    try:
        rows = [[float(c) for c in row] for row in coefficients]
    except (TypeError, ValueError):
        rows = []
    if not rows or any(len(row) != k + 2 or not all(map(math.isfinite, row)) for k, row in enumerate(rows)):
        raise ValueError("coefficients must be rows of 2, 3, 4, ... finite numbers, one row per timestep")
    return rows
