"""The table of samplers: what a user picks, the diffusers class behind it, how infotext writes it.

A sampler's noise scheduler is built as diffusers users do it: `Class.from_config(model's config,
**overrides)`. The table is data only, so that the command line can list and check samplers without torch;
`tests/reference/test_sampler_table.py` holds it against diffusers' own signatures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from storage.errors import BadInputError

OWN_SAMPLER = "default"  # the model's own noise scheduler
MAX_DISTILLED_STEPS = 50  # LCM and TCD: their schedulers know 50 original steps

SCHEDULES: dict[str, str] = {
    # our name -> infotext's "Schedule type"
    "default": "",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
}

SCHEDULE_OPTIONS: dict[str, str] = {
    # our name -> the constructor argument of a diffusers noise scheduler
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """One line of the table.

    Attributes:
        name: what the user types, e.g. `dpmpp_2m`.
        scheduler_class: name of the noise scheduler's class in `diffusers`.
        overrides: constructor arguments laid over the model's own scheduler config.
        infotext: the name that A1111 and its readers use.
        spaced: whether the class offers Karras, exponential and beta spacing of sigmas.
        stochastic: whether it draws noise during the loop.
        takes_eta: whether `eta` adds noise to it.
    """

    name: str
    scheduler_class: str
    infotext: str
    overrides: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    spaced: bool = False
    stochastic: bool = False
    takes_eta: bool = False

    @property
    def schedules(self) -> tuple[str, ...]:
        """Names of the schedules that this sampler can be asked for."""
        return tuple(SCHEDULES) if self.spaced else ("default",)


def _sampler(
    name: str,
    scheduler_class: str,
    infotext: str,
    *,
    spaced: bool = False,
    stochastic: bool = False,
    takes_eta: bool = False,
    **overrides: Any,
) -> Sampler:
    return Sampler(
        name=name,
        scheduler_class=f"{scheduler_class}Scheduler",
        infotext=infotext,
        overrides=MappingProxyType(overrides),
        spaced=spaced,
        stochastic=stochastic,
        takes_eta=takes_eta,
    )


SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        _sampler("lms", "LMSDiscrete", "LMS", spaced=True),
        _sampler("ddim", "DDIM", "DDIM", takes_eta=True),
        _sampler("ddpm", "DDPM", "DDPM", stochastic=True),
        _sampler("pndm", "PNDM", "PLMS", skip_prk_steps=True),
        _sampler("euler", "EulerDiscrete", "Euler", spaced=True),
        _sampler("euler_a", "EulerAncestralDiscrete", "Euler a", stochastic=True),
        _sampler("heun", "HeunDiscrete", "Heun", spaced=True),
        _sampler("dpm2", "KDPM2Discrete", "DPM2", spaced=True),
        _sampler("dpm2_a", "KDPM2AncestralDiscrete", "DPM2 a", spaced=True, stochastic=True),
        # algorithm_type is named throughout: a model's own config may carry another one.
        _sampler(
            "dpmpp_2m",
            "DPMSolverMultistep",
            "DPM++ 2M",
            spaced=True,
            solver_order=2,
            algorithm_type="dpmsolver++",
        ),
        _sampler(
            "dpmpp_3m",
            "DPMSolverMultistep",
            "DPM++ 3M",
            spaced=True,
            solver_order=3,
            algorithm_type="dpmsolver++",
        ),
        _sampler(
            "dpmpp_2m_sde",
            "DPMSolverMultistep",
            "DPM++ 2M SDE",
            spaced=True,
            stochastic=True,
            solver_order=2,
            algorithm_type="sde-dpmsolver++",
        ),
        _sampler(
            "dpmpp_2s",
            "DPMSolverSinglestep",
            "DPM++ 2S",
            spaced=True,
            solver_order=2,
            algorithm_type="dpmsolver++",
        ),
        _sampler("unipc", "UniPCMultistep", "UniPC", spaced=True),
        _sampler("deis", "DEISMultistep", "DEIS", spaced=True),
        _sampler("ipndm", "IPNDM", "IPNDM"),
        _sampler("lcm", "LCM", "LCM", stochastic=True),
        _sampler("tcd", "TCD", "TCD", takes_eta=True),  # diffusers calls it gamma in places
        _sampler("sa_solver", "SASolver", "SA-Solver", spaced=True, stochastic=True),
        _sampler("dpmpp_sde", "DPMSolverSDE", "DPM++ SDE", spaced=True, stochastic=True),
    )
}

_ALIASES: dict[str, str] = {sampler.infotext.casefold(): sampler.name for sampler in SAMPLERS.values()}


def resolve_sampler(text: str) -> tuple[str, str | None]:
    """Turn what a user typed into a sampler's name and, where the text names one, a schedule.

    Accepts our names (`dpmpp_2m`) and A1111's ("DPM++ 2M Karras"), any case.

    Returns:
        The sampler's name, and the schedule's name or None when the text names no schedule.

    Raises:
        BadInputError: when nothing by that name exists.
    """
    wanted = " ".join(text.split()).casefold()
    schedule: str | None = None
    for name, label in SCHEDULES.items():
        if label and wanted.endswith(" " + label.casefold()):
            schedule, wanted = name, wanted[: -len(label) - 1]
            break
    name = wanted if wanted in SAMPLERS or wanted == OWN_SAMPLER else _ALIASES.get(wanted, "")
    if not name:
        raise BadInputError(
            f"There is no sampler {text!r}; choose one of {', '.join(SAMPLERS)}, or {OWN_SAMPLER} for the "
            f"model's own (see `promptmill samplers`)."
        )
    if schedule is not None:
        check_schedule(name, schedule)
    return name, schedule


def schedules_of(sampler: str) -> tuple[str, ...]:
    """Return the schedules that a sampler can be asked for; the model's own has only its own."""
    return SAMPLERS[sampler].schedules if sampler != OWN_SAMPLER else ("default",)


def sampler_label(sampler: str) -> str:
    """Return a sampler's name in infotext."""
    return SAMPLERS[sampler].infotext if sampler != OWN_SAMPLER else OWN_SAMPLER


def check_schedule(sampler: str, schedule: str) -> str:
    """Return `schedule` if `sampler` offers it.

    Raises:
        BadInputError: for an unknown schedule, or one that the sampler's class does not have.
    """
    if schedule not in SCHEDULES:
        raise BadInputError(f"There is no schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    if schedule not in schedules_of(sampler):
        raise BadInputError(
            f"Sampler {sampler} has no {schedule} schedule; leave the schedule out, "
            f"or take a sampler that has it (see `promptmill samplers`)."
        )
    return schedule


def check_distilled(sampler: str, num_inference_steps: int) -> None:
    """Raise BadInputError for more steps than the samplers of distilled models know."""
    if sampler in ("lcm", "tcd") and num_inference_steps > MAX_DISTILLED_STEPS:
        raise BadInputError(
            f"Sampler {sampler} knows at most {MAX_DISTILLED_STEPS} steps, not {num_inference_steps}; "
            f"ask for fewer, or take another sampler."
        )
