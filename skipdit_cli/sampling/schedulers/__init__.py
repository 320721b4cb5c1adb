"""The schedulers of a run: by name, with their spacing, their arguments and explicit timesteps."""

from skipdit_cli.sampling.schedulers.candidates import (
    candidates,
    check_deterministic,
    check_single_forwards,
    full_run_sampler,
    is_deterministic,
    keeps_noise_schedule,
    policy_for,
    usable_samplers,
)
from skipdit_cli.sampling.schedulers.explicit_timesteps import (
    log_snr_timesteps,
    set_usual_timesteps,
    shifted_timesteps,
)
from skipdit_cli.sampling.schedulers.fitted_scheduler import FittedScheduler
from skipdit_cli.sampling.schedulers.make_scheduler import (
    FITTED,
    SCHEDULERS,
    check_name,
    follows_flow,
    make_scheduler,
    predicts_sigma,
    spacings_of,
)
from skipdit_cli.sampling.schedulers.official_schedulers import EvenFlowScheduler, RespacedDDIMScheduler, even_sigmas
from skipdit_cli.sampling.schedulers.sampler import SPACINGS, Sampler, as_sampler

__all__ = [
    "FITTED",
    "SCHEDULERS",
    "SPACINGS",
    "EvenFlowScheduler",
    "FittedScheduler",
    "RespacedDDIMScheduler",
    "Sampler",
    "as_sampler",
    "candidates",
    "check_deterministic",
    "check_name",
    "check_single_forwards",
    "even_sigmas",
    "follows_flow",
    "full_run_sampler",
    "is_deterministic",
    "keeps_noise_schedule",
    "log_snr_timesteps",
    "make_scheduler",
    "policy_for",
    "predicts_sigma",
    "set_usual_timesteps",
    "shifted_timesteps",
    "spacings_of",
    "usable_samplers",
]
